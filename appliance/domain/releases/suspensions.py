"""Suspensions: stops of an adapter version for a unit that can be lifted, unlike a revocation.

One person suspends. Somebody with the same role, or two administrators, lift that suspension. While one is valid, no
release of the version serves the unit, whichever way it was released (`adapters.refuse_suspended`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Suspension, has_too_many
from appliance.domain.core.entry import Countersigned, Ordered
from appliance.domain.core.facts import ActionFacts, find_row
from appliance.domain.core.names import Commitment, Identifier, Role, Time, Value
from appliance.domain.core.order import entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons, require_unit
from appliance.domain.core.state import State
from appliance.domain.releases.adapters import (
    AdapterEntity,
    AdapterOrder,
    complete_adapter,
    find_adapter,
    is_suspended,
    refuse_revoked,
    take_adapter,
)
from appliance.domain.releases.approval import refuse_makers
from appliance.errors import NotFound, RefusalCode, Rejected

NOT_OWN_ROLE = RefusalCode(
    "suspension-role",
    "order",
    "{id} cannot suspend an adapter for {unit} under the role {role}.",
    "Name a role of your own: administrator, reviewer:FUNCTION, or release-owner:UNIT for this unit.",
)
SUSPENDED_ALREADY = RefusalCode(
    "already-suspended",
    "state",
    "Adapter {adapter} has been suspended for {unit} under the role {role} since entry {id}.",
    "Nothing remains to be done.",
)
SUSPENSION_UNKNOWN = RefusalCode(
    "suspension-unknown",
    "order",
    "Entry {entry} records no suspension of adapter {id} for {unit}.",
    "Name one of the valid suspensions: {valid}.",
)
SUSPENSION_LIFTED = RefusalCode(
    "suspension-lifted",
    "state",
    "The suspension of entry {id} was lifted by entry {entry}.",
    "Nothing remains to be done.",
)
NOT_SUSPENDERS_ROLE = RefusalCode(
    "not-suspenders-role",
    "rule",
    "{by} suspended the adapter by entry {id} under the role {role}, which {signer} does not have.",
    "A person with the role {role}, or two administrators, must resume it.",
)


class SuspensionOrder(AdapterOrder):
    """Base class of the orders that suspend an adapter version for a unit and lift the suspension."""

    unit: Identifier
    reason: Commitment = Field(description="why, in your words; it can be erased later")

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class SuspendRelease(SuspensionOrder):
    """A signed order to suspend an adapter version for a unit.

    `served_model`: the only served model to stop; null stops all served models of the unit. `role`: the role of the
    signer under which it is suspended. Somebody with this role can lift the suspension.
    """

    action = "suspend-release"
    served_model: Identifier | None = Field(
        description="one served model to stop; none: the version stops under all names"
    )
    role: Role = entered("your role under which you suspend; a person with the same role can lift the suspension")


class ResumeRelease(SuspensionOrder):
    """A signed order to lift a suspension. Each suspension is lifted by an order of its own."""

    action = "resume-release"
    entry: int = entered(label="suspension", ge=1, description="entry that recorded the suspension")


class ReleaseSuspended(Ordered):
    """The entry that an adapter version was suspended for a unit."""

    type = "release.suspended"


class ReleaseResumed(Countersigned):
    """The entry that a suspension was lifted."""

    type = "release.resumed"


def list_suspending_roles(roles: Sequence[str], unit: str) -> tuple[str, ...]:
    """Return those of a person's roles under which the person can suspend a release of the unit."""
    whole = ("administrator", f"release-owner:{unit}")
    return tuple(role for role in roles if role in whole or role.startswith("reviewer:"))


