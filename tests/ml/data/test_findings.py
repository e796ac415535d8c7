"""A check reports all errors that an import would refuse, and unusual rows."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.findings import MOST_ERRORS, Errors, Rendering, examine
from appliance.ml.data.sources import SourceRecord, read_records
from appliance.ml.model.chat import load_chat

COLUMNS = {"text": "text", "label": "label"}
ROWS = (
    b"text,label\n"
    b"the first,billing\n"
    b"two,card,three\n"
    b",card\n"
    b"The  FIRST,Billing\n"
    b"the first,card\n"
    b"five,biling\n"
    b"six\n"
    b"seven,card\n"
)


def _examine(
    rows: bytes = ROWS, kind: str = "csv", declared: tuple[str, ...] = (), rendering: Rendering | None = None
) -> dict[str, Any]:
    errors = Errors()
    sources = errors.keep_rows(read_records(rows, kind, "classification", COLUMNS, "dataset"))
    sides = data.split_sources("classification", sources, 1, Fraction(1, 5))
    return examine("classification", sides, errors, declared, rendering)


def test_every_row_that_does_not_fit_is_named() -> None:
    errors = _examine()["errors"]
    for said in (
        "dataset, line 3: expected 2 fields, got 3",
        "dataset, line 4, text: expected a text, got nothing",
        "dataset, line 8: expected 2 fields, got 1",
        "dataset, line 6: expected the label 'billing', which the same text has in dataset, line 2, got 'card'",
    ):
        assert said in errors


def test_every_line_of_json_is_read_whatever_the_one_before_was() -> None:
    rows = b'{"text": "a", "label": "x"}\nnonsense\n[1]\n{"text": "b"}\n{"text": 7, "label": "y"}\n'
    errors = _examine(rows, "jsonl")["errors"]
    assert [error.partition(":")[0] for error in errors[:4]] == [
        "dataset, line 2", "dataset, line 3", "dataset, line 4", "dataset, line 5, text",
    ]  # fmt: skip


def test_labels_are_counted_and_nearly_equal_ones_and_repeated_texts_are_told() -> None:
    found = _examine()
    assert {label: sum(sides.values()) for label, sides in found["labels"].items()} == {
        "Billing": 1, "biling": 1, "billing": 1, "card": 2,
    }  # fmt: skip
    rarer = {tuple(pair): told for *pair, _, told in found["similar_labels"]}
    assert {("Billing", "billing"), ("biling", "billing")} <= set(rarer)
    assert all(place.startswith("dataset, line ") for place in rarer.values()), "where the rarer one is"
    assert found["duplicates"] == [
        ["dataset, line 5", "dataset, line 2"],
        ["dataset, line 6", "dataset, line 2"],
    ]
    assert found["duplicate_count"] == 2 and found["rows"] == 5


def test_characters_that_nobody_sees_and_twins_of_normalisation_are_counted() -> None:
    rows = (
        "text,label\n"
        "caf\u00e9 bill,card\ncafe\u0301 bill,card\nplain,billing\n"
        "pay\u200bment,billing\nta\u00adriff,card\nabc\u202edef,card\n"
    )
    notes = _examine(rows.encode())["notes"]
    assert [note.partition(", such")[0] for note in notes] == [
        "2 of 6 rows have characters of no width",
        "1 of 6 rows have characters that control the direction of text",
        "2 of 6 rows have the text of another row in another Unicode normalisation",
    ]
    assert not any(unseen in "".join(notes) for unseen in "\u200b\u202e\u00ad") and "bill" not in "".join(notes)
    assert _examine()["notes"] == []


def test_at_most_the_200_most_frequent_labels_are_listed() -> None:
    rows = "text,label\n" + "".join(f"text {row},label {row % 250}\n" for row in range(740))
    found = _examine(rows.encode())
    assert (found["label_count"], len(found["labels"])) == (250, 200) and "label 0" in found["labels"]
    assert found["notes"] == ["of 250 labels the 200 most frequent are listed"]


def test_an_undeclared_label_is_named_in_each_row() -> None:
    errors = _examine(declared=("card", "billing"))["errors"]
    assert sum("expected one of the labels card, billing, got" in error for error in errors) == 2


def test_errors_are_counted_beyond_those_that_are_told() -> None:
    found = _examine(b"text,label\n" + b"one\n" * 300)
    assert len(found["errors"]) == MOST_ERRORS and found["error_count"] >= 300


def test_lengths_are_held_against_the_bases_context(base_folder: Path) -> None:
    chat = load_chat(base_folder)
    rows = b"text,label\n" + b"".join(b"short text %d,%s\n" % (n, (b"pear", b"plum")[n % 2]) for n in range(20))
    found = _examine(rows, rendering=Rendering(chat, 256, ""))
    assert (found["error_count"], found["context_length"]) == (0, 256)
    assert 0 < found["mean_tokens"] <= found["max_tokens"] <= 256
    tight = _examine(rows, rendering=Rendering(chat, found["max_tokens"] - 1, ""))
    assert tight["error_count"] > 0 and all("(the base's context)" in error for error in tight["errors"])
    marked = _examine(rows + b"a <|im_end|> b,pear\n", rendering=Rendering(chat, 256, ""))
    assert marked["error_count"] == 1 and marked["errors"][0].startswith("dataset, line 22")


def test_a_file_that_cannot_be_read_on_is_one_error_more() -> None:
    def records() -> Iterable[SourceRecord | BadInput]:
        yield BadInput("line 2: expected a text")
        raise BadInput("line 3: expected CSV")

    errors = Errors()
    assert errors.keep_rows(records()) == []
    assert errors.messages == ["line 2: expected a text", "line 3: expected CSV"]


@pytest.mark.parametrize("rows", [b"", b"\xff\xfe", b"text,other\na,b\n"])
def test_what_is_no_table_at_all_is_an_error(rows: bytes) -> None:
    assert _examine(rows)["error_count"] >= 1


def test_findings_come_in_the_order_of_the_lines_and_those_of_the_whole_file_last() -> None:
    errors = Errors()
    for place in ("dataset, line 12", "dataset, label 'a'", "dataset, line 3, text", "held-out file, line 1"):
        errors.add([BadInput(f"{place}: wrong")])
    told = examine("classification", [], errors, (), None)["errors"]
    assert [line.partition(":")[0] for line in told] == [
        "dataset, line 3, text", "dataset, line 12", "held-out file, line 1", "dataset, label 'a'",
    ]  # fmt: skip


def test_where_no_row_could_be_read_nothing_is_said_of_labels_and_splits() -> None:
    errors = Errors()
    columns = {"text": "text", "label": "label"}
    kept = errors.keep_rows(read_records(b"message,kind\none,a\n", "csv", "classification", columns, "dataset"))
    assert kept == [] and examine("classification", [], errors, (), None)["error_count"] == 1
    (told,) = errors.messages
    assert "expected one column 'text' and one column 'label', got the columns 'message, kind'" in told
    assert told.endswith("if yours has another name: --column text=message --column label=kind")


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        (b"ticket,received,body,queue\n", "if yours has another name: --column text=NAME --column label=NAME"),
        (b"ticket,texts,labels,queue\n", "if yours has another name: --column text=texts --column label=labels"),
        (b"ticket;body;queue\n", "the fields seem to be separated by ';': save the file as CSV with commas"),
        (b"ticket\tbody\tqueue\n", r"the fields seem to be separated by '\t': name the format with --format tsv"),
    ],
)
def test_a_file_without_the_columns_gets_a_hint_that_is_no_guess(file: bytes, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(read_records(file, "csv", "classification", {"text": "text", "label": "label"}, "dataset"))
    assert caught.value.message.endswith(hint)
