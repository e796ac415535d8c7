"""Conditions of a release: which ones bind it, what they refuse now, and how many answers of today they count.

A condition is part of an approval, so it is a rule that every verifier computes again. A limit that protects the
service is none (docs/adr/0007-limits-are-operations.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Conditions, DailyAnswers, ReviewRecord, answers_key
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import Clearance, State
from appliance.domain.releases.tiers import current_request
from appliance.errors import UsedUp
from appliance.formats.core.timestamp import parse_time

Binding = list[tuple[str, int, Conditions]]
"""Whose they are, as an error names it, the entry that set them, and the conditions."""


def binding_conditions(state: State, adapter: Adapter, unit: str, approvals: Iterable[ReviewRecord]) -> Binding:
    """Those of the standing request and of these approvals."""
    request = current_request(state, adapter, unit)
    found = [] if request is None else [("request", request.index, request.conditions)]
    found += [("review", r.index, r.conditions) for r in approvals]
    return [(f"{kind} {index}", index, one) for kind, index, one in found if one is not None]


def against(state: State, binding: Binding, task: str, now: Time) -> Reasons:
    """What the dates and tasks refuse."""
    reasons = []
    for source, index, one in binding:
        if one.not_before is not None and now < one.not_before:
            reasons.append(f"condition of {source}: expected no answer before {one.not_before}, got one at {now}")
        if one.not_after is not None and one.not_after <= state.site.time_for(index, now):
            reasons.append(f"condition of {source}: expected no answer from {one.not_after} on, got one at {now}")
        if one.tasks and task not in one.tasks:
            reasons.append(f"condition of {source}: expected the task {' or '.join(one.tasks)}, got {task}")
    return reasons


def ends(binding: Binding) -> list[Time]:
    """When they refuse what they allow now."""
    return [one.not_after for _, _, one in binding if one.not_after is not None]


def daily_limit(binding: Binding) -> int | None:
    """The least of their daily counts."""
    return min((one.answers_a_day for _, _, one in binding if one.answers_a_day is not None), default=None)


def count_answer(case: Case, clearance: Clearance) -> Changes:
    """One more request of the entry's day, of all tasks and all programs that the adapter answers for the unit; UsedUp
    (`answers-a-day`) where the day's are used up."""
    if (most := clearance.answers_a_day) is None:
        return []
    adapter, unit = clearance.adapter, clearance.release.unit
    name, day = versioned(adapter.name, adapter.version), case.entry.time[:10]
    key = answers_key(unit, name)
    before = case.state.answers.get(key)
    count = 0 if before is None or before.day != day else before.count
    if count >= most:
        raise UsedUp(
            f"{case.place}: answers of {name} for {unit} on {day}: expected at most {most}, by a condition of its "
            f"approval, got one more; the next day begins at 00:00 UTC",
            code="answers-a-day",
            retry_after_s=_left_of_day(case.entry.time),
        )
    return [(case.state.answers, key, DailyAnswers(unit=unit, adapter=name, day=day, count=count + 1))]


def _left_of_day(time: Time) -> int:
    """Seconds until the next day of UTC, rounded up."""
    now = parse_time(time)
    return 86_400 - (now.hour * 3_600 + now.minute * 60 + now.second)
