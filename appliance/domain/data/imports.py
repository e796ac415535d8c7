"""Imports: a base, a dataset or a validation set is ordered, and its worker may fail."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from appliance.domain.core.case import Case, Changes, check_walls
from appliance.domain.core.event import Failed, Ordered
from appliance.domain.core.names import Commitment, Decimal, Digest, Identifier, Time, Token, versioned
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.data import Base, Import
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.local_sets import HARNESS, METRIC, SHIPPED, is_local
from appliance.domain.data.standing import base_is
from appliance.domain.data.tasks import Format, Task
from appliance.domain.data.terms import classification_is_known, licence_is_known
from appliance.errors import Denied
from appliance.formats.artifacts.manifest import parse_manifest

RESERVED, RELEASED_ENDING = "held-out", "-released"
"""A set of every run, and what the name of the released version's items ends in: names that no validation set has."""

ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


LabelWord = Annotated[str, Field(min_length=1, max_length=200)]


class ImportBase(Order):
    verb = "import-base"
    base: Identifier
    format: Literal["safetensors", "gguf"]
    source: Digest = Field(description="digest of the GGUF file, or of the manifest over the model folder")
    licence: Token

    def subjects(self) -> Subjects:
        return ((f"base:{self.base}", self.source),)


class ImportRows(Order):
    """What is said of a file of rows, whatever they are for."""

    task: Task
    format: Format
    file: Digest
    columns: dict[str, ColumnName] = Field(description="the file's own name for each part of the task's rows")
    labels: tuple[LabelWord, ...] = Field(max_length=1000, description="all there are; none: those that occur")
    instruction: Commitment = Field(description="the system message rows are rendered with; may be the empty text")
    base: Identifier = Field(description="whose chat template renders the rows")
    base_digest: Digest
    owner: Commitment
    licence: Token
    classification: Token

    @property
    def files(self) -> tuple[str, ...]:
        """The digests of what is uploaded for it."""
        return (self.file,)


class ImportDataset(ImportRows):
    verb = "import-dataset"
    dataset: Identifier
    seed: int = Field(ge=0, le=2**31 - 1)
    held_out: Decimal | Digest = Field(description="a share of the rows, or a file of its own, in the same format")

    @property
    def held_out_file(self) -> str | None:
        """The digest of the file whose rows are held out, where they are one of their own."""
        return self.held_out if self.held_out.startswith("sha256:") else None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if self.held_out_file is None else (self.file, self.held_out_file)

    def subjects(self) -> Subjects:
        return ((f"dataset:{self.dataset}", self.file), (f"base:{self.base}", self.base_digest))


class ImportValidationSet(ImportRows):
    """All its rows judge, and none is trained on."""

    verb = "import-validation-set"
    validation_set: Identifier
    blind: bool = Field(description="nobody reads a row: only digests, scores and counts leave it")
    final: bool = Field(description="it judges each adapter name once")

    def subjects(self) -> Subjects:
        return ((f"validation-set:{self.validation_set}", self.file), (f"base:{self.base}", self.base_digest))


class CancelImport(Order):
    """Ends an import that waits or is under way; `order` is the import's identity."""

    verb = "cancel-import"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class ImportRequested(Ordered):
    type = "import.requested"


class ImportFailed(Failed):
    type = "import.failed"
    order: Digest
    code: str

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class ImportCancelled(Ordered):
    type = "import.cancelled"


def may_import_base(state: State, order: ImportBase, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "operator")
    if order.base in state.bases:
        reasons.append(f"base: expected a name never used here, got {order.base}")
    if any(i.status == "requested" and i.subject == f"base:{order.base}" for i in state.imports.values()):
        reasons.append(f"base: expected no import of {order.base} under way, got one")
    return reasons + licence_is_known(state.parameters, order.licence)


def may_import_dataset(state: State, order: ImportDataset, signer: Principal, now: Time) -> Reasons:
    return [
        *needs(signer, "operator"),
        *base_is(state, order.base, order.base_digest),
        *licence_is_known(state.parameters, order.licence),
        *classification_is_known(state.parameters, order.classification),
        *(reason for file in order.files for reason in judges_only(state, file)),
    ]


def judges_only(state: State, file: str) -> Reasons:
    """Against bringing in a file as rows to train on, or looking into it: it was ordered as a validation set."""
    for row in state.imports.values():
        if row.verb == ImportValidationSet.verb and row.held_out_of == file:
            return [f"file {file}: expected one that is no validation set's, got that of {row.subject}"]
    return []


