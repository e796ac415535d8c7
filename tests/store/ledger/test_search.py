"""Finding entries: every filter, combined, page by page, in the order of the log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from appliance.domain.core.entry import parse_entry
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.engine import open_engine
from appliance.store.ledger import search, search_index
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.search import Filters, find_entries
from appliance.store.ledger.search_index import PartialBlock
from tests.kit.small_log import START, SmallLog, heartbeat, refusal
from tests.store.conftest import Databases

ORDERS = 6


@pytest.fixture(scope="module")
def log(shared_engine: Engine, site: SmallLog) -> Iterator[Ledger]:
    ledger = site.open_ledger(shared_engine)
    ledger.append(site.first_draft())
    for turn in range(ORDERS):
        ledger.append(heartbeat())
        ledger.append(refusal("legal" if turn % 2 else "treasury"))
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    yield ledger
    ledger.close()


def minute(seconds: int) -> str:
    return encode_time(START + timedelta(seconds=seconds))


FILTERS: list[Filters] = [
    {},
    {"types": ["heartbeat"]},
    {"types": ["heartbeat", "order.pending"]},
    {"types": ["heartbeat", "request.refused"], "actor": "legal"},
    {"actor": "legal"},
    {"actor": "alice"},
    {"outcome": "denied"},
    {"outcome": "pending"},
    {"unit": "treasury"},
    {"subjects": ["unit:legal"]},
    {"subjects": ["principal:carol"]},
    {"subjects": ["principal:carol", "principal:nobody"]},
    {"subjects": ["principal:nobody"]},
    {"types": ["request.refused"], "unit": "legal"},
    {"types": ["request.refused", "heartbeat"], "subjects": ["unit:legal"]},
    {"types": ["heartbeat"], "unit": "legal"},
    {"types": ["heartbeat"], "outcome": "success"},
    {"types": ["request.refused"], "actor": "legal", "subjects": ["unit:treasury"]},
    {"types": ["request.refused"], "actor": "legal", "subjects": ["unit:legal"], "outcome": "denied"},
    {"subjects": ["principal:carol"], "outcome": "pending"},
    {"subjects": ["unit:legal"], "types": ["request.refused"], "actor": "legal", "outcome": "denied"},
    {"since": minute(5)},
    {"until": minute(5)},
    {"since": minute(3), "until": minute(9)},
    {"since": minute(9), "until": minute(3)},
    {"since": minute(10_000)},
    {"until": minute(10_000)},
    {"since": minute(4), "types": ["heartbeat"], "after": 7},
    {"before": 9, "types": ["heartbeat"]},
    {"before": 0},
    {"after": 4, "before": 5},
    {"subjects": ["unit:legal"], "since": minute(4), "until": minute(11)},
]


@pytest.mark.thorough
@pytest.mark.family(keep=48)
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_find_gives_what_reading_everything_gives(
    log: Ledger, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_FEW", 1)
    expected, after, before = [], filters.get("after"), filters.get("before")
    for data in log.entries():
        entry = parse_entry(data)
        units = [name.removeprefix("unit:") for name in entry.subjects if name.startswith("unit:")]
        wanted = (
            ("types" not in filters or entry.type in filters["types"])
            and filters.get("actor") in (None, entry.actor)
            and filters.get("outcome") in (None, entry.outcome)
            and ("unit" not in filters or filters["unit"] in units)
            and set(filters.get("subjects", ())) <= set(entry.subjects)
            and str(filters.get("since", "")) <= entry.time
            and ("until" not in filters or entry.time < str(filters["until"]))
            and (after is None or entry.index > after)
            and (before is None or entry.index < before)
        )
        if wanted:
            expected.append((entry.index, data))
    assert log.find(**filters) == expected
    backwards = filters.copy()
    backwards["newest"] = True
    assert log.find(**backwards) == expected[::-1]
    for newest, bound in ((False, "after"), (True, "before")):
        paged: list[tuple[int, bytes]] = []
        query = Filters(**{**filters, "limit": 2, "newest": newest})
        while page := log.find(**query):
            assert len(page) <= 2
            paged += page
            query[bound] = paged[-1][0]  # type: ignore[literal-required]
        assert paged == (expected[::-1] if newest else expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "filters",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"type": "heartbeat"},
        {"since": "yesterday"},
        {"until": ""},
        {"types": [f"t{n}" for n in range(65)]},
    ],
    ids=str,
)
def test_a_filter_that_makes_no_sense_is_refused(log: Ledger, filters: Filters) -> None:
    with pytest.raises(BadInput):
        log.find(**filters)


SEARCHES = [Filters(**{**filters, "newest": newest}) for filters in FILTERS for newest in (False, True)]


@pytest.fixture
def frequent(databases: Databases, site: SmallLog, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sixty entries in as many blocks, most of them heartbeats."""
    monkeypatch.setattr(search_index, "BLOCK", 1)
    path = databases.filled("sqlite", "frequent", lambda url: fill(site, url))
    return f"sqlite:///{path}"


def fill(site: SmallLog, url: str) -> None:
    ledger = site.open_ledger(open_engine(url))
    ledger.append(site.first_draft())
    for turn in range(60):
        ledger.append(refusal("legal") if turn % 10 == 9 else heartbeat())
    ledger.close()


@pytest.mark.family(keep=24)
@pytest.mark.parametrize("filters", SEARCHES, ids=str)
def test_a_search_sorts_nothing_and_reads_nothing_whole(frequent: str, filters: Filters) -> None:
    engine = open_engine(frequent)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        query: list[str] = []
        driver.set_trace_callback(query.append)
        find_entries(connection, PartialBlock(), filters)
        driver.set_trace_callback(None)
        selects = [statement for statement in query if statement.startswith("SELECT")]
        plans = [str(row[3]) for one in selects for row in driver.execute(f"EXPLAIN QUERY PLAN {one}")]
    engine.dispose()
    assert selects
    assert not [plan for plan in plans if "TEMP B-TREE" in plan or plan.startswith("SCAN")]


def test_a_page_of_what_is_frequent_reads_few_blocks(frequent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixty blocks no more than the page needs, and all of them only where nothing is found."""
    read: list[int] = []
    bits = search.read_bits

    def note(connection: Any, key: str, first: int, last: int) -> list[tuple[int, bytes]]:
        read.append(last - first + 1)
        return bits(connection, key, first, last)

    monkeypatch.setattr(search, "read_bits", note)
    engine = open_engine(frequent)
    with engine.connect() as connection:
        for newest in (False, True):
            assert (
                len(find_entries(connection, PartialBlock(), {"types": ["heartbeat"], "limit": 5, "newest": newest}))
                == 5
            )
            assert read == [search._FEW]
            read.clear()
        assert not find_entries(connection, PartialBlock(), {"subjects": ["unit:nobody"]})
        assert sum(read) == 61
    engine.dispose()
