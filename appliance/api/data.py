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
