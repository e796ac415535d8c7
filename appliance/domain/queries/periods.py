"""Effective access over a span of time: the moments at which it may change, and whether it changed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.domain.core.names import Time, Value
from appliance.domain.core.records.serving import Slot
from appliance.domain.core.state import State
from appliance.domain.queries.effective_access import (
    ACCESS_KINDS,
    AccessCandidate,
    BeforeLog,
    UnitAccess,
    check_unit_name,
    effective_access,
    last_at,
    list_times,
    replay,
)
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time, parse_time

_TIME = re.compile(r'"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)"')
_LENGTH = re.compile(r'_s":([0-9]+)')


class AccessPeriod(Value):
    """A result that held from its moment until the next period. `as_of`: index of the last entry at its beginning."""

    as_of: int
    answer: UnitAccess


class Span(Value):
    """The results between two moments, where each differs from the one before."""

    unit: str
    since: Time
    until: Time
    periods: tuple[AccessPeriod, ...]


def effective_access_during(
    entries: Callable[[], Iterable[bytes]],
    documents: Callable[[str], bytes | None],
    unit: str,
    points: tuple[str, str | None],
    now: Time,
) -> Span:
    """Return the effective access of a unit over a span, from the bytes of a verified log.

    The entries are read three times: for their times, for the dates in the state, and for the results. `points`:
    beginning and end, each the index of an entry or a time. None and future times mean now.

    Raises:
        BadInput: the unit is unknown, or the span is empty.
    """
    times = list(list_times(entries()))
    first, begin = _locate_point(times, points[0], now)
    last, end = _locate_point(times, points[1], now)
    if last is None or begin >= end:
        raise BadInput(f"since: expected a moment before {end} and after the log's beginning, got {begin}")
    if first is None:
        first, begin = 0, times[0][0]
    values = [json.dumps(value, separators=(",", ":")) for value in _list_values(entries, documents, unit, first, last)]
    dates = defaultdict[int | None, list[Time]](list)
    for date in dates_between(values, begin, end):
        dates[last_at(times, date)].append(date)
    periods: list[AccessPeriod] = []
    before: UnitAccess | None = None
    for index, state, changes in _replay_states(entries, documents):
        if index > last:
            continue  # the log is read to its end, so that its root can be compared
        moments = [begin] if index == first else [state.last_time] if index > first and changes else []
        for moment in (*moments, *(dates[index] if index >= first else ())):
            answer = effective_access(state, unit, moment)
            if before is None or not is_same(answer, before):
                periods.append(AccessPeriod(as_of=index, answer=answer))
            before = answer
    return Span(unit=unit, since=begin, until=end, periods=tuple(periods))


def _locate_point(times: list[tuple[Time, bool]], at: str | None, now: Time) -> tuple[int | None, Time]:
    if at is not None and at.isdecimal():
        if int(at) >= len(times):
            raise BadInput(f"entry {at}: expected one of the log's entries, got none")
        return int(at), times[int(at)][0]
    moment = now if at is None else min(at, now)
    return last_at(times, moment), moment


Changes = list[tuple[str, str, Mapping[str, Any] | None]]
"""Changed rows as (kind, key, value), with None for a deleted row."""


def _replay_states(
    entries: Callable[[], Iterable[bytes]], documents: Callable[[str], bytes | None]
) -> Iterator[tuple[int, State, Changes]]:
    """Yield the state after each entry, and the changed rows that can affect access."""
    state = State()
    for index, data in enumerate(entries()):
        replay(state, data, documents)
        changes = [change for change in state.take_changes() if change[0] in ACCESS_KINDS]
        state.keep()
        yield index, state, changes


def _list_values(
    entries: Callable[[], Iterable[bytes]], documents: Callable[[str], bytes | None], unit: str, first: int, last: int
) -> Iterator[Mapping[str, Any]]:
    """Yield every value that was valid at some entry of the span.

    Raises:
        BadInput: no entry of the log enrolled the unit.
    """
    names: list[str] = []
    for index, state, changes in _replay_states(entries, documents):
        if index == first:
            yield from (value for kind, _, value in state.projections() if kind in ACCESS_KINDS)
        elif first < index <= last:
            yield from (value for _, _, value in changes if value is not None)
        names = [row.name for row in state.principals.values() if "unit" in row.roles] if changes else names
    check_unit_name(unit, names)


def dates_between(values: Iterable[str], since: Time, until: Time) -> list[Time]:
    """Return every moment in between at which a rule can decide differently without a new entry.

    Rules compare the time with the times in `values` (rows in canonical JSON), or with such a time plus a duration of
    the policy, which is in seconds and in a row, too. The millisecond after each moment is included, because some
    rules include the moment itself and some do not.
    """
    texts = list(values)
    times = {time for text in texts for time in _TIME.findall(text)}
    durations = {0, *(int(length) for text in texts for length in _LENGTH.findall(text))}
    first, last = _count_ms(since), _count_ms(until)
    begun = [_count_ms(time) for time in times if time < until]
    moments = {begin + 1_000 * length for begin in begun for length in durations}
    moments = {moment for moment in moments if first <= moment < last}
    moments |= {moment + 1 for moment in moments}
    return [encode_time(_EPOCH + moment * _MILLISECOND) for moment in sorted(moments) if first < moment < last]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def _count_ms(time: Time) -> int:
    """Return the milliseconds since 1970. Integers are added faster than times."""
    return (parse_time(time) - _EPOCH) // _MILLISECOND


def is_same(one: UnitAccess, other: UnitAccess) -> bool:
    """Return True if both results allow the same adapters by the same decisions.

    The moment, the contents of slots, and adapters that no release named are not compared.
    """
    return _summarise(one) == _summarise(other)


def _summarise(answer: UnitAccess) -> tuple[object, ...]:
    served_models = tuple(
        (model.served_model, model.effective_access, model.release.index, _summarise_candidate(model.candidate))
        for model in answer.served_models
    )
    return served_models, answer.exported


def _summarise_candidate(candidate: AccessCandidate) -> tuple[object, ...]:
    counts = tuple(one.record.index for one in candidate.reviews if one.status.refusal is None)
    return candidate.adapter, counts, tuple(sorted({reason.code for reason in candidate.reasons}))


def describe_answer(answer: UnitAccess | BeforeLog | Span) -> Iterator[str]:
    """Yield lines for people: the adapter that the unit could load for each served model, and the deciding entries."""
    if isinstance(answer, BeforeLog):
        yield f"could load     {answer.unit} at {answer.at}"
        yield f"  nothing: the log begins on {answer.log_begins}"
        return
    if isinstance(answer, Span):
        yield f"could load     {answer.unit} from {answer.since} until {answer.until}"
        for period in answer.periods:
            yield f"  from {period.answer.at}, as of entry {period.as_of}:"
            yield from (f"    {label}: {text}" for label, text in describe_period(period.answer))
        return
    yield f"could load     {answer.unit} at {answer.at}, under policy {answer.policy}"
    if answer.enrolled is None:
        yield "  it was not an enrolled unit at that time"
    for title, facts in describe_access(answer, {}, {}):
        yield f"  {title}"
        yield from (f"    {label}: {text}" for label, text in facts)


def describe_period(answer: UnitAccess) -> Iterator[tuple[str, str]]:
    """Yield each served model with what could be loaded and its approvals, or one reason why nothing could."""
    for model in answer.served_models:
        adapter, release = model.candidate.adapter, model.release
        if not model.effective_access:
            yield model.served_model, f"could not load {adapter}: {model.candidate.reasons[0]}"
            continue
        counted = (one.record for one in model.candidate.reviews if one.status.refusal is None)
        approvals = [f"{r.reviewer} ({r.review_function}), entry {r.index}" for r in counted if r.approves]
        released = f"released by {release.signer}, entry {release.index}"
        text = f"could load {adapter}; {released}; approved by {', '.join(approvals) or 'nobody'}"
        yield model.served_model, text
    for export in answer.exported:
        source = f"from an exported folder, entry {export.index}, until {export.valid_until}"
        yield export.served_model, f"could load {export.adapter} {source}"
    if not answer.served_models and not answer.exported:
        yield "nothing", "no adapter was released to it"


Facts = list[tuple[str, str]]
"""Labels and texts."""


def describe_access(
    answer: UnitAccess, names: Mapping[str, str], times: Mapping[int, str]
) -> Iterator[tuple[str, Facts]]:
    """Yield a title and facts for each served model, each exported folder and each other adapter.

    `names` has the known printed names by their commitments, and `times` the known times of entries.
    """

    def entry(index: int) -> str:
        return f"entry {index}, {times[index]}" if index in times else f"entry {index}"

    def describe_candidate(candidate: AccessCandidate) -> Facts:
        facts = [("manifest", f"{candidate.manifest}, sealed by entry {candidate.sealed}")]
        for one in candidate.reviews:
            review, refusal = one.record, one.status.refusal
            printed = names.get(one.printed_name or "")
            who = review.reviewer if printed is None else f"{review.reviewer} ({printed})"
            until = "" if review.valid_until is None else f", until {review.valid_until}"
            invalid = "" if refusal is None else f"; no longer valid: {refusal}"
            decided = {"approve": "approved", "reject": "rejected"}.get(review.decision, review.decision)
            text = f"{entry(review.index)}, by {who}, for {review.review_function}{until}{invalid}"
            facts.append((decided, text))
        return facts + [("refused", str(reason)) for reason in candidate.reasons]

    for model in answer.served_models:
        release, verb = model.release, "could load" if model.effective_access else "could not load"
        released = ("released", f"{entry(release.index)}, {release.kind} by {release.signer}")
        loaded = ("was loaded", _describe_loaded(model.slot))
        yield (
            f"{model.served_model}: {verb} {model.candidate.adapter}",
            [released, *describe_candidate(model.candidate), loaded],
        )
    for export in answer.exported:
        yield (
            f"{export.served_model}: could load {export.adapter} until {export.valid_until} from an exported folder, "
            f"entry {export.index}; no revocation reaches it",
            [("manifest", export.manifest), ("exported", entry(export.index))],
        )
    for other in answer.others:
        yield f"not released: could not load {other.adapter}", describe_candidate(other)
    if not answer.served_models and not answer.others:
        yield "nothing: no adapter was released to it or approved for it", []


def _describe_loaded(slot: Slot | None) -> str:
    if slot is None:
        return "nothing"
    if slot.loaded is None:
        return f"not yet: {slot.adapter} was admitted by entry {slot.admitted}"
    return f"{slot.adapter}, entry {slot.loaded}, admitted by entry {slot.admitted}"
