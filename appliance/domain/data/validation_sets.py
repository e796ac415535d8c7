"""Validation sets: the site's own rows on which adapters are evaluated, and which are never trained on.

The module has the order that revokes one, and the ledger entries for import and revocation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.example import example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Digest, Identifier, Time, VersionedName, split_version, versioned
from appliance.domain.core.order import Order, Subjects, derived
from appliance.domain.core.records.data import ValidationSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State, next_version
from appliance.domain.data.imports import ValidationSetEntity, check_import, check_rendered_for, finish_import
from appliance.domain.data.validity import (
    SET_REVOKED,
    SET_UNKNOWN,
    check_revocable,
    complete_revocation,
)
from appliance.errors import Denied, Rejected
from appliance.formats.core.digest import digest_bytes


class RevokeValidationSet(Order):
    """An order to revoke a validation set. Approvals of adapters that were evaluated on it become stale."""

    action = "revoke-validation-set"
    validation_set: Identifier
    version: int = derived(ge=1)
    digest: Digest = derived()

    @property
    def name(self) -> str:
        """Return the validation set's versioned name."""
        return versioned(self.validation_set, self.version)

    def subjects(self) -> Subjects:
        """Return the validation set and its digest."""
        return ((f"validation-set:{self.name}", self.digest),)


class ValidationSetImported(Event):
    """A ledger entry that records an imported validation set.

    `root` is the RFC 6962 root over the row digests, each under its own key.
    """

    type = "validation-set.imported"
    documents = ("manifest",)
    order: Digest
    validation_set: VersionedName
    base: Identifier
    root: Digest
    facts: dict[str, Any]
    sandbox_probes: dict[str, str]

    def about(self) -> tuple[str, ...]:
        """Return the order and the validation set."""
        return (f"order:{self.order}", f"validation-set:{self.validation_set}")


class ValidationSetRevoked(Ordered):
    """A ledger entry that revokes a validation set.

    No run is evaluated on it any more, and approvals that depend on it do not count.
    """

    type = "validation-set.revoked"


def authorise_revoke_validation_set(state: State, order: RevokeValidationSet, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may revoke the validation set."""
    found = state.validation_sets.get(order.name)
    if found is None:
        return [SET_UNKNOWN(name=Rejected(order.name))]
    subject = f"validation-set:{order.name}"
    return check_revocable(subject, found.digest, found.revoked, order.digest, SET_REVOKED)


def apply_validation_set_import(case: Case) -> Changes:
    """Add the validation set to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(ValidationSetImported)
    name, version = split_version(body.validation_set)
    record, changes = finish_import(case, body.order, "validation-set", name)
    expected = next_version(case.state.validation_sets, name)
    case.require(version == expected, "version", expected, version)
    base = check_rendered_for(case, record, body.base)
    case.require(
        body.facts.get("dataset_kind") == record.dataset_kind,
        "facts, dataset_kind",
        record.dataset_kind,
        body.facts.get("dataset_kind"),
    )
    check_import(case, body.sandbox_probes, name, version)
    found = ValidationSet(
        name=name,
        version=version,
        digest=digest_bytes(case.documents["manifest"]),
        root=body.root,
        file=record.held_out_of,
        dataset_kind=record.dataset_kind,
        base=base.name,
        base_digest=base.digest,
        licence=record.licence,
        classification=record.classification,
        blind=record.blind,
        final=record.final,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*changes, (case.state.validation_sets, body.validation_set, found)]


def apply_validation_set_revocation(case: Case) -> Changes:
    """Mark the validation set as revoked.

    Raises: Denied where no such validation set is imported.
    """
    name = case.order(RevokeValidationSet).name
    found = case.state.validation_sets.get(name)
    if found is None:
        raise Denied(f"entry {case.entry.index}: validation set: expected an imported one, got {name}")
    return [(case.state.validation_sets, name, found.model_copy(update={"revoked": case.entry.index}))]


ACTIONS = (
    Action(
        RevokeValidationSet,
        title="Revoke a validation set",
        complete=partial(complete_revocation, "validation-set", "validation_set"),
        authorise=authorise_revoke_validation_set,
        signers=("validator", "administrator", "any reviewer"),
        meaning="No adapter is evaluated on this set any more, and approvals that rest on it go stale. This cannot be "
        "taken back.",
        event=ValidationSetRevoked,
        apply=apply_validation_set_revocation,
        recheck_slots=True,
        facts=ActionFacts(ValidationSetEntity, "name"),
        example_values={"signer": "vera", "validation_set": "exam", "digest": example_digest("exam")},
    ),
)
EVENTS = (EventRule(ValidationSetImported, apply_validation_set_import),)
