"""Dataset kinds: the columns of their rows, their description file, and example requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal, get_args

from appliance.errors import BadInput, refuse
from appliance.formats.core.canonical import encode_canonical, parse_canonical

DatasetKind = Literal[
    "classification", "instruction", "completion", "summarisation", "question-answering", "chat", "preference"
]
Format = Literal["csv", "tsv", "jsonl", "parquet"]
DATASET_KINDS: tuple[DatasetKind, ...] = get_args(DatasetKind)
FORMATS: tuple[Format, ...] = get_args(Format)

PARTS: Mapping[DatasetKind, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "instruction": ("instruction", "input", "output"),
    "completion": ("prompt", "text"),
    "summarisation": ("text", "summary"),
    "question-answering": ("context", "question", "answer"),
    "chat": ("messages", "tools"),
    "preference": ("prompt", "chosen", "rejected"),
}
QUESTIONS: Mapping[DatasetKind, tuple[str, ...]] = {
    "classification": ("text",),
    "instruction": ("instruction", "input"),
    "completion": ("prompt",),
    "summarisation": ("text",),
    "question-answering": ("context", "question"),
    "chat": ("message",),
    "preference": ("prompt",),
}
"""The parts that form the user's message of a row, in this order, separated by an empty line.

For a completion it is the prompt, without a chat template; for a chat, any message of the user.
"""
OPTIONAL = frozenset({("instruction", "input"), ("completion", "prompt"), ("chat", "tools"), ("preference", "prompt")})
"""Parts that a file may lack, and that a row may leave empty.

A preference without a prompt uses the common beginning of its two answers as the prompt.
"""
PREFERENCE: DatasetKind = "preference"
CLUSTER = "cluster"
GROUPS = (CLUSTER, "slice")
"""Parts that rows of every dataset kind may have if the order names their columns.

