"""Refusals because of a verdict that did not pass, and the exceptions by which a reviewer accepts such a verdict.

An exception that accepts a verdict permits a release. So it is valid under the same conditions as an approval: it was
signed with a valid key by a person who is still a reviewer, its date has not passed, and the release needs its review
function.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.domain.core.decisions import Finding
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.errors import Refusal, RefusalCode

GATES_NOT_REQUIRED_ONES = RefusalCode(
    "verdict-by-other-gates",
    "policy",
    "Policy requires a verdict by one of the gates files {required}. The verdict of adapter {id} is by {gates}.",
    "Train it again under one of them, or have a reviewer ({functions}) record an exception that accepts the verdict.",
)
VERDICT_FAILED = RefusalCode(
    "verdict-failed",
    "policy",
    "Adapter {id} did not pass these gates: {gates}.",
    "Train another adapter, or have a reviewer ({functions}) record an exception that accepts the verdict.",
)
EXCEPTION_MISSING = RefusalCode(
    "review-before-exception",
    "state",
    "Adapter {adapter} did not pass its gates. The approval of entry {id} was not made after a valid exception that "
    "accepts this.",
    "After a reviewer has recorded such an exception, the adapter must be approved again.",
)
FINDING_BLOCKS = RefusalCode(
    "finding-blocks",
    "state",
    "Finding {id} ({severity} {finding_kind}, {function}) blocks this release.",
    "Its owner {owner} must resolve it, and a reviewer of {function} must close it.",
)
EXCEPTION_DUE = RefusalCode(
    "exception-due",
    "state",
    "Exception {id} ({severity}, {function}) was accepted until {due} and is still open. It blocks this release.",
    "Its owner {owner} must resolve it, and a reviewer of {function} must close it.",
)


def explain_unproven_verdict(state: State, adapter: Adapter, functions: Sequence[str] = ()) -> Refusal | None:
    """Return why the adapter's verdict prevents its release, None if it does not.

    Policy can require a verdict by one of several gates files. Where policy only shows verdicts, they prevent nothing.
    `functions`: the review functions whose reviewers can accept it; any if empty.
    """
    rules, subject = state.parameters, f"adapter:{versioned(adapter.name, adapter.version)}"
    named = tuple(functions) or "any review function"
    if rules.failed_verdict == "shown":
        return None
    required = rules.required_gates
    if required and adapter.gates not in required:
        return GATES_NOT_REQUIRED_ONES(subject, required=required, gates=adapter.gates or "none", functions=named)
    if adapter.gates is None or adapter.passed:
        return None
    return VERDICT_FAILED(subject, gates=adapter.failed_gates, functions=named)


def list_valid_exceptions(state: State, adapter: Adapter, functions: Sequence[str], now: Time) -> list[Finding]:
    """Return the valid exceptions that accept the adapter's verdict now.

    `functions`: the review functions that the release requires. If it is empty, a reviewer of any function can accept.
    """
    return [
        finding
        for finding in adapter.findings
        if finding.accepts_verdict
        and (not functions or finding.review_function in functions)
        and _is_valid(state, finding, now)
    ]


def _is_valid(state: State, finding: Finding, now: Time) -> bool:
    finder, key = state.principals.get(finding.finder), state.keys.get(finding.keyid)
    is_key_valid = key is not None and key.principal == finding.finder and key.counts(finding.index)
    is_reviewer = finder is not None and finder.has(f"reviewer:{finding.review_function}")
    is_due = finding.due <= state.site.time_for(finding.index, now)
    # A closed exception stays closed even if its key became invalid: revoking a key must not restore permission.
    return is_key_valid and is_reviewer and finding.closed is None and not is_due


def refuse_unaccepted_verdict(state: State, adapter: Adapter, functions: Sequence[str], now: Time) -> Reasons:
    """Return the refusal reason because of the verdict, none if the verdict passed or a valid exception accepts it."""
    reason = explain_unproven_verdict(state, adapter, functions)
    return [] if reason is None or list_valid_exceptions(state, adapter, functions, now) else [reason]


def explain_early_approval(
    state: State, adapter: Adapter, index: int, functions: Sequence[str], now: Time
) -> Refusal | None:
    """Return why an approval is not valid for an adapter whose verdict did not pass, None if it is valid.

    `index` is the entry of the approval. It must follow an exception that accepts the verdict now, so that its
    reviewer could read the exception before signing.
    """
    if explain_unproven_verdict(state, adapter) is None:
        return None
    accepted = list_valid_exceptions(state, adapter, functions, now)
    if any(finding.index < index for finding in accepted):
        return None
    return EXCEPTION_MISSING(f"review:{index}", adapter=versioned(adapter.name, adapter.version))


def find_finding(adapter: Adapter, index: int) -> Finding | None:
    """Return the finding that this entry recorded, None if there is none."""
    return next((finding for finding in adapter.findings if finding.index == index), None)


def is_open(state: State, finding: Finding) -> bool:
    """Return True if the finding was not closed, or was closed with a key that was not valid at that entry."""
    if finding.closed is None:
        return True
    key = state.keys.get(finding.closed_keyid or "")
    return key is None or key.principal != finding.closed_by or not key.counts(finding.closed)


def refuse_open_findings(state: State, adapter: Adapter, now: Time) -> Reasons:
    """Return the refusal reasons because of open findings that block and of open exceptions past their due date."""
    reasons = []
    for finding in adapter.findings:
        if not is_open(state, finding):
            continue
        subject = f"finding:{finding.index}"
        known = {"severity": finding.severity, "function": finding.review_function, "owner": finding.owner}
        if finding.blocks:
            reasons.append(FINDING_BLOCKS(subject, finding_kind=finding.kind, **known))
        elif finding.kind == "exception" and finding.due <= state.site.time_for(finding.index, now):
            reasons.append(EXCEPTION_DUE(subject, due=finding.due, **known))
    return reasons


def exceptions_end(state: State, adapter: Adapter) -> list[Time]:
    """Return the due dates of open exceptions, from which they block."""
    return [
        finding.due
        for finding in adapter.findings
        if finding.kind == "exception" and not finding.blocks and is_open(state, finding)
    ]
