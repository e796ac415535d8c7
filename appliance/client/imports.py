"""Importing a base or a dataset: the order, and the wait for what the service's worker found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, read_entry
from appliance.client.support.orders import check, propose, reasons_against
from appliance.client.support.uploads import Source, read_source
from appliance.domain.core.names import NO_DIGEST
from appliance.domain.data.imports import CancelImport, ImportBase, ImportDataset, ImportValidationSet
from appliance.domain.data.tasks import FORMATS, GROUPS, PARTS, Task, map_columns, wrong_parts, wrong_share
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Tampered, refuse

ENDINGS = {f".{name}": name for name in FORMATS}
_WAIT_S = 2
_SHARE = re.compile(r"0\.[0-9]{1,12}")
"""As `ml.data.rows` reads it."""


@dataclass(frozen=True)
class DatasetTerms:
    """What the operator says of a dataset; the rest is found by the worker."""

    name: str
    base: str
    task: Task
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    instruction: str
    owner: str
    licence: str
    classification: str
    seed: int
    held_out: str

    def problems(self) -> list[str]:
        """What does not fit the task, or cannot be."""
        return [*_wrong_rows(self), *wrong_share(self.held_out)]


@dataclass(frozen=True)
class SetTerms:
    """What the validator says of a validation set; the rest is found by the worker."""

    name: str
    base: str
    task: Task
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    instruction: str
    owner: str
    licence: str
    classification: str
    blind: bool
    final: bool

    def problems(self) -> list[str]:
        """What does not fit the task, or cannot be."""
        return _wrong_rows(self)


def _wrong_rows(terms: DatasetTerms | SetTerms) -> list[str]:
    found = wrong_parts(terms.task, terms.columns)
    if terms.labels and terms.task != "classification":
        found.append(f"dataset, labels: expected none for {terms.task}, got {', '.join(terms.labels)}")
    if terms.instruction and terms.task == "completion":
        found.append("dataset, instruction: expected none for completion, which has no template, got one")
    twice = sorted({label for label in terms.labels if terms.labels.count(label) > 1})
    return found + [f"dataset, label {label!r}: expected it once, got it twice" for label in twice]


def check_base(door: Door, signer: str, name: str, licence: str) -> None:
    """Everything against an import of this name that can be said before a byte is hashed or sent."""
    values = {"base": name, "format": "gguf", "source": NO_DIGEST, "licence": licence}
    check(door, propose(door.about, signer, ImportBase, values))


def check_dataset(door: Door, anchor: Anchor, signer: str, terms: DatasetTerms) -> str:
    """... and of a dataset, all problems at once; the base's digest, as the log binds it."""
    return _check_rows(
        door,
        anchor,
        f"dataset {terms.name}",
        f"import of dataset:{terms.name} by {signer}",
        terms,
        lambda base: _propose_dataset(door.about, signer, terms, _NOTHING, base, "0.2"),
    )


def check_set(door: Door, anchor: Anchor, signer: str, terms: SetTerms) -> str:
    """... and of a validation set."""
    return _check_rows(
        door,
        anchor,
        f"validation set {terms.name}",
        f"import of validation-set:{terms.name} by {signer}",
        terms,
        lambda base: _propose_set(door.about, signer, terms, _NOTHING, base),
    )


_NOTHING = Source("csv", NO_DIGEST, (), None)


def _check_rows(
    door: Door,
    anchor: Anchor,
    what: str,
    act: str,
    terms: DatasetTerms | SetTerms,
    propose_it: Callable[[str], Proposal],
) -> str:
    problems, base_digest = terms.problems(), NO_DIGEST
    reasons: tuple[str, ...] = ()
    with suppress(NotFound):  # the invariants say so, beside the rest
        base_digest = proven_digest(door, anchor, "base", terms.base)
    try:
        reasons = reasons_against(door, propose_it(base_digest))
    except BadInput as error:
        problems += error.reasons or (error.message,)
    if reasons and not problems:
        raise Denied(act, reasons=reasons)
    refuse(what, [*problems, *reasons])
    return base_digest


def propose_base(about: About, signer: str, name: str, licence: str, source: Source) -> Proposal:
    values = {"base": name, "format": source.format, "source": source.digest, "licence": licence}
    return propose(about, signer, ImportBase, values)


def read_rows(path: Path, format: str | None) -> Source:
    """A file of rows, its format told by its ending unless it is named."""
    kind = format or ENDINGS.get(path.suffix.lower())
    if kind is None:
        endings = ", ".join(ENDINGS)
        raise BadInput(f"dataset, {path}: expected a name that ends in one of {endings}, or --format, got neither")
    return read_source(path, kind)


