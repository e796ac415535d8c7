"""The state as of any entry is what replaying the log up to that entry gives. On SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from sqlalchemy import Engine

from appliance.domain.actions.apply import apply
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.core.state import UNPROJECTED, State
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.queries.effective_access import (
    BeforeLog,
    UnitAccess,
    effective_access,
    effective_access_then,
    list_reviewed_adapters,
)
from appliance.domain.queries.rows import MODELS, state_of
from appliance.errors import BadInput, NotFound
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.past import (
    ValueSpan,
    Window,
    count_requests,
    last_at,
    unit_state_at,
    values_at,
)
from scripts.kit.log_builder import LogBuilder, stage
from tests.store.retold import retell


@pytest.fixture(scope="module")
def told() -> LogBuilder:
    """Return a site that was served, exported, restarted and exported again, with a lost role and a second version."""
    site = stage("serving")
    site.add(site.answered(2), outcome="interrupted")
    for number, outcome in ((3, "failure"), (4, "success"), (5, "interrupted"), (6, "success")):
        site.add(site.request(number))
        site.add(site.answered(number), outcome=outcome)
    site.export(valid_until=add_seconds(site.now, 3))
    site.export()
    site.add(site.request(7))
    site.add(ServiceStarted(version="1", code="sha256:" + "0" * 64, layers={}, process=None, epoch=None))
    site.load()
    site.export()
    site.revoke("raul")
    site.add(site.unloaded())
    site.seal(site.train(), version=2)
    return site


@pytest.fixture(scope="module")
def past(shared_engine: Engine, told: LogBuilder) -> Iterator[Ledger]:
    ledger = retell(shared_engine, told)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def access(told: LogBuilder) -> list[UnitAccess | BeforeLog]:
    """Return the unit's effective access at each entry, as a replay of the log gives it."""
    times = [parse_entry(data).time for data in told.entries]
    return [
        effective_access_then(lambda: told.entries, told.documents.get, "legal", str(index), now)[0]
        for index, now in enumerate(times)
    ]


def folds(site: LogBuilder) -> Iterator[State]:
    """Yield the state after each entry. It is one object that changes."""
    state = State()
    for data in site.entries:
        entry = parse_entry(data)
        apply(state, entry, {role: site.documents[digest] for role, digest in entry.documents.items()})
        yield state


def unit_state(past: Ledger, index: int) -> State:
    reviewed = list_reviewed_adapters(past.state, "legal", index)
    return past.ask(lambda connection: unit_state_at(connection, index, "legal", reviewed))[0]


def projected(state: State) -> list[tuple[str, str, object]]:
    return sorted((kind, key, value) for kind, key, value in state.projections() if kind not in UNPROJECTED)


@pytest.mark.thorough
def test_the_state_as_of_every_entry_is_the_fold_up_to_it(past: Ledger, told: LogBuilder) -> None:
    for index, state in enumerate(folds(told)):
        values = past.ask(lambda connection, at=index: values_at(connection, at, MODELS))
        found = state_of(((one.kind, one.id, one.value) for one in values), index + 1, state.last_time)
        assert projected(found) == projected(state)
        evaluated = unit_state(past, index)
        assert (evaluated.size, evaluated.last_time) == (state.size, state.last_time)
        assert effective_access(evaluated, "legal", state.last_time) == effective_access(
            state, "legal", state.last_time
        )
    assert past.check_projections() == []


@pytest.mark.thorough
def test_windows_of_what_no_release_named_make_the_whole_answer(engine: Engine, told: LogBuilder) -> None:
    site = told.fork()
    for version in (2, 3, 4):
        if version > 2:
            site.seal(site.train(), version=version)
        site.review("rita", "privacy", version)
    with closing(retell(engine, site)) as ledger:
        for index in (len(told.entries) - 1, len(site.entries) - 3, len(site.entries) - 1):
            reviewed = list_reviewed_adapters(ledger.state, "legal", index)
            now = parse_entry(site.entries[index]).time
            whole = effective_access(unit_state(ledger, index), "legal", now)
            found, place = [], ""
            for _ in range(len(whole.others) + 1):
                ask = partial(unit_state_at, index=index, unit="legal", reviewed=reviewed, window=Window(place, 1))
                state, following = ledger.ask(ask)
                answer = effective_access(state, "legal", now)
                assert answer.served_models == whole.served_models
                found += answer.others
                if following is None:
                    break
                place = following
            assert tuple(found) == whole.others
        assert len(whole.others) == 3


def test_an_adapter_that_was_reviewed_for_another_unit_alone_is_not_read(past: Ledger, told: LogBuilder) -> None:
    index = len(told.entries) - 1
    state, _ = past.ask(
        partial(unit_state_at, index=index, unit="sales", reviewed=list_reviewed_adapters(past.state, "sales", index))
    )
    assert len(state.adapters) == len(state.datasets) == 0


