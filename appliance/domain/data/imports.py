"""Imports of bases, datasets and validation sets: their orders, their ledger entries and the rules for both."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes, check_sandbox
from appliance.domain.core.entry import Failed, Ordered
from appliance.domain.core.facts import ActionFacts, Entity, PrincipalEntity
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Code, Commitment, Decimal, Digest, Identifier, Time, Token, versioned
from appliance.domain.core.order import Order, Subjects, derived, entered
from appliance.domain.core.records.data import Base, Import
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, refuse_without_role
from appliance.domain.core.state import State, next_version
from appliance.domain.data.kinds import HARNESS, METRIC, SHIPPED, DatasetKind, Format, find_unknown_parts, is_local
from appliance.domain.data.licences import refuse_unknown_classification, refuse_unknown_licence
from appliance.domain.data.validity import refuse_invalid_base
from appliance.errors import Denied, RefusalCode, Rejected
from appliance.formats.artifacts.manifest import parse_manifest

RESERVED, RELEASED_ENDING = "held-out", "-released"
"""Names reserved for other sets: that of the held-out rows, and the ending of the released version's items."""

MOST_WAITING = 8
"""Most imports of one person that wait or run."""

TOO_MANY_IMPORTS = RefusalCode(
    "too-many-imports",
    "rule",
    "{id} has {waiting} imports that wait or run. One person can have {limit} of them.",
    "Wait until one ends, or cancel one.",
)
BASE_NAME_TAKEN = RefusalCode(
    "base-name-taken", "order", "A base model with the name {id} was imported.", "Choose another name."
)
BASE_IMPORT_RUNNING = RefusalCode(
    "base-import-running",
    "state",
    "An import of base model {id} waits or runs.",
    "Wait until it ends, or choose another name.",
)
FILE_FOR_EVALUATION = RefusalCode(
    "file-for-evaluation",
    "rule",
    "This file was ordered as {id}, which is a validation set. Adapters are evaluated on its rows and never trained on "
    "them.",
    "Choose another file.",
)
SET_NAME_RESERVED = RefusalCode(
    "validation-set-name-reserved",
    "order",
    "The name {name} is reserved for other sets.",
    "Choose another name. Reserved are {reserved}, names that begin with {prefixes}, and names that end in {ending}.",
)
IMPORT_UNKNOWN = RefusalCode(
    "import-unknown", "state", "No import was ordered by the order {order}.", "Name an import that was ordered."
)
IMPORT_ENDED = RefusalCode(
    "import-ended", "state", "The import of {id} is {status}.", "An import that has ended needs no cancellation."
)

ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


LabelWord = Annotated[str, Field(min_length=1, max_length=200)]


class ImportBase(Order):
    """An order to import a base model."""

    action = "import-base"
    base: Identifier
    format: Literal["safetensors", "gguf"]
    source: Digest = Field(description="digest of the GGUF file, or of the manifest over the model folder")
    licence: Token

    def subjects(self) -> Subjects:
        """Return the base and the digest of its source."""
        return ((f"base:{self.base}", self.source),)


class ImportRows(Order):
    """The fields that all orders to import rows have in common."""

    dataset_kind: DatasetKind = entered(first="classification")
    format: Format = entered(first="csv")
    file: Digest = entered("200 MB at most; a larger one is imported on the command line", kind="file")
    columns: dict[str, ColumnName] = entered(
        "Which column holds the text? The label? One a line, such as text=body; empty: the columns have these names",
        kind="lines",
        part="How the file is read",
        description="the column of the file for each part of such a row",
    )
    labels: tuple[LabelWord, ...] = entered(
        "one a line; empty: those that occur in the file",
        kind="lines",
        part="How the file is read",
        max_length=1000,
        description="every label; empty: the labels that occur in the rows",
    )
    instruction: Commitment = entered(
        "the system message of every row; for a validation set that of the dataset; it can be empty",
        optional=True,
        part="How the file is read",
        description="the system message that rows are rendered with; may be the empty text",
    )
    base: Identifier = Field(description="the base whose chat template renders the rows")
    base_digest: Digest = derived()
    owner: Commitment
    licence: Token = entered("an SPDX identifier such as Apache-2.0, LicenseRef-NAME, or one that policy lists")
    classification: Token = entered("one that policy lists, such as internal")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if problems := find_unknown_parts(self.dataset_kind, self.columns):
            raise ValueError("; ".join(problems))
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Return the digests of the files that are uploaded for it."""
        return (self.file,)


def complete_rows(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the digest of the base. A given digest, which the caller has verified, is kept."""
    digest = given.word("base_digest") or lookup.find_artifact("base", given.word("base")).value.manifest
    return {"base_digest": ProvenValue(digest)}