Rows with the same `cluster` belong together; an evaluation reports results by `slice`. The model is given neither.
"""


def map_columns(dataset_kind: DatasetKind, named: Mapping[str, str]) -> dict[str, str]:
    """Return the file's column for each part of the dataset kind. The default is a column of the same name.

    The parts in GROUPS are included only if they are named.

    Raises: BadInput for parts that the dataset kind does not have.
    """
    check_parts(dataset_kind, named)
    groups = {part: named[part] for part in GROUPS if part in named}
    return {part: named.get(part, part) for part in PARTS[dataset_kind]} | groups


def find_unknown_parts(dataset_kind: DatasetKind, columns: Mapping[str, str]) -> list[str]:
    """Return a message for each part that the dataset kind does not have."""
    known = (*PARTS[dataset_kind], *GROUPS)
    return [
        f"dataset, column {part!r}: expected one of {', '.join(known)} for {dataset_kind}, got it"
        for part in columns
        if part not in known
    ]


def check_parts(dataset_kind: DatasetKind, columns: Mapping[str, str]) -> None:
    """Check that the dataset kind has all these parts.

    Raises: BadInput for parts that the dataset kind does not have.
    """
    refuse("dataset", find_unknown_parts(dataset_kind, columns))


# The length is limited: a short text such as 1e9999999 is a number that takes seconds to write out.
_SHARE = re.compile(r"[0-9]{1,3}\.[0-9]{1,12}")
MOST_HELD_OUT = Fraction(9, 10)


def find_share_problem(text: str) -> list[str]:
    """Return what is wrong with a held-out share. It must be a decimal fraction as text, above 0 and at most 0.9."""
    if _SHARE.fullmatch(text) is None:
        return [f"dataset, held_out: expected a share above 0 and at most 0.9, such as 0.2, got {text!r:.40}"]
    if not 0 < Fraction(text) <= MOST_HELD_OUT:
        return [f"dataset, held_out: expected above 0 and at most 0.9, got {text}"]
    return []


def is_column_optional(dataset_kind: DatasetKind, part: str, column: str) -> bool:
    """Return True if a file may lack this column: an optional part without a column name of its own."""
    return (dataset_kind, part) in OPTIONAL and column == part


ABOUT_FILE = "dataset.json"


@dataclass(frozen=True)
class DatasetDescription:
    """The contents of dataset.json: the dataset kind of the rows, and for classification every label, sorted.

    `label_rows`: the number of training rows of each label, in the same order; empty for a validation set.
    """

    dataset_kind: DatasetKind
    labels: tuple[str, ...]
    label_rows: tuple[int, ...] = ()


def encode_about(about: DatasetDescription) -> bytes:
    """Encode dataset.json."""
    return encode_canonical(
        {"dataset_kind": about.dataset_kind, "labels": list(about.labels), "label_rows": list(about.label_rows)}
    )


def parse_about(data: bytes) -> DatasetDescription:
    """Parse dataset.json.

    Raises: BadInput where a field is missing or has another type than expected.
    """
    value, members = parse_canonical(data), {"dataset_kind", "labels", "label_rows"}
    if not isinstance(value, dict) or value.keys() != members or value["dataset_kind"] not in get_args(DatasetKind):
        raise BadInput(f"{ABOUT_FILE}: expected a dataset kind, labels and label_rows, got something else")
    labels, counts = value["labels"], value["label_rows"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadInput(f"{ABOUT_FILE}, labels: expected a list of texts, got something else")
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise BadInput(f"{ABOUT_FILE}, label_rows: expected a list of counts, got something else")
    if len(counts) not in (0, len(labels)):
        raise BadInput(f"{ABOUT_FILE}, label_rows: expected none or {len(labels)}, one a label, got {len(counts)}")
    return DatasetDescription(value["dataset_kind"], tuple(labels), tuple(counts))


@dataclass(frozen=True)
class InstructedDataset:
    """A dataset's description, with the system message of its rows.

    `instruction` is the empty text if the rows have no system message, and None if its text was erased.
    """

    about: DatasetDescription
    instruction: str | None


def example_request(model: str, dataset: InstructedDataset, *, added: bool) -> dict[str, Any]:
    """Return an example request to an adapter: the path of the unit API and a body in the form of the training rows.

    `<text>` and the other names in angle brackets mark the places for the caller's text. `added` is true if the service
    adds the system message.
    """
    about = dataset.about
    question = "\n\n".join(f"<{part}>" for part in QUESTIONS[about.dataset_kind])
    if about.dataset_kind == "completion":
        return {"path": "/v1/completions", "body": {"model": model, "prompt": question}}
    system = [] if added or not dataset.instruction else [{"role": "system", "content": dataset.instruction}]
    body: dict[str, Any] = {"model": model, "messages": [*system, {"role": "user", "content": question}]}
    if about.dataset_kind == "classification":
        return {"path": "/v1/classify", "body": {**body, "labels": list(about.labels)}}
    return {"path": "/v1/chat/completions", "body": body}


GENERAL, REFUSAL = "general", "refusal"
SHIPPED = (GENERAL, REFUSAL)
HARNESS, METRIC = "harness-", "metric-"
"""Prefixes of the names of local sets: for a task of lm-eval, and for a metric of evaluate."""


def is_local(name: str) -> bool:
    """Return True if the name is that of a local set, which is not imported into the ledger."""
    return name in SHIPPED or name.startswith((HARNESS, METRIC))


SHORTEST = 5
"""Least length, in characters, of labels that are compared by edits.

In shorter labels one edit often gives another word: `card` and `cart` are two labels, `billing` and `biling` are one.
"""


def find_similar_labels(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of labels that are probably the same label, misspelt.

    They differ only by case or spaces, or by one edit: a character added, removed or replaced, or two swapped. A
    changed number is not an edit: `level 1` and `level 2` are two labels.
    """
    plain = [(label, "".join(label.casefold().split())) for label in sorted(set(labels))]
    return [(a, b) for (a, plain_a), (b, plain_b) in combinations(plain, 2) if _are_alike(plain_a, plain_b)]


def _are_alike(a: str, b: str) -> bool:
    if a == b:
        return True
    if min(len(a), len(b)) < SHORTEST or abs(len(a) - len(b)) > 1:
        return False
    return _one_edit(a, b)


def _one_edit(a: str, b: str) -> bool:
    start = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    if rest_a[:1].isdigit() or rest_b[:1].isdigit():
        return False
    if rest_a[2:] == rest_b[2:] and rest_a[:2] == rest_b[:2][::-1] and len(rest_a) > 1:
        return True
    return rest_b in (rest_a[1:],) or rest_a == rest_b[1:] or rest_a[1:] == rest_b[1:]
