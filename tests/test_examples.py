"""The example is what its README says it is, so that the demo shows what it claims to show."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import yaml

from appliance.domain.recipe import Facts, parse_recipe, resolve_recipe

FOLDER = Path(__file__).resolve().parents[1] / "examples/contracts"


def rows() -> list[dict[str, str]]:
    with (FOLDER / "clauses.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_the_clauses_are_unique_balanced_and_of_the_stated_length() -> None:
    found = rows()
    assert {tuple(row) for row in found} == {("text", "label")}
    assert len(found) == 424
    assert len({" ".join(row["text"].lower().split()) for row in found}) == len(found), "a text occurs twice"
    assert all(12 <= len(row["text"].split()) <= 45 for row in found)
    assert set(Counter(row["label"] for row in found).values()) == {53}


def test_the_readme_explains_every_label_and_no_other() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert named == sorted({row["label"] for row in rows()})


def test_the_order_of_the_rows_gives_nothing_away() -> None:
    """A split by position would leave no label out."""
    tail = rows()[-84:]
    assert {row["label"] for row in tail} == {row["label"] for row in rows()}


def test_the_recipe_is_valid_and_resolves_on_a_small_machine() -> None:
    recipe = parse_recipe(yaml.safe_load((FOLDER / "recipe.yaml").read_text(encoding="utf-8")))
    assert (recipe.name, recipe.base, recipe.dataset) == ("clauses", "smollm2", "clauses@1")
    facts = Facts(train_rows=340, max_tokens=120, context_length=8192, device="cpu", bfloat16=False)
    resolved = resolve_recipe(recipe, facts)
    assert (resolved.rank, resolved.alpha, resolved.dropout, resolved.device) == (16, 32, "0.0", "cpu")
