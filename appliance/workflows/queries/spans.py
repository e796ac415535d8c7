"""What a unit could load during a span: the answer at its beginning, and each later one that differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.state import State
from appliance.domain.queries.could_load import JUDGED_BY, CouldLoad, could_load
from appliance.domain.queries.periods import dates_between, is_same
from appliance.domain.queries.rows import put_rows
from appliance.errors import BadInput
from appliance.store.ledger.past import Ids, Stood, change_after, values_between
from appliance.workflows.core.context import Context
from appliance.workflows.queries.questions import find_moment, told, unit_state

MAX_MOMENTS = 400
"""How often one question about a span is answered."""
MOST_CHANGES = 100
"""Entries that change a row, in one stretch of a span that is read piece by piece."""

Moment = tuple[int, str]
"""The last entry of it, and the time that rules count with."""


@dataclass(frozen=True)
class _Span:
    first: int
    begin: str
    last: int
    end: str


def could_load_between(context: Context, unit: str, since: str, until: str | None) -> dict[str, Any]:
    """It is asked after each entry that changed what decides, and at each date that the rules count with. BadInput
    where that is more than MAX_MOMENTS times."""
    span = _parse_span(context, since, until)
    stood = _stood(context, unit, span)
    changed, dates = _changes(stood, span), dates_between([row.value for row in stood], span.begin, span.end)
    if len(changed) + len(dates) > MAX_MOMENTS:
        got = f"{len(changed)} entries and {len(dates)} dates"
        raise BadInput(f"span: expected at most {MAX_MOMENTS} moments at which an answer may change, got {got}")
    periods = []
    for index, answer in _differing(context, unit, stood, _moments(context, span, changed, dates)):
        whole = could_load(unit_state(context, unit, index)[0], unit, answer.at)
        periods.append(told(context, whole, index))
    return {"unit": unit, "since": span.begin, "until": span.end, "periods": periods}


def could_load_piece(
    context: Context, unit: str, since: str, until: str | None, most: int
) -> tuple[list[tuple[int, CouldLoad]], str | None]:
    """The same as far as `most` moments go, each with its last entry; without adapters that no release named. Where
    the next piece begins, if there is one: an entry or a time."""
    span = _parse_span(context, since, until)
    cut = context.ledger.ask(
        partial(
            change_after,
            after=span.first,
            last=span.last,
            kinds=JUDGED_BY,
            unit=unit,
            ids=_released(context, unit, span),
            most=MOST_CHANGES,
        )
    )
    following = None if cut is None else str(cut)
    if cut is not None:
        span = _Span(span.first, span.begin, cut - 1, _time_of(context, cut))
    stood = _stood(context, unit, span)
    changed, dates = _changes(stood, span), dates_between([row.value for row in stood], span.begin, span.end)
    moments = _moments(context, span, sorted(changed)[:most], dates[:most])
    if len(moments) > most:
        index, time = moments[most]
        following = str(index) if index in changed and time == _time_of(context, index) else time
    return list(_differing(context, unit, stood, moments[:most])), following


def _parse_span(context: Context, since: str, until: str | None) -> _Span:
    last, end = find_moment(context, until)
    first, begin = find_moment(context, since)
    if last is None or begin >= end:
        raise BadInput(f"since: expected a moment before {end} and after the log's beginning, got {begin}")
    if first is None:
        first, begin = 0, _time_of(context, 0)
    return _Span(first, begin, last, end)


def _time_of(context: Context, index: int) -> str:
    return parse_entry(context.ledger.entry_bytes(index)).time


def _stood(context: Context, unit: str, span: _Span) -> list[Stood]:
    """What stood during the span, as far as it decides what the unit may load."""
    wanted = partial(values_between, after=span.first, last=span.last, kinds=JUDGED_BY, unit=unit)
    rows = context.ledger.ask(partial(wanted, ids=_released(context, unit, span)))
    return list(_merged(_own(row, unit) if row.kind == "adapter" else row for row in rows))


def _released(context: Context, unit: str, span: _Span) -> Ids:
    """The adapters that a release of the unit named during the span, and their datasets: other adapters change no
    answer."""
    state, adapters = context.ledger.state, set[str]()
    for release in state.releases.values():
        if release.unit == unit:
            before = [one.adapter for one in release.history if one.index <= span.first]
            adapters.update(before[-1:])
            adapters.update(one.adapter for one in release.history if span.first < one.index <= span.last)
    rows = (state.adapters.get(name) for name in adapters)
    return {"adapter": adapters, "dataset": {row.dataset for row in rows if row is not None}}


def _own(row: Stood, unit: str) -> Stood:
    """An adapter without other units' reviews, which change no answer about this one."""
    value = json.loads(row.value)
    value["reviews"] = [review for review in value["reviews"] if review["unit"] == unit]
    return row._replace(value=json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _merged(rows: Iterable[Stood]) -> Iterator[Stood]:
    """Each value once for as long as it stood."""
    ordered = sorted(rows, key=lambda row: (row.kind, row.id, row.since))
    for _, versions in groupby(ordered, key=lambda row: (row.kind, row.id)):
        before: Stood | None = None
        for row in versions:
            if before is not None and (before.until, before.value) == (row.since, row.value):
                before = before._replace(until=row.until)
                continue
            if before is not None:
                yield before
            before = row
        if before is not None:
            yield before


def _changes(stood: list[Stood], span: _Span) -> set[int]:
    """The entries of the span that changed a row."""
    at = (index for row in stood for index in (row.since, row.until) if index is not None)
    return {index for index in at if span.first < index <= span.last}


def _moments(context: Context, span: _Span, changed: Iterable[int], dates: Iterable[str]) -> list[Moment]:
    """The beginning, each of these entries and each of these dates, in their order."""
    moments = {(index, _time_of(context, index)) for index in changed}
    for date in dates:
        index, time = find_moment(context, date)
        moments |= set() if index is None else {(index, time)}
    return [(span.first, span.begin), *sorted(moments)]


def _differing(
    context: Context, unit: str, stood: list[Stood], moments: list[Moment]
) -> Iterator[tuple[int, CouldLoad]]:
    """The first answer, and each one that differs from the one before: of what the unit's releases named alone."""
    before: CouldLoad | None = None
    for index, now, state in _through(context, stood, moments):
        answer = could_load(state, unit, now, others=False)
        if before is None or not is_same(answer, before):
            yield index, answer
        before = answer


def _through(context: Context, stood: list[Stood], moments: list[Moment]) -> Iterator[tuple[int, str, State]]:
    """Each moment with the state after its entry, which is one and the same object."""
    state, at = State(), -1
    begun, ended = sorted(stood, key=lambda row: row.since), [row for row in stood if row.until is not None]
    ended.sort(key=lambda row: row.until or 0)
    begin = end = 0
    for index, now in moments:
        if index > at:
            gone, new = [], []
            while end < len(ended) and (ended[end].until or 0) <= index:
                gone.append(ended[end])
                end += 1
            while begin < len(begun) and begun[begin].since <= index:
                new.append(begun[begin])
                begin += 1
            put_rows(state, [(row.kind, row.id, None) for row in gone])
            put_rows(state, [(row.kind, row.id, row.value) for row in new if row.until is None or row.until > index])
            state.size, state.last_time = index + 1, _time_of(context, index)
            at = index
        yield index, now, state
