"""Imports of bases, datasets and validation sets: the order, checks of rows, and the wait for the worker's result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from appliance.api.data import CheckStatus, ImportStatus, RowFindings, RowsToCheck
from appliance.api.runs import WorkError, WorkStarted
from appliance.client.support.connection import Connection
from appliance.client.support.files import ImportSource, read_source
from appliance.client.support.log import Anchor, read_entry
from appliance.client.support.orders import list_refusals
from appliance.domain.actions.proposals import Proposal
from appliance.domain.core.lookup import Lookup, OrderInput
from appliance.domain.core.names import NO_DIGEST, explain
from appliance.domain.core.records.data import Import
from appliance.domain.data.kinds import (
    FORMATS,
    GROUPS,
    PARTS,
    DatasetKind,
    find_share_problem,
    find_unknown_parts,
    map_columns,
)
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    Denied,
    NotFound,
    RateLimited,
    Refusal,
    Tampered,
    Unavailable,
    refuse,
)

ENDINGS = {f".{name}": name for name in FORMATS}
"""Formats of rows by the ending of a file's name."""
_WAIT_S = 2


@dataclass(frozen=True, kw_only=True)
class RowTerms:
    """The terms of a file's rows, for a check.

    Without a base, rows are not rendered and lengths are not counted.
    """

    dataset_kind: DatasetKind
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    instruction: str
    base: str | None
    seed: int = 1
    held_out: str = "0.2"
    blind: bool = False
    """True for a blind validation set, whose findings contain only numbers."""
    is_validation_set: ClassVar[bool] = False
    """True for a validation set, in which all rows are held out."""


@dataclass(frozen=True, kw_only=True)
class ImportTerms(RowTerms, ABC):
    """A person's statements about rows to import; the worker determines the rest."""

    name: str
    base: str
    owner: str
    licence: str
    classification: str
    kind: ClassVar[str]

    @property
    def subject(self) -> str:
        """Return the subject of the import."""
        return f"{self.kind}:{self.name}"

    @property
    def action(self) -> str:
        """Return the action that imports the rows."""
        return f"import-{self.kind}"

    def list_problems(self) -> list[str]:
        """Return the values that do not fit the dataset kind or are malformed."""
        problems = find_unknown_parts(self.dataset_kind, self.columns)
        if self.labels and self.dataset_kind != "classification":
            problems.append(f"dataset, labels: expected none for {self.dataset_kind}, got {', '.join(self.labels)}")
        if self.instruction and self.dataset_kind == "completion":
            problems.append("dataset, instruction: expected none for completion, which has no template, got one")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        problems += [f"dataset, label {label!r}: expected it once, got it twice" for label in twice]
        return problems + find_share_problem(self.held_out)

    @abstractmethod
    def own_values(self, held_out: ImportSource | None) -> dict[str, Any]:
        """Return the values of the order that only imports of this kind have."""


class DatasetTerms(ImportTerms):
    """The operator's statements about a dataset."""

    kind = "dataset"

    def own_values(self, held_out: ImportSource | None) -> dict[str, Any]:
        """Return the values of the order that only datasets have."""
        rows = self.held_out if held_out is None else held_out.digest
        return {"dataset": self.name, "seed": self.seed, "held_out": rows}


@dataclass(frozen=True, kw_only=True)
class SetTerms(ImportTerms):
    """The validator's statements about a validation set."""

    final: bool
    kind = "validation-set"
    is_validation_set = True

    def own_values(self, held_out: ImportSource | None) -> dict[str, Any]:
        """Return the values of the order that only validation sets have."""
        return {"validation_set": self.name, "blind": self.blind, "final": self.final}


Propose = Callable[[str, OrderInput], Proposal]
"""A function that returns the caller's unsigned order of an action."""


def check_terms(connection: Connection, lookup: Lookup, propose: Propose, terms: ImportTerms) -> None:
    """Check the import of rows before any byte is hashed or sent.

    Raises: BadInput or Denied with all problems at once.
    """
    problems = terms.list_problems()
    refusals: tuple[Refusal, ...] = ()
    given = describe_rows(terms, _NOTHING)
    try:
        lookup.find_artifact("base", terms.base)
    except NotFound:  # the rules report it with the rest
        given.values["base_digest"] = NO_DIGEST
    try:
        refusals = list_refusals(connection, propose(terms.action, given))
    except BadInput as error:
        problems += error.reasons or (error.message,)
    if refusals and not problems:
        raise Denied(f"import of {terms.subject}", refusals=refusals)
    refuse(terms.subject.replace("-", " ", 1).replace(":", " ", 1), [*problems, *map(str, refusals)])


def describe_rows(terms: ImportTerms, source: ImportSource, held_out: ImportSource | None = None) -> OrderInput:
    """Return the values of an order to import rows.

    `held_out` is the file with the held-out rows, if they are not a share of the source's rows.
    """
    # Parts that the dataset kind does not have are reported among the problems.
    known = {part: name for part, name in terms.columns.items() if part in (*PARTS[terms.dataset_kind], *GROUPS)}
    shared = ("dataset_kind", "labels", "base", "licence", "classification")
    values = {name: getattr(terms, name) for name in shared} | terms.own_values(held_out)
    values |= {"format": source.format, "file": source.digest, "columns": map_columns(terms.dataset_kind, known)}
    return OrderInput(values, {"instruction": terms.instruction, "owner": terms.owner})


_NOTHING = ImportSource("csv", NO_DIGEST, (), None)


