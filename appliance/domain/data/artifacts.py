"""Bases, datasets and validation sets: the orders that revoke one, and the entries for import, quarantine and
revocation.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Failed, Ordered
from appliance.domain.core.example import example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completed, Kind, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Digest, Identifier, Time, VersionedName, split_version, versioned
from appliance.domain.core.order import Order, Subjects, derived
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State, Table, next_version
from appliance.domain.data.imports import (
    BaseEntity,
    DatasetEntity,
    ValidationSetEntity,
    check_import,
    check_rendered_for,
    finish_import,
)
from appliance.domain.data.validity import (
    BASE_REVOKED,
    BASE_UNKNOWN,
    DATASET_REVOKED,
    DATASET_UNKNOWN,
    DIGEST_DIFFERS,
    SET_REVOKED,
    SET_UNKNOWN,
)
from appliance.errors import Denied, Rejected
from appliance.formats.core.digest import digest_bytes


class RevokeArtifact(Order):
    """The fields that the orders to revoke a base, a dataset or a validation set have in common."""

    action = "revoke"
    kind: ClassVar[Kind]
    digest: Digest = derived()

    @property
    def name(self) -> str:
        """Return the base's name, or the versioned name of the dataset or validation set."""
        raise NotImplementedError

    def subjects(self) -> Subjects:
        return ((f"{self.kind}:{self.name}", self.digest),)


class RevokeBase(RevokeArtifact):
    """An order to revoke a base model. It also revokes every adapter on it, for every unit."""

    action, kind = "revoke-base", "base"
    base: Identifier

    @property
    def name(self) -> str:
        return self.base


class RevokeDataset(RevokeArtifact):
    """An order to revoke a dataset. It also revokes every adapter that was trained on it, for every unit."""

    action, kind = "revoke-dataset", "dataset"
    dataset: Identifier
    version: int = derived(ge=1)

    @property
    def name(self) -> str:
        return versioned(self.dataset, self.version)


class RevokeValidationSet(RevokeArtifact):
    """An order to revoke a validation set. Approvals of adapters that were evaluated on it become stale."""

    action, kind = "revoke-validation-set", "validation-set"
    validation_set: Identifier
    version: int = derived(ge=1)

    @property
    def name(self) -> str:
        return versioned(self.validation_set, self.version)


def complete_revocation(kind: Kind, field: str, given: OrderInput, lookup: Lookup) -> Completed:
    """Return the digest of what is revoked, and the name and version of a dataset or validation set NAME@VERSION."""
    name = given.word(field)
    digest = ProvenValue(lookup.find_artifact(kind, name).value.manifest)
    if kind == "base":
        return {"digest": digest}
    name, version = split_version(name)
    return {field: ProvenValue(name), "version": ProvenValue(version), "digest": digest}


class Imported(Event):
    """The fields that the entries of finished imports have in common.

    The `manifest` document lists the files of the converted or rendered folder; its digest is the identity of what was
    imported.
    """

    documents = ("manifest",)
    order: Digest
    base: Identifier
    facts: dict[str, Any]
    sandbox_probes: dict[str, str]


class BaseImported(Imported):
    """A ledger entry that records an imported base."""

    type = "base.imported"

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"base:{self.base}")


class DatasetImported(Imported):
    """A ledger entry that records an imported dataset.

    `root` is the RFC 6962 root over the row digests, each under its own key.
    """

    type = "dataset.imported"
    dataset: VersionedName
    root: Digest

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"dataset:{self.dataset}")


class ValidationSetImported(Imported):
    """A ledger entry that records an imported validation set.

    `root` is the RFC 6962 root over the row digests, each under its own key.
    """

    type = "validation-set.imported"
    validation_set: VersionedName
    root: Digest

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"validation-set:{self.validation_set}")


class BaseQuarantined(Failed):
    """A ledger entry that quarantines a base because its folder does not hash to its manifest.

    A quarantined base is used neither for training nor for serving.
    """

    type = "base.quarantined"
    base: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"base:{self.base}",)


class BaseRevoked(Ordered):
    """A ledger entry that revokes a base: it is used neither for training nor for serving."""

    type = "base.revoked"


class DatasetRevoked(Ordered):
    """A ledger entry that revokes a dataset: no run trains on it, and adapters trained on it are not served."""

    type = "dataset.revoked"


class ValidationSetRevoked(Ordered):
    """A ledger entry that revokes a validation set.

    No run is evaluated on it any more, and approvals that depend on it do not count.
    """

    type = "validation-set.revoked"


_REFUSALS = {
    "base": (BASE_UNKNOWN, BASE_REVOKED),
    "dataset": (DATASET_UNKNOWN, DATASET_REVOKED),
    "validation-set": (SET_UNKNOWN, SET_REVOKED),
}
"""Refusals by kind: of a name that was not imported, and of one that was revoked before."""


def _find_table(state: State, order: RevokeArtifact) -> Table[Any]:
    tables: dict[Kind, Table[Any]] = {
        "base": state.bases,
        "dataset": state.datasets,
        "validation-set": state.validation_sets,
    }
    return tables[order.kind]