def authorise_suspend(state: State, order: SuspendRelease, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a suspension."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = require_unit(state, order.unit) + refuse_revoked(adapter)
    if order.role not in list_suspending_roles(signer.roles, order.unit):
        refused = NOT_OWN_ROLE(f"principal:{signer.name}", unit=Rejected(order.unit), role=Rejected(order.role))
        return [*reasons, refused]
    for one in list_suspensions(state, adapter, order.unit):
        if one.role == order.role and one.served_model in (None, order.served_model):
            found = {"adapter": order.name, "unit": order.unit, "role": order.role}
            reasons.append(SUSPENDED_ALREADY(f"suspension:{one.index}", **found))
    own = sum(one.by == signer.name for one in adapter.suspensions)
    return reasons + has_too_many(signer.name, "suspensions", order.name, own)


def authorise_resume(state: State, order: ResumeRelease, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against lifting a suspension.

    Somebody with the role of the suspension may lift it, except those who ordered the run or imported the dataset.
    Administrators may lift any suspension. It then needs a second administrator, unless an administrator suspended.
    """
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    suspension = find_suspension(adapter, order)
    if suspension is None:
        valid = tuple(str(one.index) for one in list_suspensions(state, adapter, order.unit)) or "none"
        unit = Rejected(order.unit)
        return [SUSPENSION_UNKNOWN(f"adapter:{order.name}", entry=order.entry, unit=unit, valid=valid)]
    subject, reasons = f"suspension:{suspension.index}", refuse_makers(adapter, signer.name)
    if not signer.has(suspension.role) and not signer.has("administrator"):
        who = {"by": suspension.by, "role": suspension.role, "signer": signer.name}
        reasons.append(NOT_SUSPENDERS_ROLE(subject, **who))
    if not is_suspended(state, suspension):
        reasons.append(SUSPENSION_LIFTED(subject, entry=suspension.lifted or 0))
    return reasons


def list_suspensions(state: State, adapter: Adapter, unit: str | None = None) -> list[Suspension]:
    """Return the valid suspensions of an adapter, all of them or those for one unit."""
    return [one for one in adapter.suspensions if unit in (None, one.unit) and is_suspended(state, one)]


def find_suspension(adapter: Adapter, order: ResumeRelease) -> Suspension | None:
    """Return the suspension that the order lifts, None if its entry records none for this adapter and unit."""
    found = (one for one in adapter.suspensions if (one.index, one.unit) == (order.entry, order.unit))
    return next(found, None)


def needs_two_to_resume(state: State, order: ResumeRelease) -> bool:
    """Return True if an administrator signs without the role of the suspension. A second one must then sign, too."""
    adapter, signer = state.adapters.get(order.name), state.principals.get(order.signer)
    suspension = None if adapter is None else find_suspension(adapter, order)
    if suspension is None or signer is None:
        return False
    return signer.has("administrator") and not signer.has(suspension.role)


def apply_suspension(case: Case) -> Changes:
    """Record a suspension."""
    order = case.order(SuspendRelease)
    adapter = take_adapter(case, order)
    suspension = Suspension(
        index=case.entry.index,
        order=case.accepted.digest,
        unit=order.unit,
        served_model=order.served_model,
        role=order.role,
        by=order.signer,
        keyid=case.accepted.keyid,
    )
    changed = adapter.model_copy(update={"suspensions": (*adapter.suspensions, suspension)})
    return [(case.state.adapters, order.name, changed)]


def apply_resumption(case: Case) -> Changes:
    """Record that a suspension was lifted, with the keys of all who signed it."""
    order = case.order(ResumeRelease)
    adapter, keyids = take_adapter(case, order), [case.accepted.keyid]
    if "countersigned" in case.documents:
        keyids.append(case.reader.read(case.state, case.documents["countersigned"], case.entry.time).keyid)
    lifted = {"lifted": case.entry.index, "lifted_by": order.signer, "lifted_keyids": tuple(keyids)}
    suspensions = tuple(
        one.model_copy(update=lifted) if one.index == order.entry else one for one in adapter.suspensions
    )
    return [(case.state.adapters, order.name, adapter.model_copy(update={"suspensions": suspensions}))]


def _meaning(order: SuspendRelease) -> str:
    what = "under any name" if order.served_model is None else f"under the name {order.served_model}"
    return (
        f"From now on the unit's clients get no response of this version {what}, and running responses are cut off. "
        f"Only somebody with the role {order.role}, or two administrators, can lift this. "
        "Exported copies are not reached: they serve until their dates."
    )


class _ResumptionContext(Value):
    unit: str
    served_model: str | None
    role: str
    by: str


def _read_suspension(state: State, order: ResumeRelease) -> _ResumptionContext:
    suspension = find_suspension(find_row(state, "adapters", order.name), order)
    if suspension is None:
        raise NotFound(f"suspension: expected one of {order.name}, got {order.entry}")
    return _ResumptionContext(**suspension.model_dump(include=set(_ResumptionContext.model_fields)))


_SIGNERS = ("release-owner:UNIT", "administrator", "any reviewer")

ACTIONS = (
    Action(
        SuspendRelease,
        title="Suspend a release",
        complete=complete_adapter,
        authorise=authorise_suspend,
        signers=_SIGNERS,
        meaning=_meaning,
        summary="A version stops serving one unit at once, until the suspension is lifted.",
        event=ReleaseSuspended,
        apply=apply_suspension,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "served_model", "role")),
        example_values={"signer": "rita", "role": "reviewer:privacy"},
    ),
    Action(
        ResumeRelease,
        title="Resume a release",
        complete=complete_adapter,
        authorise=authorise_resume,
        signers=_SIGNERS,
        meaning="This suspension ends. The version serves the unit again if no other suspension is valid and its "
        "approvals have not expired meanwhile.",
        event=ReleaseResumed,
        apply=apply_resumption,
        two_administrators=needs_two_to_resume,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", _read_suspension),
        example_values={"signer": "rita", "entry": 54},
    ),
)
