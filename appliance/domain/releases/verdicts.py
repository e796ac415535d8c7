"""What a verdict that was not passed refuses, and the exception by which an adapter may answer in spite of it.

A finding takes away; an exception that accepts a verdict permits. So it counts only as an approval does: under a key
that counts, of a reviewer who is one still, until its date, and in a field that the release needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.domain.core.decisions import Finding
from appliance.domain.core.names import Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State


def unproven(state: State, adapter: Adapter) -> str | None:
    """Why the adapter's verdict does not let it be released, by the policy in force; None where it does, or where
    policy shows verdicts only. Where policy requires gate sets, a verdict by another set is none."""
    rules, name = state.parameters, f"{adapter.name}@{adapter.version}"
    if rules.failed_verdict == "shown":
        return None
    required = rules.required_gates
    if required and adapter.gates not in required:
        got = "a run that bound no gates" if adapter.gates is None else f"one by {adapter.gates}"
        return f"verdict of {name}: expected one by gates that policy requires ({', '.join(required)}), got {got}"
    if adapter.gates is None or adapter.passed:
        return None
    return f"verdict of {name}: expected one that passed, got one that did not: gate {', '.join(adapter.failed_gates)}"


def accepted_by(state: State, adapter: Adapter, fields: Sequence[str], now: Time) -> list[Finding]:
    """The exceptions by which its verdict is accepted now. `fields`: those that the release requires; with none, a
    reviewer of any field can accept it."""
    return [
        one
        for one in adapter.findings
        if one.accepts_verdict and (not fields or one.field in fields) and _stands(state, one, now)
    ]


def _stands(state: State, finding: Finding, now: Time) -> bool:
    finder, key = state.principals.get(finding.finder), state.keys.get(finding.keyid)
    signed = key is not None and key.principal == finding.finder and key.counts(finding.index)
    standing = finder is not None and finder.has(f"reviewer:{finding.field}")
    due = finding.due <= state.site.time_for(finding.index, now)
    # Closing takes away, so it lasts under a key that counts no more, too: nobody gives it back by revoking that key.
    return signed and standing and finding.closed is None and not due


def unaccepted(state: State, adapter: Adapter, fields: Sequence[str], now: Time) -> Reasons:
    """The verdict that stops a release; nothing where it does not, or where a reviewer accepts it for now."""
    reason = unproven(state, adapter)
    if reason is None or accepted_by(state, adapter, fields, now):
        return []
    who = " or ".join(fields) or "any field"
    return [f"{reason}; a reviewer of {who} can accept it until a date, as an exception"]


def accepted_later(state: State, adapter: Adapter, index: int, fields: Sequence[str], now: Time) -> str | None:
    """Why an approval of this entry does not count for an adapter whose verdict was not passed: what accepts it now was
    not there to be read when the approval was signed."""
    if unproven(state, adapter) is None:
        return None
    accepted = accepted_by(state, adapter, fields, now)
    if any(one.index < index for one in accepted):
        return None
    got = ", ".join(str(one.index) for one in accepted) or "none"
    return f"review {index}: expected one made on an exception that accepts the verdict and stands, got {got}"