@pytest.mark.thorough
def test_an_export_is_told_of_from_rows_as_from_the_fold(
    past: Ledger, told: LogBuilder, access: list[UnitAccess | BeforeLog]
) -> None:
    """Of every moment: by its number, before its entry and after its date, and after the row is gone."""
    seen = set()
    for index, data in enumerate(told.entries):
        answer = effective_access(unit_state(past, index), "legal", parse_entry(data).time)
        assert answer == access[index]
        assert {one.index for one in answer.exported} <= set(answer.rests_on)
        seen.add(tuple(one.index for one in answer.exported))
    first, second, third = (e.index for e in map(parse_entry, told.entries) if e.type == "adapter.exported")
    assert seen == {(), (first,), (first, second), (second,), (second, third)}


def test_of_what_belongs_to_units_only_the_one_units_is_read(past: Ledger, told: LogBuilder) -> None:
    last = len(told.entries) - 1
    for unit, found in (("legal", ["legal/labels"]), ("lega", []), ("sales", []), ("l%", []), ("_egal", [])):
        values = past.ask(lambda connection, unit=unit: values_at(connection, last, ["release"], unit))
        assert [value.id for value in values] == found


def test_pages_of_a_kind_are_the_whole_of_it_at_any_entry(past: Ledger, told: LogBuilder) -> None:
    for at in (5, len(told.entries) // 2, len(told.entries) - 1):
        whole = past.ask(lambda connection, at=at: values_at(connection, at, ["key"]))
        paged: list[ValueSpan] = []
        while True:
            after = paged[-1].id if paged else ""
            page = past.ask(
                lambda connection, at=at, after=after: values_at(connection, at, ["key"], past=after, limit=2)
            )
            paged += page
            if len(page) < 2:
                break
        assert paged == whole and len(whole) >= 2
    with pytest.raises(BadInput, match="expected one of"):
        past.ask(lambda connection: values_at(connection, 1, ["wether"], limit=2))


def test_every_kind_that_is_projected_can_be_read_back(told: LogBuilder) -> None:
    assert {table.kind for table in told.state.tables} - UNPROJECTED == set(MODELS)


def test_each_value_says_since_which_entry_it_stands(past: Ledger, told: LogBuilder) -> None:
    sealed, reviewed = (
        [entry.index for entry in map(parse_entry, told.entries) if entry.type == kind]
        for kind in ("adapter.sealed", "review.recorded")
    )
    for at, since in ((sealed[0], sealed[0]), (reviewed[0], reviewed[0]), (sealed[1] - 1, reviewed[1])):
        (adapter,) = past.ask(lambda connection, at=at: values_at(connection, at, ["adapter"]))
        assert (adapter.id, adapter.since) == ("clauses@1", since)


def test_a_time_stands_for_the_last_entry_at_it_or_before_it(past: Ledger, told: LogBuilder) -> None:
    times = [parse_entry(data).time for data in told.entries]
    for index, time in enumerate(times):
        last = max(at for at, other in enumerate(times) if other == time)
        assert past.ask(lambda connection, time=time: last_at(connection, past.partial_block, time)) == last, index
    assert (
        past.ask(lambda connection: last_at(connection, past.partial_block, "2999-01-01T00:00:00.000Z"))
        == len(times) - 1
    )
    assert past.ask(lambda connection: last_at(connection, past.partial_block, "2020-01-01T00:00:00.000Z")) is None


@pytest.mark.thorough
def test_requests_are_counted_as_reading_everything_counts_them(past: Ledger, told: LogBuilder) -> None:
    for size, state in enumerate(folds(told), start=1):
        finished = [entry for entry in map(parse_entry, told.entries[:size]) if entry.type == "request.finished"]
        count = partial(
            count_requests,
            partial_block=past.partial_block,
            adapter="clauses@1",
            size=size,
            open_requests=len(state.requests),
        )
        counted = past.ask(count)
        assert counted.pop("open") == len(state.requests)
        outcomes = {"answered": "success", "failure": "failure", "interrupted": "interrupted"}
        ended = {name: sum(entry.outcome == outcome for entry in finished) for name, outcome in outcomes.items()}
        assert counted == ended, f"at size {size}"


def test_an_entry_or_a_kind_that_is_none_is_refused(past: Ledger, told: LogBuilder) -> None:
    with pytest.raises(NotFound):
        unit_state(past, len(told.entries))
    with pytest.raises(BadInput, match="expected one of site, principal"):
        past.ask(lambda connection: values_at(connection, 0, ["order"]))
