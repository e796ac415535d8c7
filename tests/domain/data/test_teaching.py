"""What a unit is told of an adapter's training, and what it is not: no row, and no text that was erased."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from appliance.domain.data.tasks import Task
from appliance.domain.data.teaching import About, Teaching, encode_about, example_request, parse_about
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical

SYSTEM = {"role": "system", "content": "Name the clause."}


def taught(task: Task, instruction: str | None = "Name the clause.", labels: tuple[str, ...] = ()) -> Teaching:
    return Teaching(About(task, labels), instruction)


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
    ("task", "content"),
    [
        ("instruction", "<instruction>\n\n<input>"),
        ("summarisation", "<text>"),
        ("question-answering", "<context>\n\n<question>"),
        ("chat", "<message>"),
    ],
)
def test_an_examples_message_has_the_parts_of_a_row_in_their_order(task: Task, content: str) -> None:
    example = example_request("clauses", taught(task), added=False)
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
    for task in set(get_args(Task)) - {"completion"}:
        messages = example_request("clauses", taught(task, instruction), added=added)["body"]["messages"]
        assert [message["role"] for message in messages] == ["user"]


def test_what_lies_beside_the_rows_is_read_as_it_was_written() -> None:
    about = About("classification", ("a", "b"))
    assert parse_about(encode_about(about)) == about


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"task": "chat"},
        {"task": "guessing", "labels": []},
        {"task": "chat", "labels": [1]},
        {"task": "chat", "labels": {}},
    ],
)
def test_another_file_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"dataset\.json"):
        parse_about(encode_canonical(value))
