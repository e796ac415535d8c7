from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.client import runs
from appliance.client.support import orders
from appliance.domain.actions.proposals import Proposal
from appliance.domain.actions.showing import describe
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.runs.training import Train
from appliance.errors import BadInput, NotFound, Tampered
from tests.client.conftest import Office

RECIPE = "name: clauses\nbase: smollm2\ndataset: clauses@1\nrank: 8\nlearning_rate: 2e-4\n"


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    recipe = runs.load_recipe(_file(tmp_path, RECIPE))
    assert (recipe.rank, recipe.learning_rate, recipe.epochs) == (8, "0.0002", "auto")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE + "rnak: 8\n", r"recipe\.yaml.*key 'rnak'.*did you mean 'rank'"),
        (RECIPE + "rank: 16\n", r"key 'rank': expected it once, got it twice"),
        (RECIPE + "rank: [1\n", r"recipe\.yaml, line \d+, column 1: expected YAML, got expected ',' or '\]'"),
        ("", "got an empty file; begin with: appliance recipe new"),
        ("text,label\n", "expected lines of `name: value`, got other text"),
        (RECIPE + "seed: !!python/object/apply:os.system ['true']\n", "expected YAML, got could not determine"),
        (RECIPE + "notes: " + "[" * 5_000, "line 6: expected at most 20 nested brackets"),
        (RECIPE + "notes: " + "{a: " * 3_000, "expected at most 20 nested brackets"),
        (RECIPE + "notes:\n  " + "- " * 3_000, "expected YAML of a few levels"),
        (RECIPE + "notes: &a [*a]\n", "expected each value itself, got an alias"),
        (RECIPE + "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "expected each value itself, got an alias"),
        (RECIPE + f"seed: {'1' * 5_000}\n", "expected YAML, got Exceeds the limit"),
        (RECIPE + "seed: 2026-13-45\n", "expected YAML, got month must be"),
        ("- a\n- b\n", "expected lines of `name: value`, got a list"),
        ("name: clauses\n", "base: expected a value, got none"),
        (RECIPE.replace("rank: 8", "rank: 0"), "rank"),
    ],
)
def test_a_recipe_that_is_off_names_the_file_and_the_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as raised:
        runs.load_recipe(_file(tmp_path, text))
    assert "recipe.yaml" in raised.value.message


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.yaml"):
        runs.load_recipe(tmp_path / "none.yaml")


def _propose(office: Office, **values: Any) -> Proposal:
    recipe = parse_recipe({"name": "clauses", "base": "smollm2", "dataset": "clauses@1", **values})
    return office.propose("olga", Train, {"recipe": recipe})


def test_every_auto_value_is_resolved_and_marked_and_what_was_written_is_not(
    open_office: Callable[..., Office],
) -> None:
    proposal = _propose(open_office("imported"), rank=8)
    assert isinstance(proposal.order, Train)
    assert proposal.order.recipe.epochs == 2
    shown = dict(describe(proposal))
    assert shown["epochs"] == "2  (auto)"
    assert shown["rank"] == "8"
    assert shown["base digest"] == proposal.order.base_digest


def test_the_run_is_ordered_on_the_digests_that_the_log_binds(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    signed = orders.sign(_propose(office), office.site.keys["olga"])
    receipt = orders.submit(office.connection, signed, office.anchor.log_keys)
    assert receipt.result["run"] == "r-000001"
    row = office.site.state.runs.get("r-000001")
    assert row is not None and row.base_digest == office.site.base_digest


def test_facts_about_other_bytes_than_the_log_binds_are_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    office.service.bend["/v1/recipes/facts"] = lambda answer: {**answer, "dataset_digest": "sha256:" + "6" * 64}
    with pytest.raises(Tampered, match="facts of smollm2 and clauses@1"):
        _propose(office)


def test_a_row_that_names_other_bytes_than_its_entry_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("imported")
    office.service.bend["/v1/bases/smollm2"] = lambda row: {**row, "digest": "sha256:" + "7" * 64}
    with pytest.raises(Tampered, match="base smollm2: expected"):
        _propose(office)


def test_a_recipe_that_cannot_be_trained_is_refused(open_office: Callable[..., Office]) -> None:
    with pytest.raises(BadInput, match=r"recipe, max_length: expected at least 80 tokens"):
        _propose(open_office("imported"), max_length=64)


def test_following_hands_on_each_frame_once_and_ends_with_the_run(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    told: list[tuple[str, list[int]]] = []
    connection = office.as_("olga")
    ended = runs.follow(connection, "r-000001", lambda status, frames: told.append((status, [f.seq for f in frames])))
    assert told == [("sealed", [0, 1]), ("sealed", [])]
    assert (ended.status, ended.adapter) == ("sealed", "clauses@1")


def test_following_continues_under_a_new_session(open_office: Callable[..., Office]) -> None:
    office = open_office("sealed")
    connection = office.as_("olga")
    runs.follow(connection, "r-000001", lambda status, frames: office.service.forget_sessions())
    assert office.service.seen.count(("POST", "/v1/sessions")) > 1
