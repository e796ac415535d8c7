"""The effective access of a unit during a span: the answer at its beginning, and each later one that differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from appliance.api.log import AccessPeriods
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.state import State
from appliance.domain.queries.effective_access import ACCESS_KINDS, UnitAccess, effective_access
from appliance.domain.queries.periods import dates_between, is_same
from appliance.domain.queries.rows import put_rows
from appliance.errors import BadInput
from appliance.store.ledger.past import Ids, ValueSpan, changed_entries, values_between
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.questions import add_evidence, find_moment, unit_state

MAX_MOMENTS = 400
"""Most moments at which one question about a span is answered."""
MOMENTS_OF_A_PIECE = 32
"""Most moments of a piece."""
MOST_EVALUATIONS = 128
"""Most evaluations of a release for one page; each takes about 0.4 ms. A unit has one for each release and moment."""
MOST_CHANGES = 100
"""Most entries that change a row in one piece."""

Moment = tuple[int, str]
"""The last entry of a moment, and the time that the rules use."""


@dataclass(frozen=True)
class _Span:
    """A span of entries and of times."""

    first: int
    begin: str
    last: int
    end: str


def effective_access_between(context: LedgerContext, unit: str, since: str, until: str | None) -> AccessPeriods:
    """Return the effective access during a span. It is computed after each relevant entry and at each relevant date.

    Raises:
        BadInput: There are more than MAX_MOMENTS such moments, or the span is empty.
    """
    span = _parse_span(context, since, until)
    _check_size(context, unit, span)
    rows = _read_rows(context, unit, span)
    changed, dates = _find_changes(rows, span), dates_between([row.value for row in rows], span.begin, span.end)
    if len(changed) + len(dates) > MAX_MOMENTS:
        raise _too_long(f"{len(changed)} entries and {len(dates)} dates")
    periods = []
    for index, answer in _find_differing(context, unit, rows, _list_moments(context, span, changed, dates)):
        whole = effective_access(unit_state(context, unit, index)[0], unit, answer.at)
        periods.append(add_evidence(context, whole, index))
    return AccessPeriods(unit=unit, since=span.begin, until=span.end, periods=tuple(periods))


def _check_size(context: LedgerContext, unit: str, span: _Span) -> None:
    """Raise BadInput if the entries alone are more than MAX_MOMENTS. No row is read.

    Changes of adapters are not counted, because reviews for other units change an adapter's row and no answer.
    """
    kinds = [kind for kind in ACCESS_KINDS if kind != "adapter"]
    ids, most = _find_released(context, unit, span), MAX_MOMENTS
    count = partial(changed_entries, after=span.first, last=span.last, kinds=kinds, unit=unit, ids=ids, most=most)
    if len(context.ledger.ask(count)) > most:
        raise _too_long("more")


def _too_long(got: str) -> BadInput:
    expected = f"expected at most {MAX_MOMENTS} moments at which an answer may change, got {got}"
    return BadInput(f"span: {expected}; ask about a shorter one")


def effective_access_piece(
    context: LedgerContext, unit: str, since: str, until: str | None, most: int
) -> tuple[list[tuple[int, UnitAccess]], str | None]:
    """Return the differing answers of at most `most` moments, each with its last entry, and the beginning of the next
    piece.

    Adapters that no release named are left out. The beginning is an entry or a time, or None after the last piece.
    """
    span = _parse_span(context, since, until)
    ids, last = _find_released(context, unit, span), span.last
    ask = partial(changed_entries, after=span.first, last=last, kinds=ACCESS_KINDS, unit=unit, ids=ids)
    found = sorted(context.ledger.ask(partial(ask, most=MOST_CHANGES)))
    cut = found[MOST_CHANGES] if len(found) > MOST_CHANGES else None
    following = None if cut is None else str(cut)
    if cut is not None:
        span = _Span(span.first, span.begin, cut - 1, _time_of(context, cut))
    rows = _read_rows(context, unit, span)
    changed, dates = _find_changes(rows, span), dates_between([row.value for row in rows], span.begin, span.end)
    moments = _list_moments(context, span, sorted(changed)[:most], dates[:most])
    if len(moments) > most:
        index, time = moments[most]
        following = str(index) if index in changed and time == _time_of(context, index) else time
    return list(_find_differing(context, unit, rows, moments[:most])), following


def effective_access_periods(
    context: LedgerContext, unit: str, since: str, until: str | None, most: int
) -> tuple[list[tuple[int, UnitAccess]], str | None]:
    """Return at most `most` answers, each of which differs from the one before, and the moment of the next one, or
    None.

    The first answer is that of the span's beginning. Moments before the unit's first release are skipped, because
    the unit has no access then. If the answer stays the same for MOST_EVALUATIONS, the result ends early, with the
    moment at which to continue.
    """
    found: list[tuple[int, UnitAccess]] = []
    following: str | None = since
    span, first = _parse_span(context, since, until), _find_first_release(context, unit)
    if first is None or span.first < first:
        found, _ = effective_access_piece(context, unit, since, until, 1)
        following = None if first is None or first > span.last else str(first)
    if following is None:
        return found, None
    releases = sum(release.unit == unit for release in context.ledger.state.releases.values())
    moments = max(1, MOST_EVALUATIONS // max(1, releases) - len(found))
    size = min(moments, MOMENTS_OF_A_PIECE)
    for _ in range(moments // size):
        assert following is not None
        piece, following = effective_access_piece(context, unit, following, until, size)
        is_repeated = bool(found) and is_same(piece[0][1], found[-1][1])
        found += piece[is_repeated:]
        if len(found) > most:
            index, answer = found[most]
            return found[:most], str(index) if answer.at == _time_of(context, index) else answer.at
        if following is None:
            break
    return found, following


def _find_first_release(context: LedgerContext, unit: str) -> int | None:
    """Return the entry of the unit's first release, None if there is none. Exports follow a release."""
    releases = (one for one in context.ledger.state.releases.values() if one.unit == unit)
    return min((release.history[0].index for release in releases), default=None)


