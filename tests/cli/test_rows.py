"""`dataset check`, and the rows that are shown before an import is signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.api.data import RowFindings, SplitRows
from appliance.api.wire import json_value
from appliance.client import imports
from tests.cli.conftest import Desk, one_line

FOUND = RowFindings(
    rows=9,
    train_rows=7,
    held_out_rows=2,
    labels={
        "Billing": SplitRows.model_validate({"train": 1, "held-out": 0}),
        "billing": SplitRows.model_validate({"train": 3, "held-out": 1}),
        "card": SplitRows.model_validate({"train": 3, "held-out": 1}),
    },
    label_count=3,
    similar_labels=(("Billing", "billing", "Billing", "dataset, line 9"),),
    duplicates=(("dataset, line 5", "dataset, line 2"),),
    duplicate_count=1,
    overlaps={},
    max_tokens=40,
    mean_tokens=12,
    context_length=2048,
    errors=(),
    error_count=0,
    notes=(),
)


def wrong(error_count: int, *errors: str) -> RowFindings:
    return FOUND.model_copy(update={"errors": errors, "error_count": error_count})


WRONG = wrong(7, "dataset, line 3: expected 2 fields, got 1", "dataset, line 4: a")
TERMS = (
    "--name", "notes", "--base", "smollm2", "--owner", "Legal", "--licence", "CC0-1.0",
    "--classification", "internal", "--no-wait", "--yes",
)  # fmt: skip


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[[RowFindings], list[Any]]:
    """Return a function that sets the worker's findings, since the base of the site has no tokenizer."""

    def give(found: RowFindings) -> list[Any]:
        asked: list[Any] = []

        def check_rows(connection: object, teaching: Any, sources: Any, *, keep: bool) -> RowFindings:
            asked.append((teaching, keep))
            return found

        monkeypatch.setattr(imports, "check_rows", check_rows)
        return asked

    return give


def _file(desk: Desk) -> str:
    (desk.folder / "rows.csv").write_bytes(b"text,label\na,b\n")
    return str(desk.folder / "rows.csv")


Checked = Callable[[RowFindings], list[Any]]


def test_a_check_tells_counts_lengths_and_what_is_odd(open_desk: Callable[[str], Desk], checked: Checked) -> None:
    desk, asked = open_desk("imported"), checked(FOUND)
    told = desk.as_("olga", "dataset", "check", _file(desk), "--base", "smollm2")
    assert told.code == 0, told.err
    for said in (
        "9, 7 to train on, 2 held out",
        "label billing:  4, 3 to train on, 1 held out",
        "40 tokens at most, 12 in the mean, of the base's context of 2048",
        "labels 'Billing' and 'billing' are nearly the same; 'Billing' is the rarer: dataset, line 9",
        "1 row has a text that came before, case and spaces aside: dataset, line 5 is that of dataset, line 2",
        "label 'Billing' has no held-out row",
    ):
        assert one_line(said) in one_line(told.out), said
    assert asked[0][0].base == "smollm2" and asked[0][1] is False
    value = json.loads(desk.as_("olga", "dataset", "check", _file(desk), "--json").out)
    assert value["labels"] == json_value(FOUND)["labels"] and len(value["warnings"]) == 3
    assert desk.ordered() == 0


def test_a_check_fails_with_every_row_that_does_not_fit(open_desk: Callable[[str], Desk], checked: Checked) -> None:
    desk = open_desk("imported")
    checked(WRONG)
    told = desk.as_("olga", "dataset", "check", _file(desk))
    assert told.code == 2 and "7 problems" in told.err and "nothing was imported" not in told.err
    assert told.err.splitlines()[-4:-1] == [
        "  dataset, line 3: expected 2 fields, got 1",
        "  dataset, line 4: a",
        "  and 5 more",
    ]


def test_one_problem_is_one(open_desk: Callable[[str], Desk], checked: Checked) -> None:
    desk = open_desk("imported")
    checked(wrong(1, "dataset, line 3: expected 2 fields, got 1"))
    told = desk.as_("olga", "dataset", "import", _file(desk), *TERMS)
    assert told.code == 2 and "1 problem, nothing was imported" in told.err


def test_an_import_shows_the_findings_before_it_is_signed(open_desk: Callable[[str], Desk], checked: Checked) -> None:
    desk, asked = open_desk("imported"), checked(FOUND)
    told = desk.as_("olga", "dataset", "import", _file(desk), *TERMS)
    assert told.code == 0, told.err
    assert told.err.index("'Billing' and 'billing' are nearly the same") < told.err.index("You are about to sign")
    assert told.err.index("label billing:") < told.err.index("You are about to sign")
    assert asked[0][1] is True, "the upload is what the import reads"


def test_an_import_of_rows_that_do_not_fit_is_not_signed(open_desk: Callable[[str], Desk], checked: Checked) -> None:
    desk = open_desk("imported")
    checked(WRONG)
    told = desk.as_("olga", "dataset", "import", _file(desk), *TERMS)
    assert told.code == 2 and "7 problems" in told.err and "line 3: expected 2 fields" in told.err
    assert "You are about to sign" not in told.err and desk.ordered() == 0
