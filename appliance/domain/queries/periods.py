"""Since when a unit could load what: the moments at which the answer may change, and whether it did."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, Value, add_seconds
from appliance.domain.core.state import State
from appliance.domain.queries.could_load import (
    JUDGED_BY,
    Candidate,
    CouldLoad,
    check_unit_name,
    could_load,
    dated,
    last_at,
)
from appliance.domain.rulebook.apply import apply
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time, parse_time

_TIME = re.compile(r'"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)"')
_LENGTH = re.compile(r'_s":([0-9]+)')


class Period(Value):
    """An answer, which held from its moment until the next period; `as_of`: the entry that it is as of."""

    as_of: int
    answer: CouldLoad


class Span(Value):
    """The answers between two moments, each another than the one before."""

    unit: str
    since: Time
    until: Time
    periods: tuple[Period, ...]


def could_load_during(
    entries: Callable[[], Iterable[bytes]],
    documents: Callable[[str], bytes | None],
    unit: str,
    points: tuple[str, str | None],
    now: Time,
) -> Span:
    """What a log's own bytes say of a span. They are read three times: for the entries' times, for the dates that the
    state names, and for the answers. `points`: since and until, each an entry's number or a time; None or a time to
    come is now. For a log that was verified; BadInput for an unknown unit or a span without a length."""
    times = [dated(data) for data in entries()]
    first, begin = _point(times, points[0], now)
    last, end = _point(times, points[1], now)
    if last is None or begin >= end:
        raise BadInput(f"since: expected a moment before {end} and after the log's beginning, got {begin}")
    if first is None:
        first, begin = 0, times[0][0]
    values = [json.dumps(value, separators=(",", ":")) for value in _values(entries, documents, unit, first, last)]
    dates = defaultdict[int | None, list[Time]](list)
    for date in dates_between(values, begin, end):
        dates[last_at(times, date)].append(date)
    periods: list[Period] = []
    before: CouldLoad | None = None
    for index, state, changes in _states(entries, documents):
        if index > last:
            continue  # the log is read to its end, so that its root can be compared
        asked = [begin] if index == first else [state.last_time] if index > first and changes else []
        for moment in (*asked, *(dates[index] if index >= first else ())):
            answer = could_load(state, unit, moment)
            if before is None or not is_same(answer, before):
                periods.append(Period(as_of=index, answer=answer))
            before = answer
    return Span(unit=unit, since=begin, until=end, periods=tuple(periods))


def _point(times: list[tuple[Time, bool]], at: str | None, now: Time) -> tuple[int | None, Time]:
    if at is not None and at.isdecimal():
        if int(at) >= len(times):
            raise BadInput(f"entry {at}: expected one of the log's entries, got none")
        return int(at), times[int(at)][0]
    moment = now if at is None else min(at, now)
    return last_at(times, moment), moment


Changes = list[tuple[str, str, Mapping[str, Any] | None]]


def _states(
    entries: Callable[[], Iterable[bytes]], documents: Callable[[str], bytes | None]
) -> Iterator[tuple[int, State, Changes]]:
    """The state after each entry, and the rows of it that the entry changed and that decide what may be loaded."""
    state = State()
    for index, data in enumerate(entries()):
        entry = parse_entry(data)
        found = {role: documents(digest) for role, digest in entry.documents.items()}
        apply(state, entry, {role: content for role, content in found.items() if content is not None})
        changes = [change for change in state.take_changes() if change[0] in JUDGED_BY]
        state.keep()
        yield index, state, changes


def _values(
    entries: Callable[[], Iterable[bytes]], documents: Callable[[str], bytes | None], unit: str, first: int, last: int
) -> Iterator[Mapping[str, Any]]:
    """Every value that was in force at some entry of the span; BadInput where no entry of the log enrolled the unit."""
    names: list[str] = []
    for index, state, changes in _states(entries, documents):
        if index == first:
            yield from (value for kind, _, value in state.projections() if kind in JUDGED_BY)
        elif first < index <= last:
            yield from (value for _, _, value in changes if value is not None)
        names = [row.name for row in state.principals.values() if "unit" in row.roles] if changes else names
    check_unit_name(unit, names)


def dates_between(values: Iterable[str], since: Time, until: Time) -> list[Time]:
    """Every moment in between at which a rule may decide otherwise although no entry was appended.

    The rules compare a moment with the times that `values` name (rows in canonical JSON), or with such a time and one
    of the policy's lengths, which are in seconds and are in a row too. The millisecond after each is one, too: some
    rules count a moment itself, some do not.
    """
    texts = list(values)
    times = {time for text in texts for time in _TIME.findall(text)}
    lengths = {0, *(int(length) for text in texts for length in _LENGTH.findall(text))}
    found = {add_seconds(time, length) for time in times if time < until for length in lengths}
    found |= {encode_time(parse_time(time) + timedelta(milliseconds=1)) for time in found if since <= time < until}
    return sorted(time for time in found if since < time < until)


def is_same(one: CouldLoad, other: CouldLoad) -> bool:
    """Whether both say that the same could be loaded by the same decisions. The moment, the engine's slots and adapters
    that no release named do not count."""
    return _gist(one) == _gist(other)


def _gist(answer: CouldLoad) -> tuple[object, ...]:
    tasks = tuple((task.task, task.could_load, task.release.entry, _decided(task.candidate)) for task in answer.tasks)
    return tasks, answer.exported


def _decided(candidate: Candidate) -> tuple[object, ...]:
    counts = tuple(review.entry for review in candidate.reviews if review.against is None)
    return candidate.adapter, counts, tuple(sorted({reason.partition(":")[0] for reason in candidate.reasons}))