class ImportDataset(ImportRows):
    """An order to import a dataset."""

    action = "import-dataset"
    dataset: Identifier = entered("its name; each import under a name makes its next version", kind="name")
    seed: int = entered(
        "seed of the choice of rows that are held out", first="1", part="Rows that are held out", ge=0, le=2**31 - 1
    )
    held_out: Decimal | Digest = entered(
        "a share of the rows, such as 0.2",
        label="held out",
        kind="share or file",
        first="0.2",
        part="Rows that are held out",
        description="a share of the rows, or the digest of a separate file in the same format",
    )

    @property
    def held_out_file(self) -> str | None:
        """Return the digest of the file of held-out rows; None where a share of the rows is held out."""
        return self.held_out if self.held_out.startswith("sha256:") else None

    @property
    def files(self) -> tuple[str, ...]:
        """Return the digests of the uploaded files: the rows, and the file of held-out rows where there is one."""
        return (self.file,) if self.held_out_file is None else (self.file, self.held_out_file)

    def subjects(self) -> Subjects:
        """Return the dataset and the base, each with its digest."""
        return ((f"dataset:{self.dataset}", self.file), (f"base:{self.base}", self.base_digest))


class ImportValidationSet(ImportRows):
    """An order to import a validation set. Its rows are used for evaluation only, never for training."""

    action = "import-validation-set"
    validation_set: Identifier = entered("its name; each import under a name makes its next version", kind="name")
    blind: bool = entered(
        label="rows hidden from everyone (blind)",
        description="nobody can read its rows; only digests, scores and counts are shown",
    )
    final: bool = entered(
        label="evaluates each adapter name once (final)",
        description="only the first run under each adapter name can pass on it",
    )

    def subjects(self) -> Subjects:
        """Return the validation set and the base, each with its digest."""
        return ((f"validation-set:{self.validation_set}", self.file), (f"base:{self.base}", self.base_digest))


class CancelImport(Order):
    """An order to end an import that waits or runs. `order` is the digest of the import's order."""

    action = "cancel-import"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class ImportRequested(Ordered):
    """A ledger entry that accepts the order of an import."""

    type = "import.requested"


class ImportFailed(Failed):
    """A ledger entry that records that an import failed, and its error code."""

    type = "import.failed"
    order: Digest
    code: Code

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class ImportCancelled(Ordered):
    """A ledger entry that cancels an import."""

    type = "import.cancelled"


def has_too_many_imports(state: State, signer: Principal) -> Reasons:
    """Return the reason against one more import of this person, if there is one."""
    waiting = sum(record.status == "requested" and record.signer == signer.name for record in state.imports.values())
    if waiting < MOST_WAITING:
        return []
    return [TOO_MANY_IMPORTS(f"principal:{signer.name}", waiting=waiting, limit=MOST_WAITING)]