def authorise_revocation(state: State, order: RevokeArtifact, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against revoking: not imported, another digest, or revoked before."""
    row, (unknown, revoked) = _find_table(state, order).get(order.name), _REFUSALS[order.kind]
    if row is None:
        return [unknown(name=Rejected(order.name))]
    subject, reasons = f"{order.kind}:{order.name}", []
    if row.digest != order.digest:
        reasons.append(DIGEST_DIFFERS(subject, digest=row.digest, named=Rejected(order.digest)))
    if row.revoked is not None:
        reasons.append(revoked(subject, entry=row.revoked))
    return reasons


def apply_revocation(case: Case) -> Changes:
    """Mark the base, dataset or validation set as revoked.

    Raises: Denied where no such one is imported.
    """
    order = case.order(RevokeArtifact)
    table = _find_table(case.state, order)
    row = table.get(order.name)
    if row is None:
        raise Denied(f"{case.place}: {order.kind}: expected an imported one, got {order.name}")
    return [(table, order.name, row.model_copy(update={"revoked": case.entry.index}))]


def apply_base_quarantine(case: Case) -> Changes:
    """Mark the base as quarantined.

    Raises: Denied where no such base is imported, or it is in quarantine already.
    """
    name = case.of(BaseQuarantined).base
    base = case.state.bases.get(name)
    if base is None or base.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: base: expected one not in quarantine, got {name}")
    return [(case.state.bases, name, base.model_copy(update={"quarantined": case.entry.index}))]


def apply_base_import(case: Case) -> Changes:
    """Add the base to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(BaseImported)
    record, changes = finish_import(case, body.order, "base", body.base)
    check_import(case, body.sandbox_probes, body.base, 1)
    base = Base(name=body.base, **_describe_import(case, body, record))
    return [*changes, (case.state.bases, body.base, base)]


def apply_dataset_import(case: Case) -> Changes:
    """Add the dataset to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(DatasetImported)
    record, changes = finish_import(case, body.order, "dataset", split_version(body.dataset)[0])
    common = _describe_rows(case, body, record, case.state.datasets, body.dataset)
    dataset = Dataset(**common, root=body.root, instruction=record.instruction)
    return [*changes, (case.state.datasets, body.dataset, dataset)]


def apply_validation_set_import(case: Case) -> Changes:
    """Add the validation set to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(ValidationSetImported)
    record, changes = finish_import(case, body.order, "validation-set", split_version(body.validation_set)[0])
    dataset_kind = body.facts.get("dataset_kind")
    case.require(dataset_kind == record.dataset_kind, "facts, dataset_kind", record.dataset_kind, dataset_kind)
    common = _describe_rows(case, body, record, case.state.validation_sets, body.validation_set)
    found = ValidationSet(
        **common,
        root=body.root,
        file=record.held_out_of,
        dataset_kind=record.dataset_kind,
        blind=record.blind,
        final=record.final,
    )
    return [*changes, (case.state.validation_sets, body.validation_set, found)]


def _describe_import(case: Case, body: Imported, record: Import) -> dict[str, Any]:
    """Return the fields that the rows of all imports have in common."""
    return {
        "digest": digest_bytes(case.documents["manifest"]),
        "licence": record.licence,
        "imported_by": record.signer,
        "order": record.order,
        "index": case.entry.index,
        "facts": body.facts,
    }


def _describe_rows(
    case: Case, body: Imported, record: Import, table: Table[Any], versioned_name: str
) -> dict[str, Any]:
    """Check the version, base and manifest of a dataset or validation set, and return the fields that both have."""
    name, version = split_version(versioned_name)
    expected = next_version(table, name)
    case.require(version == expected, "version", expected, version)
    base = check_rendered_for(case, record, body.base)
    check_import(case, body.sandbox_probes, name, version)
    return {
        **_describe_import(case, body, record),
        "name": name,
        "version": version,
        "base": base.name,
        "base_digest": base.digest,
        "classification": record.classification,
    }


ACTIONS = (
    Action(
        RevokeBase,
        title="Revoke a base",
        complete=partial(complete_revocation, "base", "base"),
        authorise=authorise_revocation,
        signers=("administrator", "any reviewer"),
        meaning="No adapter on this base serves a unit any more, and none is trained on it. This cannot be taken back.",
        event=BaseRevoked,
        apply=apply_revocation,
        recheck_slots=True,
        facts=ActionFacts(BaseEntity, "name"),
        example_values={"signer": "rita", "digest": example_digest("smollm2")},
    ),
    Action(
        RevokeDataset,
        title="Revoke a dataset",
        complete=partial(complete_revocation, "dataset", "dataset"),
        authorise=authorise_revocation,
        signers=("administrator", "any reviewer"),
        meaning="No adapter trained on this dataset serves a unit any more. This cannot be taken back.",
        event=DatasetRevoked,
        apply=apply_revocation,
        recheck_slots=True,
        facts=ActionFacts(DatasetEntity, "name"),
        example_values={"signer": "rita", "dataset": "clauses", "digest": example_digest("clauses")},
    ),
    Action(
        RevokeValidationSet,
        title="Revoke a validation set",
        complete=partial(complete_revocation, "validation-set", "validation_set"),
        authorise=authorise_revocation,
        signers=("validator", "administrator", "any reviewer"),
        meaning="No adapter is evaluated on this set any more, and approvals that rest on it go stale. This cannot be "
        "taken back.",
        event=ValidationSetRevoked,
        apply=apply_revocation,
        recheck_slots=True,
        facts=ActionFacts(ValidationSetEntity, "name"),
        example_values={"signer": "vera", "validation_set": "exam", "digest": example_digest("exam")},
    ),
)
EVENTS = (
    EventRule(BaseImported, apply_base_import),
    EventRule(BaseQuarantined, apply_base_quarantine),
    EventRule(DatasetImported, apply_dataset_import),
    EventRule(ValidationSetImported, apply_validation_set_import),
)
