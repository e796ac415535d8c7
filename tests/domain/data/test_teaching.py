"""The facts about an adapter's training that a unit can read: no row, and no erased text."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from appliance.domain.data.kinds import (
    DatasetDescription,
    DatasetKind,
    InstructedDataset,
    encode_about,
    example_request,
    parse_about,
)
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical

SYSTEM = {"role": "system", "content": "Name the clause."}


def taught(
    dataset_kind: DatasetKind, instruction: str | None = "Name the clause.", labels: tuple[str, ...] = ()
) -> InstructedDataset:
    return InstructedDataset(DatasetDescription(dataset_kind, labels), instruction)


def test_a_classifications_example_asks_for_its_labels_under_its_instruction() -> None:
    example = example_request("clauses", taught("classification", labels=("a", "b")), added=False)
    assert example == {
        "path": "/v1/classify",
        "body": {
            "model": "clauses",
            "messages": [SYSTEM, {"role": "user", "content": "<text>"}],
            "labels": ["a", "b"],
        },
    }


@pytest.mark.parametrize(
    ("dataset_kind", "content"),
    [
        ("instruction", "<instruction>\n\n<input>"),
        ("summarisation", "<text>"),
        ("question-answering", "<context>\n\n<question>"),
        ("chat", "<message>"),
    ],
)
def test_an_examples_message_has_the_parts_of_a_row_in_their_order(dataset_kind: DatasetKind, content: str) -> None:
    example = example_request("clauses", taught(dataset_kind), added=False)
    assert example["path"] == "/v1/chat/completions"
    assert example["body"]["messages"] == [SYSTEM, {"role": "user", "content": content}]


def test_a_completions_example_is_its_prompt_alone() -> None:
    example = example_request("clauses", taught("completion", ""), added=False)
    assert example == {"path": "/v1/completions", "body": {"model": "clauses", "prompt": "<prompt>"}}


@pytest.mark.parametrize(
    ("instruction", "added"), [(None, False), ("", False), ("Name the clause.", True)], ids=["erased", "none", "added"]
)
def test_an_example_has_no_system_message_that_is_gone_or_that_the_service_puts_in(
    instruction: str | None, added: bool
) -> None:
    for dataset_kind in set(get_args(DatasetKind)) - {"completion"}:
        messages = example_request("clauses", taught(dataset_kind, instruction), added=added)["body"]["messages"]
        assert [message["role"] for message in messages] == ["user"]


def test_what_lies_beside_the_rows_is_read_as_it_was_written() -> None:
    for about in (
        DatasetDescription("classification", ("a", "b")),
        DatasetDescription("classification", ("a", "b"), (3, 0)),
    ):
        assert parse_about(encode_about(about)) == about


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"dataset_kind": "chat"},
        {"dataset_kind": "chat", "labels": []},
        {"dataset_kind": "guessing", "labels": [], "label_rows": []},
        {"dataset_kind": "chat", "labels": [1], "label_rows": []},
        {"dataset_kind": "chat", "labels": {}, "label_rows": []},
        {"dataset_kind": "classification", "labels": ["a"], "label_rows": [-1]},
        {"dataset_kind": "classification", "labels": ["a"], "label_rows": [True]},
        {"dataset_kind": "classification", "labels": ["a"], "label_rows": [1, 2]},
    ],
)
def test_another_file_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"dataset\.json"):
        parse_about(encode_canonical(value))
