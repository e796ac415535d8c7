"""Imports, checks of rows before them, and rows of a dataset."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, WithJsonSchema

from appliance.api.runs import WorkError, WorkStatus
from appliance.api.wire import parser
from appliance.domain.core.names import Digest, Identifier, Value
from appliance.domain.core.records import data
from appliance.domain.data.kinds import DatasetKind, Format
from appliance.formats.artifacts.rows import RowProof as _RowProof
from appliance.formats.artifacts.rows import parse_row_proof_value, row_proof_value


class ImportStatus(data.Import):
    """An import. Only the person who ordered it sees rows in its result. `progress` has the last frame."""

    result: dict[str, Any] | None
    error: WorkError | None
    progress: tuple[dict[str, Any], ...]

    @property
    def ended(self) -> bool:
        """Return True if the import is over."""
        return self.status != "requested"


class RowsToCheck(Value):
    """The uploaded files to check, and the terms of their import."""

    dataset_kind: DatasetKind
    format: Format
    file: Digest
    columns: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = Field(default=(), max_length=1000)
    instruction: str = Field(default="", max_length=200_000)
    base: Identifier | None = None
    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    held_out: str = "0.2"
    held_out_file: Digest | None = None
    is_validation_set: bool = False
    """True for a validation set, whose rows are never trained on."""
    blind: bool = False
    """True for a blind validation set, whose result contains only numbers."""
    keep: bool = False
    """True if an import follows: the uploads are kept if the check finds no error."""

    @property
    def uploads(self) -> list[str]:
        """Return the digests of the files to check."""
        return [self.file] if self.held_out_file is None else [self.file, self.held_out_file]


class SplitRows(Value):
    """Numbers of rows in the two splits of a dataset."""

    train: int
    held_out: int = Field(alias="held-out")


class OverlapCounts(Value):
    """Rows of a validation set, and those of them that are among the rows to train on, or nearly."""

    rows: int
    duplicates: int
    near_duplicates: int


class RowFindings(Value):
    """The findings about a file of rows (ml/data/findings.py).

    `similar_labels` are two labels, the rarer one and its places. `duplicates` are the place of a row and that of an
    earlier one with the same text. Lengths are None without a base.
    """

    rows: int
    train_rows: int
    held_out_rows: int
    labels: dict[str, SplitRows]
    label_count: int
    similar_labels: tuple[tuple[str, str, str, str], ...]
    duplicates: tuple[tuple[str, str], ...]
    duplicate_count: int
    overlaps: dict[str, OverlapCounts]
    max_tokens: int | None
    mean_tokens: int | None
    context_length: int | None
    errors: tuple[str, ...]
    error_count: int
    notes: tuple[str, ...]


_MOST_LISTED = 20
"""Largest number of repeated texts that a warning lists."""


def list_row_warnings(found: RowFindings) -> list[str]:
    """Return a sentence for each unusual thing in valid rows, such as nearly equal labels and repeated texts."""
    warnings = [
        *found.notes,
        *(
            f"labels {one!r} and {other!r} are nearly the same"
            + (f"; {rarer!r} is the rarer: {places}" if places else "")
            for one, other, rarer, places in found.similar_labels
        ),
    ]
    pairs, count = found.duplicates, found.duplicate_count
    if count:
        shown = "; ".join(f"{place} is that of {first}" for place, first in pairs[:_MOST_LISTED])
        more = f"; and {count - _MOST_LISTED} more" if pairs and count > _MOST_LISTED else ""
        have = "1 row has" if count == 1 else f"{count} rows have"
        listed = f": {shown}{more}" if pairs else ""
        warnings.append(f"{have} a text that came before, case and spaces aside{listed}")
    for name, one in found.overlaps.items():
        if one.duplicates or one.near_duplicates:
            text = f"{one.duplicates} of {one.rows} rows are among those to train on"
            warnings.append(f"validation set {name}: {text}, and {one.near_duplicates} nearly")
    for label, sides in found.labels.items():
        if sides.train and not sides.held_out:
            warnings.append(f"label {label!r} has no held-out row, so the evaluation does not cover it")
    return warnings


def describe_label(sides: SplitRows) -> str:
    """Return the numbers of rows with a label: all, to train on, and held out."""
    return f"{sides.train + sides.held_out}, {sides.train} to train on, {sides.held_out} held out"


def list_row_facts(found: RowFindings) -> list[tuple[str, object]]:
    """Return the counts of rows, labels and lengths as (label, value). All rows of a validation set evaluate."""
    split = f"{found.rows}, {found.train_rows} to train on, {found.held_out_rows} held out"
    facts: list[tuple[str, object]] = [("rows", split if found.train_rows else found.rows)]
    facts += [("labels", found.label_count)] if found.label_count else []
    for label, sides in found.labels.items():
        facts.append((f"label {label}", describe_label(sides) if found.train_rows else sides.held_out))
    if found.max_tokens is not None:
        lengths = f"{found.max_tokens} tokens at most, {found.mean_tokens} in the mean"
        facts.append(("length", f"{lengths}, of the base's context of {found.context_length}"))
    return facts


class CheckStatus(WorkStatus[RowFindings]):
    """The state of a check of rows."""


class RowRequest(Value):
    """A question about a dataset's row.

    It is sent by POST, so that the row's text is not part of an address or a log of addresses.
    """

    text: str = Field(max_length=1_000_000)


RowProof = Annotated[
    _RowProof,
    parser(_RowProof, parse_row_proof_value),
    PlainSerializer(row_proof_value, return_type=dict),
    WithJsonSchema({"type": "object", "description": "The proof of a row (docs/formats/rows.md)."}),
]
"""A proof that a row is in a dataset."""


class RowsFound(Value):
    """The rows of a version of a dataset with one text: their number, and proofs of the first of them."""

    dataset: str
    imported: int
    found: int
    proofs: tuple[RowProof, ...]
