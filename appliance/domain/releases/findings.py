"""Findings: problems that reviewers report about an adapter, with an owner and a due date. They can block releases."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Finding, FindingKind, Severity, has_too_many
from appliance.domain.core.entry import Ordered
from appliance.domain.core.facts import ActionFacts, find_row
from appliance.domain.core.names import Commitment, Identifier, Time, Value, add_seconds
from appliance.domain.core.order import entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons, refuse_without_role, require_enrolled
from appliance.domain.core.state import State
from appliance.domain.releases.adapters import AdapterEntity, AdapterOrder, complete_adapter, find_adapter, take_adapter
from appliance.domain.releases.approval import refuse_makers
from appliance.domain.releases.verdicts import find_finding, is_open
from appliance.errors import NotFound, RefusalCode

DUE_PAST = RefusalCode(
    "finding-due-past", "order", "The due date {due} is not after {now}.", "Give a time after {now}."
)
ACCEPTANCE_TOO_LONG = RefusalCode(
    "acceptance-too-long",
    "policy",
    "Policy lets an exception accept a verdict until {latest}. The order says {due}.",
    "Give a due date of {latest} at the latest.",
)
ACCEPTANCE_BLOCKS = RefusalCode(
    "acceptance-not-an-exception",
    "order",
    "Only an exception that does not block can accept a verdict.",
    "Record an exception that does not block.",
)
VERDICT_PASSED = RefusalCode(
    "verdict-passed",
    "state",
    "Adapter {id} passed its gates, so that nothing is to be accepted.",
    "Record the finding without accepting the verdict.",
)
FINDING_UNKNOWN = RefusalCode(
    "finding-unknown",
    "order",
    "Entry {entry} records no finding about adapter {id}.",
    "Name one of the open findings: {open}.",
)
FINDING_CLOSED = RefusalCode(
    "finding-closed", "state", "Finding {id} was closed by entry {entry}.", "Nothing remains to be done."
)


class AddFinding(AdapterOrder):
    """A signed report of a finding about an adapter.

    `kind`: an issue to be fixed, an exception to a policy until the due date, or a limitation of the adapter's use.
    `blocks`: the adapter serves no request while the finding is open. `accepts_verdict`: for an exception, allows the
    release of the adapter until the due date although its verdict did not pass.
    """

    action = "add-finding"
    kind: FindingKind = entered(
        "issue: it must be fixed; exception: a rule that is not met is accepted until the due date; limitation: a use "
        "for which the adapter is not fit"
    )
    severity: Severity
    blocks: bool = entered(
        "mark it if no unit may use the adapter until the finding is closed", label="blocks every release"
    )
    accepts_verdict: bool = entered(
        "for an exception only: the adapter may be released until the due date although its gates failed",
        label="accepts a failed verdict",
    )
    review_function: Identifier
    owner: Identifier = Field(description="person who must resolve the finding")
    due: Time = entered("a day such as 2027-01-31, or a time from now such as 7d")
    finding: Commitment = Field(description="description of the finding")
    remedy: Commitment = Field(description="what resolves the finding")
    retest: Commitment = Field(description="test that shows that the finding is resolved")


class CloseFinding(AdapterOrder):
    """A signed order to close a finding. `evidence`: the result of the retest."""

    action = "close-finding"
    entry: int = entered(label="finding", ge=1, description="entry that recorded the finding")
    evidence: Commitment = Field(description="result of the retest, in your words")


class FindingAdded(Ordered):
    """The entry that a finding was added."""

    type = "finding.added"


class FindingClosed(Ordered):
    """The entry that a finding was closed."""

    type = "finding.closed"


def authorise_add_finding(state: State, order: AddFinding, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against adding a finding."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = refuse_makers(adapter, signer.name)
    reasons += require_enrolled(state, order.owner)
    own = sum(finding.finder == signer.name for finding in adapter.findings)
    reasons += has_too_many(signer.name, "findings", order.name, own)
    if order.due <= now:
        reasons.append(DUE_PAST(due=order.due, now=now))
    return reasons + (_check_acceptance(state, adapter, order, now) if order.accepts_verdict else [])


def _check_acceptance(state: State, adapter: Adapter, order: AddFinding, now: Time) -> Reasons:
    """Return the refusal reasons against a finding that accepts the adapter's verdict.

    It must be an exception that does not block, since one that blocks would permit and refuse at once. It ends no
    later than an approval could.
    """
    reasons, required = [], state.parameters.required_gates
    limit = add_seconds(now, state.parameters.approval_lifetime_s)
    if order.due > limit:
        reasons.append(ACCEPTANCE_TOO_LONG(latest=limit, due=order.due))
    if order.kind != "exception" or order.blocks:
        reasons.append(ACCEPTANCE_BLOCKS())
    if adapter.passed and (not required or adapter.gates in required):
        reasons.append(VERDICT_PASSED(f"adapter:{order.name}"))
    return reasons


def authorise_close_finding(state: State, order: CloseFinding, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against closing a finding.

    Reviewers of its review function may close it, except those who ordered the run or imported the dataset.
    """
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    finding = find_finding(adapter, order.entry)
    if finding is None:
        known = tuple(str(one.index) for one in adapter.findings if is_open(state, one)) or "none"
        return [FINDING_UNKNOWN(f"adapter:{order.name}", entry=order.entry, open=known)]
    reasons = refuse_without_role(signer, f"reviewer:{finding.review_function}") + refuse_makers(adapter, signer.name)
    if not is_open(state, finding):
        reasons.append(FINDING_CLOSED(f"finding:{finding.index}", entry=finding.closed or 0))
    return reasons


