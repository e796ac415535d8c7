from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Any:
    """Return published requests of another witness, with its keys."""
    return json.loads((VECTORS / "transparency.json").read_text(encoding="utf-8"))


@pytest.fixture
def trust_file(tmp_path: Path) -> Path:
    path = tmp_path / "trust.json"
    path.write_text(json.loads((VECTORS / "appliance.json").read_text(encoding="utf-8"))["trust"], encoding="utf-8")
    return path
