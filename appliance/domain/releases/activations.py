"""Releases: which adapter is active for a unit's served model, rollback to an earlier one, and emergency releases."""

from __future__ import annotations

from typing import Any, Literal

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import ReleaseRequest, has_too_many
from appliance.domain.core.entry import Countersigned, Ordered
from appliance.domain.core.example import NOW, example_commitment, example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Commitment, Identifier, Time, add_seconds
from appliance.domain.core.order import entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Activation, Release, release_key
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.releases.adapters import (
    AdapterEntity,
    AdapterOrder,
    complete_adapter,
    find_adapter,
    refuse_baseline,
)
from appliance.domain.releases.approval import (
    approved_by_activator,
    find_absolute_blockers,
    find_blockers,
    refuse_by_conditions,
    refuse_missing_approvals,
)
from appliance.domain.releases.requests import is_decided
from appliance.errors import Denied, RefusalCode

OWNER_ORDERED_THE_RUN = RefusalCode(
    "release-owner-ordered-the-run",
    "rule",
    "{id} ordered the training run. Nobody releases what they made.",
    "Ask another release owner.",
)
INSTRUCTION_ERASED = RefusalCode(
    "instruction-erased",
    "state",
    "The instruction of dataset {id} was erased by entry {entry}.",
    "Release the adapter without adding the instruction.",
)
ALREADY_ACTIVE = RefusalCode(
    "already-active", "state", "Adapter {id} is active under this name.", "Name a version that was active before."
)
NEVER_ACTIVE = RefusalCode(
    "never-active",
    "state",
    "Adapter {id} was not active under this name before.",
    "Name a version that was active before, or activate it.",
)
NEVER_APPROVED = RefusalCode(
    "never-approved-and-active",
    "rule",
    "Adapter {id} was never approved and active under this name. An emergency cannot release it.",
    "Name a version that was approved and active before.",
)
SINGLE_ADMINISTRATOR = RefusalCode(
    "single-administrator",
    "rule",
    "An emergency release needs a second person. This site has a single administrator.",
    "Have the adapter approved.",
)
EMERGENCY_REASON_MISSING = RefusalCode(
    "emergency-reason-missing",
    "order",
    "An emergency release needs a reason.",
    "Write what the emergency is.",
    "reason",
)
EMERGENCY_END = RefusalCode(
    "emergency-end-out-of-range",
    "policy",
    "Policy lets an emergency release end by {latest}. The order says {until}.",
    "Give an end after {now} and not after {latest}.",
    "until",
)
EMERGENCY_UNREVIEWED = RefusalCode(
    "emergency-unreviewed",
    "rule",
    "No reviewer has decided on the emergency release of adapter {id} by entry {entry}.",
    "A reviewer must decide on it before another one can be made.",
)
NO_EMERGENCY = RefusalCode(
    "no-emergency-needed",
    "rule",
    "All approvals of adapter {id} are valid.",
    "Roll back to it: appliance release rollback.",
)


class ReleaseOrder(AdapterOrder):
    """Base class of the orders about one adapter, one unit and one of the unit's served models."""

    unit: Identifier
    served_model: Identifier = entered("the name that the unit's clients send as model")

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}", f"served-model:{self.served_model}")


class Activate(ReleaseOrder):
    """A signed order to make an adapter active for a unit's served model.

    `adds_instruction`: the service adds the dataset's instruction to requests that have no system message.
    """

    action = "activate"
    adds_instruction: bool = entered(first="yes")


class Rollback(ReleaseOrder):
    """A signed order to make an adapter active again that was active under this name before."""

    action = "rollback"
    adds_instruction: bool = entered(first="yes")


class ReleaseActivated(Ordered):
    """The entry that an adapter became active for a unit's served model."""

    type = "release.activated"


class ReleaseRolledBack(Ordered):
    """The entry that an earlier adapter became active again."""

    type = "release.rolled-back"


