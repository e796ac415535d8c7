"""The examples agree with their pages."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from appliance.client.gates import load_gates
from appliance.domain.data.kinds import map_columns
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, resolve_recipe
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_row
from appliance.ml.data.sources import parse_source
from appliance.ml.model.chat import load_chat
from scripts.kit.tiny_model import build_base

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
FOLDER = EXAMPLES / "contracts"
SETS = ROOT.parent / "shared" / "data"


def rows() -> list[dict[str, str]]:
    with (FOLDER / "clauses.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_the_recipe_is_valid_and_resolves_on_a_small_machine() -> None:
    recipe = parse_recipe(yaml.safe_load((FOLDER / "recipe.yaml").read_text(encoding="utf-8")))
    assert (recipe.name, recipe.base, recipe.dataset) == ("clauses", "smollm2", "clauses@1")
    facts = ResolutionFacts(train_rows=340, max_tokens=120, context_length=8192, device="cpu", bfloat16=False)
    resolved = resolve_recipe(recipe, facts)
    assert (resolved.rank, resolved.alpha, resolved.dropout, resolved.device) == (16, 32, "0.0", "cpu")


def test_the_clauses_have_rows_enough_for_their_gates() -> None:
    gates = load_gates(FOLDER / "gates.json").gates
    held_out = len(rows()) // 5
    assert gates.name == "contracts" and all(gate.least_items <= held_out for gate in gates.gates)
    assert {gate.kind for gate in gates.gates} == {"target", "regression"}


@pytest.mark.parametrize(
    ("name", "dataset", "labels"),
    [("sst2", "sentiment", 2), ("banking77", "bank-questions", 77), ("cuad", "contract-clauses", 12)],
)
@pytest.mark.skipif(not SETS.is_dir(), reason=f"the public sets are not at {SETS}: see the examples' pages")
def test_a_seed_recipe_resolves_and_its_set_imports(
    name: str, dataset: str, labels: int, wide_base: Path, tmp_path: Path
) -> None:
    """A slice of it, by the page's own command and the worker's own steps."""
    command = [sys.executable, str(EXAMPLES / "prepare.py"), name, str(SETS / name), str(tmp_path), "--every", "20"]
    subprocess.run(command, check=True, capture_output=True)
    train, held_out = (
        parse_source(
            (tmp_path / f"{side}.csv").read_bytes(), "csv", "classification", map_columns("classification", {})
        )
        for side in ("train", "held-out")
    )
    sides = data.join_sources("classification", train, held_out)
    assert len(data.check_labels(sides, ())) == labels
    chat = load_chat(wide_base)
    rows = data.render_rows(sides, chat, "classification", instruction="Name it.")
    longest = max(
        len(tokenize_row(row, chat, 8192, source.place).ids) for row, (source, _) in zip(rows, sides, strict=True)
    )
    recipe = parse_recipe(yaml.safe_load((EXAMPLES / name / "recipe.yaml").read_text(encoding="utf-8")))
    facts = ResolutionFacts(train_rows=len(train), max_tokens=longest, context_length=8192, device="cpu", bfloat16=True)
    assert resolve_recipe(recipe, facts).dataset == f"{dataset}@1"
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"--name {dataset} " in page and f"prepare.py {name} " in page and len(page.splitlines()) < 50


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the tiny base, whose tokens are nearly letters, with room for a whole clause."""
    folder = build_base(tmp_path_factory.mktemp("wide") / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return folder
