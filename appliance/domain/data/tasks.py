"""What a dataset teaches: its task, and the parts that each of its rows then has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, get_args

from appliance.errors import refuse

Task = Literal[
    "classification", "instruction", "completion", "summarisation", "question-answering", "chat", "preference"
]
Format = Literal["csv", "tsv", "jsonl", "parquet"]
TASKS: tuple[Task, ...] = get_args(Task)
FORMATS: tuple[Format, ...] = get_args(Format)

PARTS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "instruction": ("instruction", "input", "output"),
    "completion": ("prompt", "text"),
    "summarisation": ("text", "summary"),
    "question-answering": ("context", "question", "answer"),
    "chat": ("messages", "tools"),
    "preference": ("prompt", "chosen", "rejected"),
}
QUESTIONS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("text",),
    "instruction": ("instruction", "input"),
    "completion": ("prompt",),
    "summarisation": ("text",),
    "question-answering": ("context", "question"),
    "chat": ("message",),
    "preference": ("prompt",),
}
"""What the user's message of a row is made of: these parts in this order, an empty line between two. Of a completion it
is the prompt, without a template; of a chat any message of the user."""
OPTIONAL = frozenset({("instruction", "input"), ("completion", "prompt"), ("chat", "tools"), ("preference", "prompt")})
"""Parts that a file need not have, and that a row may leave empty. A preference without a prompt has the common
beginning of both answers as its prompt."""
PREFERENCE: Task = "preference"
CLUSTER = "cluster"
GROUPS = (CLUSTER, "slice")
"""Parts that rows of every task may have, where their column is named: what rows that belong together have in common,
and a value by which an evaluation divides the rows. No model sees them."""


def map_columns(task: Task, named: Mapping[str, str]) -> dict[str, str]:
    """The file's column for every part of the task: its own name unless it is named otherwise. Groups only where they
    are named."""
    check_parts(task, named)
    groups = {part: named[part] for part in GROUPS if part in named}
    return {part: named.get(part, part) for part in PARTS[task]} | groups


def wrong_parts(task: Task, columns: Mapping[str, str]) -> list[str]:
    """Each part that the task does not have."""
    known = (*PARTS[task], *GROUPS)
    return [
        f"dataset, column {part!r}: expected one of {', '.join(known)} for {task}, got it"
        for part in columns
        if part not in known
    ]


def check_parts(task: Task, columns: Mapping[str, str]) -> None:
    """BadInput for parts that the task does not have."""
    refuse("dataset", wrong_parts(task, columns))


# Bounded: a short text such as 1e9999999 is a number that takes seconds to write out.
_SHARE = re.compile(r"[0-9]{1,3}\.[0-9]{1,12}")
MOST_HELD_OUT = Fraction(9, 10)


def wrong_share(text: str) -> list[str]:
    """What is wrong with a held-out share: a decimal fraction in text, above 0 and at most 0.9."""
    if _SHARE.fullmatch(text) is None:
        return [f"dataset, held_out: expected a share above 0 and at most 0.9, such as 0.2, got {text!r:.40}"]
    if not 0 < Fraction(text) <= MOST_HELD_OUT:
        return [f"dataset, held_out: expected above 0 and at most 0.9, got {text}"]
    return []


def may_lack(task: Task, part: str, column: str) -> bool:
    """Whether a file may lack this column: an optional part without a column name of its own."""
    return (task, part) in OPTIONAL and column == part