def authorise_activate(state: State, order: Activate | Rollback, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against an activation or a rollback."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons: Reasons = []
    if signer.name == adapter.ordered_by:
        reasons.append(OWNER_ORDERED_THE_RUN(f"principal:{signer.name}"))
    reasons += refuse_baseline(adapter)
    if order.adds_instruction:
        reasons += refuse_erased_instruction(state, adapter)
    reasons += find_blockers(state, adapter, order.unit, now, order.served_model)
    reasons += approved_by_activator(state, adapter, order.unit, signer.name, now)
    release = state.releases.get(release_key(order.unit, order.served_model))
    history = () if release is None else release.history
    own = sum((one.signer, one.adapter) == (signer.name, order.name) for one in history)
    reasons += has_too_many(signer.name, f"activations for {order.unit}/{order.served_model}", order.name, own)
    return reasons + refuse_by_conditions(state, adapter, order.unit, order.served_model, now)


def refuse_erased_instruction(state: State, adapter: Adapter) -> Reasons:
    """Return the refusal reason if the dataset's instruction, which the release would add to requests, was erased."""
    dataset = state.datasets.get(adapter.dataset)
    text = None if dataset is None else state.texts.get(dataset.instruction)
    if text is not None and text.erased is not None:
        return [INSTRUCTION_ERASED(f"dataset:{adapter.dataset}", entry=text.erased)]
    return []


def _meaning(order: Activate | Rollback) -> str:
    again = " again" if isinstance(order, Rollback) else ""
    which = "this earlier adapter" if again else "this adapter under this name"
    added = (
        " Where a request has no system message, it gets the dataset's instruction." if order.adds_instruction else ""
    )
    return f"From now on the unit's clients are served by {which}{again}.{added}"


def authorise_roll_back(state: State, order: Rollback, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a rollback."""
    reasons = authorise_activate(state, order, signer, now)
    release = state.releases.get(release_key(order.unit, order.served_model))
    earlier = [] if release is None else [a.adapter for a in release.history]
    if release is not None and release.current.adapter == order.name:
        reasons.append(ALREADY_ACTIVE(f"adapter:{order.name}"))
    elif order.name not in earlier:
        reasons.append(NEVER_ACTIVE(f"adapter:{order.name}"))
    return reasons


def apply_activation(case: Case) -> Changes:
    """Record an activation."""
    return _record_release(case, case.order(Activate), "activate")


def apply_rollback(case: Case) -> Changes:
    """Record a rollback."""
    return _record_release(case, case.order(Rollback), "rollback")


def _record_release(case: Case, order: Activate | Rollback, kind: Literal["activate", "rollback"]) -> Changes:
    key = release_key(order.unit, order.served_model)
    before = case.state.releases.get(key)
    activation = Activation(
        index=case.entry.index,
        order=case.accepted.digest,
        adapter=order.name,
        manifest=order.manifest,
        signer=order.signer,
        keyid=case.accepted.keyid,
        kind=kind,
        adds_instruction=order.adds_instruction,
    )
    history = (() if before is None else before.history) + (activation,)
    return [(case.state.releases, key, Release(unit=order.unit, served_model=order.served_model, history=history))]


_TERMS = {"adapter": "terms", "manifest": example_digest("terms@1")}


ACTIONS = (
    Action(
        Activate,
        title="Activate a release",
        complete=complete_adapter,
        authorise=authorise_activate,
        signers=("release-owner:UNIT",),
        meaning=_meaning,
        summary="An approved adapter serves the unit's clients under a name.",
        event=ReleaseActivated,
        apply=apply_activation,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "served_model", "adds_instruction")),
        example_values={"signer": "otto"},
    ),
    Action(
        Rollback,
        complete=complete_adapter,
        authorise=authorise_roll_back,
        signers=("release-owner:UNIT",),
        meaning=_meaning,
        summary="A version that served the unit under this name before serves it again.",
        title="Roll back a release",
        event=ReleaseRolledBack,
        apply=apply_rollback,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "served_model", "adds_instruction")),
        example_values={"signer": "otto", **_TERMS},
    ),
)


class BreakGlass(ReleaseOrder):
    """A signed order for an emergency release of a version that was approved and active under this name before.

    It takes effect once an administrator countersigns it. `until`: the time at which the emergency ends.
    """

    action = "break-glass"
    adds_instruction: bool = entered(first="yes")
    until: Time = entered("a time from now such as 4h, or a day; policy limits it", first="4h")
    reason: Commitment | None = entered(
        "what the emergency is; it can be erased later",
        needed="for an emergency",
        default=None,
        description="why, in your words; it can be erased later",
    )


class EmergencyDeclared(Countersigned):
    """The entry of an emergency release."""

    type = "release.emergency"


def authorise_break_glass(state: State, order: BreakGlass, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against an emergency release.

    An emergency overrides missing approvals only. A revocation, a suspension, a rejection, an open finding that blocks,
    and a condition still refuse.
    """
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons: Reasons = []
    if signer.name == adapter.ordered_by:
        reasons.append(OWNER_ORDERED_THE_RUN(f"principal:{signer.name}"))
    if state.site.single_administrator:
        reasons.append(SINGLE_ADMINISTRATOR())
    if order.reason is None:
        reasons.append(EMERGENCY_REASON_MISSING())
    release = state.releases.get(release_key(order.unit, order.served_model))
    released_before = (
        []
        if release is None
        else [activation.adapter for activation in release.history if activation.kind != "break-glass"]
    )
    if order.name not in released_before:
        reasons.append(NEVER_APPROVED(f"adapter:{order.name}"))
    limit = add_seconds(now, state.parameters.break_glass_lifetime_s)
    if not now < order.until <= limit:
        reasons.append(EMERGENCY_END(now=now, latest=limit, until=order.until))
    if order.adds_instruction:
        reasons += refuse_erased_instruction(state, adapter)
    unreviewed = _find_unreviewed_emergency(state, adapter, order.unit)
    if unreviewed is not None:
        reasons.append(EMERGENCY_UNREVIEWED(f"adapter:{order.name}", entry=unreviewed))
    reasons += find_absolute_blockers(state, adapter, order.unit, now, order.served_model)
    reasons += approved_by_activator(state, adapter, order.unit, signer.name, now)
    reasons += refuse_by_conditions(state, adapter, order.unit, order.served_model, now, emergency=True)
    if not refuse_missing_approvals(state, adapter, order.unit, now):
        reasons.append(NO_EMERGENCY(f"adapter:{order.name}"))
    return reasons


def _find_unreviewed_emergency(state: State, adapter: Adapter, unit: str) -> int | None:
    """Return the entry of the unit's last emergency with this version if no reviewer has decided on it, else None.

    A decision counts only under a valid key. Without this rule two people could keep a version active for ever by
    repeated emergencies.
    """
    emergencies = [request for request in adapter.requests if request.unit == unit and request.kind == "break-glass"]
    return emergencies[-1].index if emergencies and not is_decided(state, adapter, emergencies[-1]) else None


def apply_emergency_release(case: Case) -> Changes:
    """Record an emergency release and open its review.

    The release owner's order is recorded as the order of the release. The entry's own order is its countersignature.
    """
    order, state, index = case.order(BreakGlass), case.state, case.entry.index
    key = release_key(order.unit, order.served_model)
    before, adapter = state.releases.get(key), state.adapters.get(order.name)
    if before is None or adapter is None or "countersigned" not in case.documents:
        raise Denied(
            f"entry {index}: expected a countersigned order for an adapter that answered {key}, got {order.name}"
        )
    first = case.reader.read(state, case.documents["countersigned"], case.entry.time)
    activation = Activation(
        index=index,
        order=first.digest,
        adapter=order.name,
        manifest=order.manifest,
        signer=order.signer,
        keyid=first.keyid,
        kind="break-glass",
        adds_instruction=order.adds_instruction,
        until=order.until,
        countersigned_keyid=case.accepted.keyid,
    )
    request = _build_review_request(adapter, order, first.digest, first.keyid, case)
    return [
        (
            state.releases,
            key,
            Release(unit=order.unit, served_model=order.served_model, history=(*before.history, activation)),
        ),
        (state.adapters, order.name, adapter.model_copy(update={"requests": (*adapter.requests, request)})),
    ]


def _build_review_request(adapter: Adapter, order: BreakGlass, digest: str, keyid: str, case: Case) -> ReleaseRequest:
    """Return the release request that an emergency opens. It keeps the conditions of the unit's last request."""
    requests = [request for request in adapter.requests if request.unit == order.unit]
    return ReleaseRequest(
        order=digest,
        unit=order.unit,
        kind="break-glass",
        requested_by=order.signer,
        keyid=keyid,
        exposure=None,
        purpose=None,
        verdict=adapter.verdict,
        conditions=requests[-1].conditions if requests else None,
        index=case.entry.index,
        time=case.entry.time,
    )


_EMERGENCY: dict[str, Any] = {
    "signer": "otto",
    "reason": example_commitment("reason"),
    "until": add_seconds(NOW, 3_600),
    "adapter": "notes",
    "manifest": example_digest("notes@1"),
}


EMERGENCY_ACTIONS = (
    Action(
        BreakGlass,
        complete=complete_adapter,
        authorise=authorise_break_glass,
        meaning="In an emergency this earlier version serves the unit under this name until then, although it lacks "
        "approvals. A review of it opens.",
        title="Emergency release",
        signers=("release-owner:UNIT",),
        event=EmergencyDeclared,
        apply=apply_emergency_release,
        two_administrators=True,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "served_model", "until")),
        example_values=_EMERGENCY,
    ),
)