def apply_finding(case: Case) -> Changes:
    """Record a finding."""
    order = case.order(AddFinding)
    adapter = take_adapter(case, order)
    found = Finding(
        index=case.entry.index,
        order=case.accepted.digest,
        kind=order.kind,
        severity=order.severity,
        blocks=order.blocks,
        accepts_verdict=order.accepts_verdict,
        review_function=order.review_function,
        finder=order.signer,
        keyid=case.accepted.keyid,
        owner=order.owner,
        due=order.due,
    )
    changed = adapter.model_copy(update={"findings": (*adapter.findings, found)})
    return [(case.state.adapters, order.name, changed)]


def apply_finding_closure(case: Case) -> Changes:
    """Record that a finding was closed."""
    order = case.order(CloseFinding)
    adapter = take_adapter(case, order)
    closed = {"closed": case.entry.index, "closed_by": order.signer, "closed_keyid": case.accepted.keyid}
    findings = tuple(
        finding.model_copy(update=closed) if finding.index == order.entry else finding for finding in adapter.findings
    )
    return [(case.state.adapters, order.name, adapter.model_copy(update={"findings": findings}))]


def _meaning(order: AddFinding) -> str:
    if order.accepts_verdict:
        return (
            "You accept, until its due date, that this adapter is released though its verdict was not passed. "
            "Approvals made after this rest on it: from its due date on, or once it is closed, nothing answers."
        )
    if order.blocks:
        return "You record this finding. No unit can use the adapter until the finding is closed."
    if order.kind == "exception":
        return "You record this finding and accept it until its due date. If it is open then, it stops every release."
    return "You record this finding. Reviewers see it. It stops no release."


class _ClosingContext(Value):
    review_function: str
    kind: str
    severity: str
    finder: str


def _read_finding(state: State, order: CloseFinding) -> _ClosingContext:
    finding = find_finding(find_row(state, "adapters", order.name), order.entry)
    if finding is None:
        raise NotFound(f"finding: expected one of {order.name}, got {order.entry}")
    return _ClosingContext(**finding.model_dump(include=set(_ClosingContext.model_fields)))


ACTIONS = (
    Action(
        AddFinding,
        complete=complete_adapter,
        authorise=authorise_add_finding,
        meaning=_meaning,
        summary="You record what you found out about an adapter. A finding can stop its releases until it is closed.",
        title="Write a finding",
        signers=("reviewer:FUNCTION",),
        event=FindingAdded,
        apply=apply_finding,
        recheck_slots=True,
        facts=ActionFacts(
            AdapterEntity, "name", ("review_function", "kind", "severity", "blocks", "accepts_verdict", "owner", "due")
        ),
        example_values={"signer": "rita", "severity": "high", "blocks": True},
    ),
    Action(
        CloseFinding,
        title="Close a finding",
        complete=complete_adapter,
        authorise=authorise_close_finding,
        meaning="The retest shows that this finding is removed. It no longer stops a release. Approvals that rest on "
        "an exception do not count once it is closed.",
        signers=("reviewer:FUNCTION",),
        event=FindingClosed,
        apply=apply_finding_closure,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", _read_finding),
        example_values={"signer": "rita", "entry": 53},
    ),
)
