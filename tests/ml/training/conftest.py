"""A base as training loads it, with peft's adapters on the library's modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base


@pytest.fixture
def base(base_folder: Path) -> LoadedBase:
    """Fresh for each test: adapters change a model."""
    machine.use_determinism(7)
    return load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")
