"""What a dataset teaches: its task, and the parts that each of its rows then has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from appliance.errors import BadInput

Task = Literal["classification", "instruction", "completion", "summarisation", "question-answering", "chat"]
Format = Literal["csv", "tsv", "jsonl", "parquet"]
TASKS: tuple[Task, ...] = get_args(Task)
FORMATS: tuple[Format, ...] = get_args(Format)

PARTS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "instruction": ("instruction", "input", "output"),
    "completion": ("prompt", "text"),
    "summarisation": ("text", "summary"),
    "question-answering": ("context", "question", "answer"),
    "chat": ("messages",),
}
OPTIONAL = frozenset({("instruction", "input"), ("completion", "prompt")})
"""Parts that a file need not have, and that a row may leave empty."""


def map_columns(task: Task, named: Mapping[str, str]) -> dict[str, str]:
    """The file's column for every part of the task: its own name unless it is named otherwise."""
    check_parts(task, named)
    return {part: named.get(part, part) for part in PARTS[task]}


def check_parts(task: Task, columns: Mapping[str, str]) -> None:
    """BadInput for a part that the task does not have."""
    for part in columns:
        if part not in PARTS[task]:
            raise BadInput(f"dataset, column {part!r}: expected one of {', '.join(PARTS[task])} for {task}, got it")


def may_lack(task: Task, part: str, column: str) -> bool:
    """Whether a file may do without this column: an optional part that nobody named otherwise."""
    return (task, part) in OPTIONAL and column == part
