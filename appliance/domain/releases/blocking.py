"""Which findings are open, and which of them stop every release."""

from __future__ import annotations

from appliance.domain.core.decisions import Finding
from appliance.domain.core.names import Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State


def find_finding(adapter: Adapter, index: int) -> Finding | None:
    return next((one for one in adapter.findings if one.index == index), None)


def is_open(state: State, finding: Finding) -> bool:
    """A closing under a key that does not count at its entry closes nothing: a stolen key cannot."""
    if finding.closed is None:
        return True
    key = state.keys.get(finding.closed_keyid or "")
    return key is None or key.principal != finding.closed_by or not key.counts(finding.closed)


def blocked(state: State, adapter: Adapter, now: Time) -> Reasons:
    """Open findings that block, and open exceptions whose due date has passed."""
    reasons = []
    for finding in adapter.findings:
        if not is_open(state, finding):
            continue
        what = f"finding {finding.index} ({finding.severity} {finding.kind}, {finding.field})"
        if finding.blocks:
            reasons.append(f"{what}: expected it closed, got one that blocks and is open; its owner is {finding.owner}")
        elif finding.kind == "exception" and finding.due <= state.site.time_for(finding.index, now):
            reasons.append(f"{what}: expected it closed by {finding.due}, got one that is open")
    return reasons


def exceptions_end(state: State, adapter: Adapter) -> list[Time]:
    """When open exceptions begin to block."""
    return [one.due for one in adapter.findings if one.kind == "exception" and not one.blocks and is_open(state, one)]
