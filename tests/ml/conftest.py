"""One tiny base and one tiny dataset for all tests of this folder, which do not change them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from appliance.domain.data.kinds import DatasetDescription
from appliance.ml.data import rows as data
from appliance.ml.data.sources import parse_source
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.model.chat import load_chat
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.kit.gptq import packed_twin


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Seed torch's own generator, so that a test draws the same numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def gptq_folder(base_folder: Path) -> Path:
    """Return the same base packed by GPTQ, with inputs grouped by activation."""
    return packed_twin(base_folder)


@pytest.fixture
def base(base_folder: Path) -> LoadedBase:
    """Fresh for each test: adapters and kernels change a model."""
    machine.use_determinism(7)
    return load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", own_layers=True)


@pytest.fixture(scope="session")
def dataset(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    source = write_csv(folder / "clauses.csv", clauses())
    columns = {"text": "text", "label": "label"}
    sources = parse_source(source.read_bytes(), "csv", "classification", columns)
    sides = data.split_sources("classification", sources, 1, Fraction(1, 5))
    rendered = data.render_rows(sides, load_chat(base_folder), "classification", instruction="Name the kind.")
    data.write_rows(rendered, DatasetDescription("classification", data.check_labels(sides, ())), folder, bytes(32))
    return folder