def propose_dataset(
    about: About, signer: str, terms: DatasetTerms, source: Source, base_digest: str, held_out: Source | None = None
) -> Proposal:
    """`held_out`: the file whose rows are held out, where they are not a share of the source's."""
    refuse(f"dataset {terms.name}", terms.problems())
    return _propose_dataset(
        about, signer, terms, source, base_digest, terms.held_out if held_out is None else held_out.digest
    )


def propose_set(about: About, signer: str, terms: SetTerms, source: Source, base_digest: str) -> Proposal:
    refuse(f"validation set {terms.name}", terms.problems())
    return _propose_set(about, signer, terms, source, base_digest)


def _propose_set(about: About, signer: str, terms: SetTerms, source: Source, base_digest: str) -> Proposal:
    values: dict[str, Any] = {"validation_set": terms.name, "blind": terms.blind, "final": terms.final}
    values |= _say_rows(terms, source, base_digest)
    texts = {"instruction": terms.instruction, "owner": terms.owner}
    return propose(about, signer, ImportValidationSet, values, texts=texts)


def _propose_dataset(
    about: About, signer: str, terms: DatasetTerms, source: Source, base_digest: str, held_out: str
) -> Proposal:
    values: dict[str, Any] = {"dataset": terms.name, "seed": terms.seed, "held_out": held_out}
    values |= _say_rows(terms, source, base_digest)
    return propose(about, signer, ImportDataset, values, texts={"instruction": terms.instruction, "owner": terms.owner})


def _say_rows(terms: DatasetTerms | SetTerms, source: Source, base_digest: str) -> dict[str, Any]:
    # What the task does not have is among the problems that are named together.
    known = {part: name for part, name in terms.columns.items() if part in (*PARTS[terms.task], *GROUPS)}
    return {
        "task": terms.task,
        "format": source.format,
        "file": source.digest,
        "columns": map_columns(terms.task, known),
        "labels": terms.labels,
        "base": terms.base,
        "base_digest": base_digest,
        "licence": terms.licence,
        "classification": terms.classification,
    }


def proven_digest(door: Door, anchor: Anchor, kind: str, name: str) -> str:
    """The digest of an imported base, dataset or validation set, as the log's own entry binds it, not as a row says
    it."""
    row = door.get(f"/v1/{kind}s/{name}")
    entry = read_entry(door, anchor, int(row["index"])).entry
    if (entry.type, entry.body.get(kind.replace("-", "_"))) != (f"{kind}.imported", name):
        raise Tampered(f"{kind} {name}: expected its import as entry {entry.index}, got {entry.type}")
    digest = entry.documents["manifest"]
    if digest != row["digest"]:
        raise Tampered(f"{kind} {name}: expected {digest}, which the log binds, got {row['digest']}")
    return digest


def propose_cancel_import(door: Door, anchor: Anchor, signer: str, what: str) -> Proposal:
    """`what`: the order that asked for the import, or what it imports (`base:NAME`), as the log's own entry says."""
    rows = [row for row in door.get("/v1/imports") if row["status"] == "requested"]
    found = [row for row in rows if what in (row["order"], row["subject"])]
    if len(found) != 1:
        under_way = ", ".join(f"{row['subject']} ({row['order']})" for row in rows) or "none"
        got = "several of that name: name its order" if found else "no such import under way"
        raise NotFound(f"import, {what}: expected one of {under_way}, got {got}")
    order, entry = found[0]["order"], read_entry(door, anchor, int(found[0]["index"])).entry
    expected = {f"order:{order}", found[0]["subject"]}
    if entry.type != "import.requested" or not expected <= set(entry.subjects):
        raise Tampered(f"import, {what}: expected its order as entry {entry.index}, got {entry.type}")
    return propose(door.about, signer, CancelImport, {"order": order})


def wait_for_import(door: Door, order: str, told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The result of an import that was ordered; its failure as the error it was. `told` gets each state on the way."""
    while True:
        state = door.get(f"/v1/imports/{order}", wait_s=_WAIT_S)
        if state["status"] == "finished":
            return dict(state["result"] or {})
        if state["status"] in ("failed", "cancelled"):
            raise _failure(state)
        told(state)


def _failure(state: dict[str, Any]) -> ApplianceError:
    """The code says who must act; a code of the worker's own means the bytes were not right."""
    error = state.get("error") or {"code": "bad-input", "message": "the reason was not kept"}
    if state["status"] == "cancelled":
        error = {"code": "cancelled", "message": "it was cancelled"}
    branch = Conflict if error["code"] in ("cancelled", "conflict", "interrupted") else BadInput
    return branch(f"import of {state['subject']}: {error['message']}", code=str(error["code"]))