def may_import_validation_set(state: State, order: ImportValidationSet, signer: Principal, now: Time) -> Reasons:
    reasons = [
        *needs(signer, "validator"),
        *base_is(state, order.base, order.base_digest),
        *licence_is_known(state.parameters, order.licence),
        *classification_is_known(state.parameters, order.classification),
    ]
    name = order.validation_set
    if is_local(name):
        words = f"another than {', '.join(SHIPPED)}, and none that begins with {HARNESS} or {METRIC}"
        reasons.append(f"validation set: expected a name that is {words}, got {name}")
    if name == RESERVED or name.endswith(RELEASED_ENDING):
        named = f"another than {RESERVED}, and none that ends in {RELEASED_ENDING}"
        reasons.append(f"validation set: expected a name that is {named}, got {name}")
    return reasons


def may_cancel_import(state: State, order: CancelImport, signer: Principal, now: Time) -> Reasons:
    record = state.imports.get(order.order)
    if record is None:
        return [f"import: expected one that was ordered, got {order.order}"]
    reasons = [] if signer.name == record.signer else needs(signer, "administrator")
    if record.status != "requested":
        reasons.append(f"import of {record.subject}: expected one under way, got one that is {record.status}")
    return reasons


def import_requested(case: Case) -> Changes:
    order: ImportBase | ImportRows
    marks: dict[str, Any] = {}
    if isinstance(case.ordered, ImportBase):
        order = case.order(ImportBase)
        classification, base, digest, instruction, file = "", "", "", "", ""
    else:
        order = case.order(ImportRows)
        classification, file = order.classification, order.files[-1]
        base, digest, instruction = order.base, order.base_digest, order.instruction
        if isinstance(order, ImportValidationSet):
            marks = {"task": order.task, "blind": order.blind, "final": order.final}
    record = Import(
        order=case.accepted.digest,
        verb=order.verb,
        subject=order.subjects()[0][0],
        signer=order.signer,
        licence=order.licence,
        classification=classification,
        base=base,
        base_digest=digest,
        instruction=instruction,
        held_out_of=file,
        index=case.entry.index,
        status="requested",
        **marks,
    )
    return [(case.state.imports, record.order, record)]


def requested_import(case: Case, digest: str) -> Import:
    record = case.state.imports.get(digest)
    if record is None or record.status != "requested":
        got = "none" if record is None else record.status
        raise Denied(f"entry {case.entry.index}: import {digest}: expected one under way, got {got}")
    return record


def import_failed(case: Case) -> Changes:
    record = requested_import(case, case.of(ImportFailed).order)
    return [(case.state.imports, record.order, record.model_copy(update={"status": "failed"}))]


def import_cancelled(case: Case) -> Changes:
    record = requested_import(case, case.order(CancelImport).order)
    return [(case.state.imports, record.order, record.model_copy(update={"status": "cancelled"}))]


def finish_import(case: Case, digest: str, kind: str, name: str) -> tuple[Import, Changes]:
    record = requested_import(case, digest)
    case.require(record.subject == f"{kind}:{name}", "subject", record.subject, f"{kind}:{name}")
    return record, [(case.state.imports, digest, record.model_copy(update={"status": "finished"}))]


def check_import(case: Case, walls: dict[str, str], name: str, version: int) -> None:
    """The walls held while a worker read what was uploaded, and the manifest is of what the entry names."""
    check_walls(case, walls)
    manifest = parse_manifest(case.documents["manifest"])
    got = versioned(manifest.name, manifest.version)
    case.require(got == versioned(name, version), "manifest", versioned(name, version), got)


def check_rendered_for(case: Case, record: Import, name: str) -> Base:
    """The base that rows were rendered for: an imported one, and the order's."""
    base = case.state.bases.get(name)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got {name}")
    rendered_for = (base.name, base.digest)
    case.require(rendered_for == (record.base, record.base_digest), "base", record.base, name)
    return base


VERBS = (
    Verb(
        ImportBase,
        may=may_import_base,
        signers=("operator",),
        meaning="You vouch for the source and the licence of this base model.",
        event=ImportRequested,
        apply=import_requested,
    ),
    Verb(
        ImportDataset,
        may=may_import_dataset,
        signers=("operator",),
        meaning="You vouch for the owner, the licence and the classification of this dataset.",
        event=ImportRequested,
        apply=import_requested,
    ),
    Verb(
        ImportValidationSet,
        may=may_import_validation_set,
        signers=("validator",),
        meaning="You vouch for the owner, the licence and the classification of these rows, and that they are for "
        "judging alone.",
        event=ImportRequested,
        apply=import_requested,
    ),
    Verb(
        CancelImport,
        may=may_cancel_import,
        signers=("who ordered it", "administrator"),
        meaning="The import ends, and its record says that you ended it.",
        event=ImportCancelled,
        apply=import_cancelled,
    ),
)
EVENTS = (EventRule(ImportFailed, import_failed),)
