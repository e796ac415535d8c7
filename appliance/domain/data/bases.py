"""Base models: the order that revokes one, and the ledger entries for import, quarantine and revocation."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Failed, Ordered
from appliance.domain.core.example import example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Digest, Identifier, Time
from appliance.domain.core.order import Order, Subjects, derived
from appliance.domain.core.records.data import Base
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.imports import BaseEntity, check_import, finish_import
from appliance.domain.data.validity import BASE_REVOKED, BASE_UNKNOWN, check_revocable
from appliance.errors import Denied, Rejected
from appliance.formats.core.digest import digest_bytes


class RevokeBase(Order):
    """An order to revoke a base model. It also revokes every adapter on it, for every unit."""

    action = "revoke-base"
    base: Identifier
    digest: Digest = derived()

    def subjects(self) -> Subjects:
        """Return the base and its digest."""
        return ((f"base:{self.base}", self.digest),)


def complete_base_revocation(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the digest of the base."""
    return {"digest": ProvenValue(lookup.find_artifact("base", given.word("base")).value.manifest)}


class BaseImported(Event):
    """A ledger entry that records an imported base.

    The `manifest` document lists the files of the converted folder; its digest is the identity of the base.
    """

    type = "base.imported"
    documents = ("manifest",)
    order: Digest
    base: Identifier
    facts: dict[str, Any]
    sandbox_probes: dict[str, str]

    def about(self) -> tuple[str, ...]:
        """Return the order and the base."""
        return (
            f"order:{self.order}",
            f"base:{self.base}",
        )


class BaseQuarantined(Failed):
    """A ledger entry that quarantines a base because its folder does not hash to its manifest.

    A quarantined base is used neither for training nor for serving.
    """

    type = "base.quarantined"
    base: Identifier

    def about(self) -> tuple[str, ...]:
        """Return the base."""
        return (f"base:{self.base}",)


class BaseRevoked(Ordered):
    """A ledger entry that revokes a base: it is used neither for training nor for serving."""

    type = "base.revoked"


def authorise_revoke_base(state: State, order: RevokeBase, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may revoke the base."""
    base = state.bases.get(order.base)
    if base is None:
        return [BASE_UNKNOWN(name=Rejected(order.base))]
    return check_revocable(f"base:{order.base}", base.digest, base.revoked, order.digest, BASE_REVOKED)


def apply_base_import(case: Case) -> Changes:
    """Add the base to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(BaseImported)
    record, changes = finish_import(case, body.order, "base", body.base)
    check_import(case, body.sandbox_probes, body.base, 1)
    base = Base(
        name=body.base,
        digest=digest_bytes(case.documents["manifest"]),
        licence=record.licence,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*changes, (case.state.bases, body.base, base)]


def apply_base_quarantine(case: Case) -> Changes:
    """Mark the base as quarantined.

    Raises: Denied where no such base is imported, or it is in quarantine already.
    """
    name = case.of(BaseQuarantined).base
    base = case.state.bases.get(name)
    if base is None or base.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: base: expected one not in quarantine, got {name}")
    return [(case.state.bases, name, base.model_copy(update={"quarantined": case.entry.index}))]


def apply_base_revocation(case: Case) -> Changes:
    """Mark the base as revoked.

    Raises: Denied where no such base is imported.
    """
    base = case.state.bases.get(case.order(RevokeBase).base)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got none")
    return [(case.state.bases, base.name, base.model_copy(update={"revoked": case.entry.index}))]


ACTIONS = (
    Action(
        RevokeBase,
        title="Revoke a base",
        complete=complete_base_revocation,
        authorise=authorise_revoke_base,
        signers=("administrator", "any reviewer"),
        meaning="No adapter on this base serves a unit any more, and none is trained on it. This cannot be taken back.",
        event=BaseRevoked,
        apply=apply_base_revocation,
        recheck_slots=True,
        facts=ActionFacts(BaseEntity, "base"),
        example_values={"signer": "rita", "digest": example_digest("smollm2")},
    ),
)
EVENTS = (
    EventRule(BaseImported, apply_base_import),
    EventRule(BaseQuarantined, apply_base_quarantine),
)
