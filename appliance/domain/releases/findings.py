"""Findings: what a reviewer found of an adapter, who removes it until when, and what keeps it from every release."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Finding, FindingKind, Severity
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Commitment, Identifier, Time, add_seconds
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs, stands
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.releases.adapters import OnAdapter, find_adapter, take_adapter
from appliance.domain.releases.approval import duties
from appliance.domain.releases.blocking import find_finding, is_open


class AddFinding(OnAdapter):
    """`kind`: an issue to be removed, an exception to a policy until its due date, or a limitation of what the adapter
    is good for. `blocks`: no release answers while it is open. `accepts_verdict`: of an exception, that the adapter may
    be released until its due date though its verdict was not passed."""

    verb = "add-finding"
    kind: FindingKind
    severity: Severity
    blocks: bool
    accepts_verdict: bool
    field: Identifier
    owner: Identifier = Field(description="who removes it")
    due: Time
    finding: Commitment = Field(description="what was found")
    remedy: Commitment = Field(description="what removes it")
    retest: Commitment = Field(description="what shows that it is removed")


class CloseFinding(OnAdapter):
    """`evidence`: what the retest showed."""

    verb = "close-finding"
    entry: int = Field(ge=1, description="the entry that recorded the finding")
    evidence: Commitment


class FindingAdded(Ordered):
    type = "finding.added"


class FindingClosed(Ordered):
    type = "finding.closed"


def may_add_finding(state: State, order: AddFinding, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, f"reviewer:{order.field}") + duties(adapter, signer.name)
    reasons += [f"owner: {reason}" for reason in stands(state, order.owner)]
    if order.due <= now:
        reasons.append(f"due: expected a time after {now}, got {order.due}")
    return reasons + (_acceptance(state, adapter, order, now) if order.accepts_verdict else [])


def _acceptance(state: State, adapter: Adapter, order: AddFinding, now: Time) -> Reasons:
    """Only an exception has an end, no later than an approval could have; one that blocks would permit and refuse at
    once."""
    reasons, required = [], state.parameters.required_gates
    limit = add_seconds(now, state.parameters.approval_lifetime_s)
    if order.due > limit:
        reasons.append(f"due: expected at most {limit}, since it accepts a verdict, got {order.due}")
    if order.kind != "exception" or order.blocks:
        got = f"a finding of kind {order.kind}{' that blocks' if order.blocks else ''}"
        reasons.append(f"accepts verdict: expected an exception that does not block, got {got}")
    if adapter.passed and (not required or adapter.gates in required):
        reasons.append(f"accepts verdict: expected an adapter whose verdict was not passed, got {order.name}")
    return reasons


def may_close_finding(state: State, order: CloseFinding, signer: Principal, now: Time) -> Reasons:
    """The finder, or another reviewer of that field; never who made the adapter."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    finding = find_finding(adapter, order.entry)
    if finding is None:
        known = ", ".join(str(one.index) for one in adapter.findings if is_open(state, one)) or "none"
        return [f"finding: expected the entry of one of {order.name} that is open ({known}), got {order.entry}"]
    reasons = needs(signer, f"reviewer:{finding.field}") + duties(adapter, signer.name)
    if not is_open(state, finding):
        reasons.append(f"finding {finding.index}: expected an open one, got one closed by entry {finding.closed}")
    return reasons


def finding_added(case: Case) -> Changes:
    order = case.order(AddFinding)
    adapter = take_adapter(case, order)
    found = Finding(
        index=case.entry.index,
        order=case.accepted.digest,
        kind=order.kind,
        severity=order.severity,
        blocks=order.blocks,
        accepts_verdict=order.accepts_verdict,
        field=order.field,
        finder=order.signer,
        keyid=case.accepted.keyid,
        owner=order.owner,
        due=order.due,
    )
    changed = adapter.model_copy(update={"findings": (*adapter.findings, found)})
    return [(case.state.adapters, order.name, changed)]


def finding_closed(case: Case) -> Changes:
    order = case.order(CloseFinding)
    adapter = take_adapter(case, order)
    closed = {"closed": case.entry.index, "closed_by": order.signer, "closed_keyid": case.accepted.keyid}
    findings = tuple(one.model_copy(update=closed) if one.index == order.entry else one for one in adapter.findings)
    return [(case.state.adapters, order.name, adapter.model_copy(update={"findings": findings}))]


def _meaning(order: AddFinding) -> str:
    if order.accepts_verdict:
        return (
            "You accept, until its due date, that this adapter is released though its verdict was not passed. "
            "Approvals made after this rest on it: from its due date on, or once it is closed, nothing answers."
        )
    if order.blocks:
        return "You found this of the adapter. No release of it answers until the finding is closed."
    if order.kind == "exception":
        return "You found this of the adapter and accept it until its due date. Open after it, it stops every release."
    return "You found this of the adapter. Reviewers see it; it stops no release."


VERBS = (
    Verb(
        AddFinding,
        may=may_add_finding,
        meaning=_meaning,
        summary="You record what you found of an adapter. It can stop releases, be accepted until a date, or be noted.",
        signers=("reviewer:FIELD",),
        event=FindingAdded,
        apply=finding_added,
        changes_answers=True,
    ),
    Verb(
        CloseFinding,
        may=may_close_finding,
        meaning="The retest shows that this finding is removed. It no longer stops a release. Approvals that rest on "
        "an exception do not count once it is closed.",
        signers=("reviewer:FIELD",),
        event=FindingClosed,
        apply=finding_closed,
        changes_answers=True,
    ),
)