def authorise_import_base(state: State, order: ImportBase, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may import the base."""
    reasons: Reasons = []
    if order.base in state.bases:
        reasons.append(BASE_NAME_TAKEN(f"base:{order.base}"))
    if any(i.status == "requested" and i.subject == f"base:{order.base}" for i in state.imports.values()):
        reasons.append(BASE_IMPORT_RUNNING(f"base:{order.base}"))
    return reasons + has_too_many_imports(state, signer) + refuse_unknown_licence(state.parameters, order.licence)


def _refuse_rows(state: State, order: ImportRows, signer: Principal) -> Reasons:
    """Return the reasons against the order that all imports of rows have in common."""
    return [
        *refuse_invalid_base(state, order.base, order.base_digest),
        *refuse_unknown_licence(state.parameters, order.licence),
        *refuse_unknown_classification(state.parameters, order.classification),
        *has_too_many_imports(state, signer),
    ]


def authorise_import_dataset(state: State, order: ImportDataset, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may import the dataset."""
    of_files = (reason for file in order.files for reason in refuse_file_for_evaluation(state, file))
    return [*_refuse_rows(state, order, signer), *of_files]


def is_blind_file(state: State, file: str) -> bool:
    """Return True if the file was ordered as a blind validation set."""
    return any(row.blind and row.held_out_of == file for row in state.imports.values())


def refuse_file_for_evaluation(state: State, file: str) -> Reasons:
    """Return the reason against training on a file, or checking it for training: it was ordered as a validation set."""
    for row in state.imports.values():
        if row.action == ImportValidationSet.action and row.held_out_of == file:
            return [FILE_FOR_EVALUATION(row.subject)]
    return []


def authorise_import_validation_set(state: State, order: ImportValidationSet, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may import the validation set."""
    reasons, name = _refuse_rows(state, order, signer), order.validation_set
    if is_local(name) or name == RESERVED or name.endswith(RELEASED_ENDING):
        reasons.append(
            SET_NAME_RESERVED(
                name=Rejected(name), reserved=(*SHIPPED, RESERVED), prefixes=(HARNESS, METRIC), ending=RELEASED_ENDING
            )
        )
    return reasons


def authorise_cancel_import(state: State, order: CancelImport, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may cancel the import."""
    record = state.imports.get(order.order)
    if record is None:
        return [IMPORT_UNKNOWN(order=Rejected(order.order))]
    reasons = [] if signer.name == record.signer else refuse_without_role(signer, "administrator")
    if record.status != "requested":
        reasons.append(IMPORT_ENDED(record.subject, status=record.status))
    return reasons


def apply_import_request(case: Case) -> Changes:
    """Add the requested import to the state."""
    order: ImportBase | ImportRows
    set_fields: dict[str, Any] = {}
    if isinstance(case.ordered, ImportBase):
        order = case.order(ImportBase)
        classification, base, digest, instruction, file = "", "", "", "", ""
    else:
        order = case.order(ImportRows)
        classification, file = order.classification, order.files[-1]
        base, digest, instruction = order.base, order.base_digest, order.instruction
        if isinstance(order, ImportValidationSet):
            set_fields = {"dataset_kind": order.dataset_kind, "blind": order.blind, "final": order.final}
    record = Import(
        order=case.accepted.digest,
        action=order.action,
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
        **set_fields,
    )
    return [(case.state.imports, record.order, record)]


def _end_import(case: Case, digest: str, status: str) -> tuple[Import, Changes]:
    """Return the record of the import with this order digest, and the change that gives it its last status.

    Raises: Denied unless it is requested and has not ended.
    """
    record = case.state.imports.get(digest)
    if record is None or record.status != "requested":
        got = "none" if record is None else record.status
        raise Denied(f"entry {case.entry.index}: import {digest}: expected one under way, got {got}")
    return record, [(case.state.imports, digest, record.model_copy(update={"status": status}))]


def apply_import_failure(case: Case) -> Changes:
    """Mark the import as failed."""
    return _end_import(case, case.of(ImportFailed).order, "failed")[1]


def apply_import_cancellation(case: Case) -> Changes:
    """Mark the import as cancelled."""
    return _end_import(case, case.order(CancelImport).order, "cancelled")[1]


def finish_import(case: Case, digest: str, kind: str, name: str) -> tuple[Import, Changes]:
    """Return the import's record, and the change that marks it as finished.

    Raises: Denied unless the import is requested and has this kind and name.
    """
    record, changes = _end_import(case, digest, "finished")
    case.require(record.subject == f"{kind}:{name}", "subject", record.subject, f"{kind}:{name}")
    return record, changes


def check_import(case: Case, sandbox_probes: dict[str, str], name: str, version: int) -> None:
    """Check that the sandbox was in force while a worker read the upload, and that the manifest has the entry's name.

    Raises: Denied where it was not, or the manifest has another name or version.
    """
    check_sandbox(case, sandbox_probes)
    manifest = parse_manifest(case.documents["manifest"])
    got = versioned(manifest.name, manifest.version)
    case.require(got == versioned(name, version), "manifest", versioned(name, version), got)


def check_rendered_for(case: Case, record: Import, name: str) -> Base:
    """Return the base that the rows were rendered for.

    Raises: Denied unless it is imported and the one that the order names.
    """
    base = case.state.bases.get(name)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got {name}")
    rendered_for = (base.name, base.digest)
    case.require(rendered_for == (record.base, record.base_digest), "base", record.base, name)
    return base


class BaseEntity(Entity):
    """A base model, such as `smollm2`."""

    table = "bases"
    name: str
    digest: str = Field(description="of the source, while it is imported; of the converted folder's manifest, after")
    licence: str
    imported_by: PrincipalEntity


class DatasetEntity(Entity):
    """A version of a dataset, such as `clauses@1`."""

    table = "datasets"
    name: str
    version: int
    digest: str = Field(description="of the file, while it is imported; of the rendered folder's manifest, after")
    licence: str
    classification: str
    imported_by: PrincipalEntity
    base: BaseEntity


class ValidationSetEntity(DatasetEntity):
    """A version of a validation set."""

    table = "validation_sets"
    blind: bool = Field(description="nobody can read its rows")
    final: bool = Field(description="each adapter name is evaluated on it only once")


class ImportEntity(Entity):
    """An import that is under way. Its id is the digest of its order."""

    table = "imports"
    action: str = Field(description='"import-base", "import-dataset" or "import-validation-set"')
    subject: str = Field(description='such as "base:smollm2"')
    signer: PrincipalEntity


def _describe_base(state: State, order: ImportBase, signer: Principal) -> BaseEntity:
    return BaseEntity.make(state, order, order.base, name=order.base, digest=order.source, imported_by=signer.name)


def _describe_dataset(state: State, order: ImportDataset, signer: Principal) -> DatasetEntity:
    name, version = order.dataset, next_version(state.datasets, order.dataset)
    new = {"name": name, "version": version, "digest": order.file, "imported_by": signer.name}
    return DatasetEntity.make(state, order, versioned(name, version), **new)


def _describe_set(state: State, order: ImportValidationSet, signer: Principal) -> ValidationSetEntity:
    name, version = order.validation_set, next_version(state.validation_sets, order.validation_set)
    new = {"name": name, "version": version, "digest": order.file, "imported_by": signer.name}
    return ValidationSetEntity.make(state, order, versioned(name, version), **new)


ACTIONS = (
    Action(
        ImportBase,
        title="Import a base",
        has_form=False,
        authorise=authorise_import_base,
        signers=("operator",),
        meaning="You vouch for the source and the licence of this base model.",
        event=ImportRequested,
        apply=apply_import_request,
        facts=ActionFacts(BaseEntity, _describe_base, ("format",)),
        example_values={"signer": "olga", "base": "other"},
    ),
    Action(
        ImportDataset,
        title="Import a dataset",
        complete=complete_rows,
        authorise=authorise_import_dataset,
        signers=("operator",),
        meaning="You vouch for the owner, the licence and the classification of this dataset.",
        event=ImportRequested,
        apply=apply_import_request,
        facts=ActionFacts(DatasetEntity, _describe_dataset, ("format",)),
        example_values={"signer": "olga", "dataset": "clauses", "held_out": "0.2"},
    ),
    Action(
        ImportValidationSet,
        title="Import a validation set",
        complete=complete_rows,
        authorise=authorise_import_validation_set,
        signers=("validator",),
        meaning="You vouch for the owner, the licence and the classification of these rows, and that they are for "
        "evaluation alone.",
        event=ImportRequested,
        apply=apply_import_request,
        facts=ActionFacts(ValidationSetEntity, _describe_set, ("format",)),
        example_values={"signer": "vera", "validation_set": "exam"},
    ),
    Action(
        CancelImport,
        title="Cancel an import",
        authorise=authorise_cancel_import,
        signers=("who ordered it", "administrator"),
        meaning="The import ends, and its record says that you ended it.",
        event=ImportCancelled,
        apply=apply_import_cancellation,
        facts=ActionFacts(ImportEntity, "order"),
        example_values={"signer": "olga"},
    ),
)
EVENTS = (EventRule(ImportFailed, apply_import_failure),)