def read_rows(path: Path, format: str | None) -> ImportSource:
    """Read a file of rows. The ending of its name is the format, unless the caller names it."""
    kind = format or ENDINGS.get(path.suffix.lower())
    if kind is None:
        endings = ", ".join(ENDINGS)
        raise BadInput(
            f"dataset, {path}: expected a name that ends in one of {endings}, or --format; {_explain_format(path)}"
        )
    return read_source(path, kind)


_WORKBOOK = "it seems to be an Excel workbook: export its rows as CSV in UTF-8"


def _explain_format(path: Path) -> str:
    """Describe how to import a file whose name does not say its format, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return _WORKBOOK
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    if start.startswith(b"PAR1"):
        kind = "parquet"
    elif first.startswith(b"["):
        return "it seems to be a JSON array: write one object a line, and add --format jsonl"
    elif first.startswith(b"{"):
        kind = "jsonl"
    else:
        kind = "tsv" if b"\t" in first else "csv"
    return f"its first line is most like {kind}: add --format {kind}"


def find_import(connection: Connection, anchor: Anchor, what: str) -> str:
    """Return the digest of the order of an import that waits or runs.

    `what` is the import's order or what it imports (`base:NAME`); the log's own entry must confirm it.
    """
    rows = [row for row in connection.get("/v1/imports", list[Import]) if row.status == "requested"]
    found = [row for row in rows if what in (row.order, row.subject)]
    if not rows:
        raise NotFound(f"import, {what}: expected one that waits or runs, and none does; type: appliance import list")
    if len(found) != 1:
        under_way = ", ".join(f"{row.subject} ({row.order})" for row in rows)
        got = "several of that name: name its order" if found else "no such import under way"
        raise NotFound(f"import, {what}: expected one of {under_way}, got {got}")
    order, entry = found[0].order, read_entry(connection, anchor, found[0].index).entry
    expected = {f"order:{order}", found[0].subject}
    if entry.type != "import.requested" or not expected <= set(entry.subjects):
        raise Tampered(f"import, {what}: expected its order as entry {entry.index}, got {entry.type}")
    return order


def wait_for_import(connection: Connection, order: str, on_progress: Callable[[ImportStatus], None]) -> dict[str, Any]:
    """Return the result of an ordered import. `on_progress` gets each state before.

    Raises: the import's error, if it failed or was cancelled.
    """
    while True:
        state = connection.get(f"/v1/imports/{order}", ImportStatus, wait_s=_WAIT_S)
        if state.status == "finished":
            return state.result or {}
        if state.status in ("failed", "cancelled"):
            raise _failure(state)
        on_progress(state)


def _failure(state: ImportStatus) -> ApplianceError:
    """Return the error of an import.

    The code says who must act; a worker's own code means that the bytes were invalid.
    """
    error = state.error or WorkError(code="bad-input", message="the reason was not kept")
    if state.status == "cancelled":
        error = WorkError(code="cancelled", message="it was cancelled")
    branch = Conflict if error.code in ("cancelled", "conflict", "interrupted") else BadInput
    return branch(f"import of {state.subject}: {error.message}", code=error.code)


WAIT_S = 20
"""Seconds for which one request for a result waits at the service."""
TURN_S, AGAIN_S = 600, 2
"""Seconds for which a check waits while another of the same person runs, and seconds between its attempts."""


_CHECKED = (
    "dataset_kind",
    "columns",
    "labels",
    "instruction",
    "base",
    "seed",
    "held_out",
    "is_validation_set",
    "blind",
)
"""Terms that a check uses."""


def check_rows(connection: Connection, terms: RowTerms, sources: Sequence[ImportSource], *, keep: bool) -> RowFindings:
    """Return the findings on uploaded rows. If `keep`, the uploads stay for an import unless rows are invalid."""
    values = {name: getattr(terms, name) for name in _CHECKED} | {
        "format": sources[0].format,
        "file": sources[0].digest,
        "held_out_file": sources[1].digest if len(sources) > 1 else None,
        "keep": keep,
    }
    try:
        body = RowsToCheck.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"dataset check: {explain(error)}") from None
    key = _start_check(connection, body)
    while not (state := connection.get(f"/v1/dataset-checks/{key}", CheckStatus, wait_s=WAIT_S)).ended:
        continue
    if state.error is not None or state.result is None:
        failed = state.error or WorkError(code="unavailable", message="expected findings, got none")
        branch = Unavailable if failed.code in ("unavailable", "worker-ended", "sandbox-escape") else BadInput
        raise branch(f"dataset check: {failed.message}", code=failed.code)
    return state.result


def _start_check(connection: Connection, body: RowsToCheck) -> str:
    """Start a check and return its key. A person has one check at a time, so that another waits, as an import does."""
    until = time.monotonic() + TURN_S
    while True:
        try:
            return connection.post("/v1/dataset-checks", WorkStarted, body).key
        except RateLimited:
            if time.monotonic() > until:
                raise
            time.sleep(AGAIN_S)


def refuse_errors(found: RowFindings, what: str, then: str = "") -> None:
    """Raise BadInput with the listed invalid rows, if there are any. `then` is the consequence, for the message."""
    errors, count = found.errors, found.error_count
    if count:
        more = (f"and {count - len(errors)} more",) if count > len(errors) else ()
        problems = "1 problem" if count == 1 else f"{count} problems"
        raise BadInput(f"dataset, {what}: {problems}{then}", reasons=(*errors, *more))