def _parse_span(context: LedgerContext, since: str, until: str | None) -> _Span:
    last, end = find_moment(context, until)
    first, begin = find_moment(context, since)
    if last is None or begin >= end:
        raise BadInput(f"since: expected a moment before {end} and after the log's beginning, got {begin}")
    if first is None:
        first, begin = 0, _time_of(context, 0)
    return _Span(first, begin, last, end)


def _time_of(context: LedgerContext, index: int) -> str:
    return parse_entry(context.ledger.entry_bytes(index)).time


def _read_rows(context: LedgerContext, unit: str, span: _Span) -> list[ValueSpan]:
    """Return the rows during the span that decide what the unit may load, with the entries between which they were
    valid.
    """
    wanted = partial(values_between, after=span.first, last=span.last, kinds=ACCESS_KINDS, unit=unit)
    rows = context.ledger.ask(partial(wanted, ids=_find_released(context, unit, span)))
    return list(_merge_rows(_keep_own_reviews(row, unit) if row.kind == "adapter" else row for row in rows))


def _find_released(context: LedgerContext, unit: str, span: _Span) -> Ids:
    """Return the adapters that a release of the unit named during the span, and their datasets.

    Other adapters change no answer.
    """
    state, adapters = context.ledger.state, set[str]()
    for release in state.releases.values():
        if release.unit == unit:
            before = [one.adapter for one in release.history if one.index <= span.first]
            adapters.update(before[-1:])
            adapters.update(one.adapter for one in release.history if span.first < one.index <= span.last)
    rows = (state.adapters.get(name) for name in adapters)
    return {"adapter": adapters, "dataset": {row.dataset for row in rows if row is not None}}


def _keep_own_reviews(row: ValueSpan, unit: str) -> ValueSpan:
    """Return the adapter's row without the reviews for other units, which do not affect this unit."""
    value = json.loads(row.value)
    value["reviews"] = [review for review in value["reviews"] if review["unit"] == unit]
    return row._replace(value=json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _merge_rows(rows: Iterable[ValueSpan]) -> Iterator[ValueSpan]:
    """Yield each value once for the whole time of its validity."""
    ordered = sorted(rows, key=lambda row: (row.kind, row.id, row.since))
    for _, versions in groupby(ordered, key=lambda row: (row.kind, row.id)):
        before: ValueSpan | None = None
        for row in versions:
            if before is not None and (before.until, before.value) == (row.since, row.value):
                before = before._replace(until=row.until)
                continue
            if before is not None:
                yield before
            before = row
        if before is not None:
            yield before


def _find_changes(rows: list[ValueSpan], span: _Span) -> set[int]:
    """Return the entries of the span that changed a row."""
    at = (index for row in rows for index in (row.since, row.until) if index is not None)
    return {index for index in at if span.first < index <= span.last}


def _list_moments(context: LedgerContext, span: _Span, changed: Iterable[int], dates: Iterable[str]) -> list[Moment]:
    """Return the moments of the beginning, of each entry and of each date, in their order."""
    moments = {(index, _time_of(context, index)) for index in changed}
    for date in dates:
        index, time = find_moment(context, date)
        moments |= set() if index is None else {(index, time)}
    return [(span.first, span.begin), *sorted(moments)]


def _find_differing(
    context: LedgerContext, unit: str, rows: list[ValueSpan], moments: list[Moment]
) -> Iterator[tuple[int, UnitAccess]]:
    """Yield the first answer and each that differs from the one before. Only adapters of the unit's releases count."""
    before: UnitAccess | None = None
    for index, now, state in _replay_moments(context, rows, moments):
        answer = effective_access(state, unit, now, others=False)
        if before is None or not is_same(answer, before):
            yield index, answer
        before = answer


def _replay_moments(
    context: LedgerContext, rows: list[ValueSpan], moments: list[Moment]
) -> Iterator[tuple[int, str, State]]:
    """Yield each moment with the state after its entry. The state is the same object each time."""
    state, at = State(), -1
    begun, ended = sorted(rows, key=lambda row: row.since), [row for row in rows if row.until is not None]
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
