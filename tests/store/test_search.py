"""Finding entries: every filter, combined, page by page, in the order of the log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from appliance.domain.entry import parse_entry
from appliance.errors import BadInput
from appliance.formats.timestamp import encode_time
from appliance.store import search
from appliance.store.engine import open_engine
from appliance.store.ledger import Ledger
from appliance.store.search import Filters, find_entries, plan_search, span
from tests.store.conftest import Databases
from tests.store.site import START, Site, heartbeat, refusal

ORDERS = 6


@pytest.fixture
def log(ledger: Ledger, site: Site) -> Ledger:
    for turn in range(ORDERS):
        ledger.append(heartbeat())
        ledger.append(refusal("legal" if turn % 2 else "treasury"))
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    return ledger


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


ENOUGH = pytest.mark.parametrize("enough", [20_000, 1], ids=["one leads", "all are frequent"])


@ENOUGH
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_find_gives_what_reading_everything_gives(
    log: Ledger, filters: Filters, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_ENOUGH", enough)
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
        asked = Filters(**{**filters, "limit": 2, "newest": newest})
        while page := log.find(**asked):
            assert len(page) <= 2
            paged += page
            asked[bound] = paged[-1][0]  # type: ignore[literal-required]
        assert paged == (expected[::-1] if newest else expected)


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


@pytest.fixture(scope="module")
def frequent(databases: Databases, site: Site) -> str:
    """Some thousand entries, most of them heartbeats, so that a search has something to choose."""
    path = databases.filled("sqlite", "frequent", lambda url: fill(site, url))
    return f"sqlite:///{path}"


def fill(site: Site, url: str) -> None:
    ledger = site.open_ledger(open_engine(url))
    ledger.append(site.first_draft())
    for turn in range(60):
        ledger.append(refusal("legal") if turn % 10 == 9 else heartbeat())
    ledger.close()


@ENOUGH
@pytest.mark.parametrize("filters", SEARCHES, ids=str)
def test_a_search_walks_an_index_in_the_logs_order(
    frequent: str, filters: Filters, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sorting, and no reading of the whole log for a rare thing. PostgreSQL's planner wants a large table first."""
    monkeypatch.setattr(search, "_ENOUGH", enough)
    engine = open_engine(frequent)
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        find_entries(connection, filters)
        event.remove(engine, "before_cursor_execute", note)
        plans = [
            str(row[3])
            for statement, parameters in asked
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    engine.dispose()
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]
    assert not [plan for plan in plans if plan.startswith("SCAN entr")]


TWO_TYPES = ("type=request.refused", "type=appliance.initialized")
LEADING: list[tuple[Filters, tuple[str | None, ...]]] = [
    ({"types": ["heartbeat"], "outcome": "denied"}, ("outcome=denied",)),
    ({"types": ["request.refused"], "outcome": "success"}, ("type=request.refused",)),
    ({"types": ["heartbeat"], "unit": "legal"}, ("unit:legal",)),
    ({"types": ["request.refused", "appliance.initialized"], "actor": "service"}, TWO_TYPES),
    ({"types": ["request.refused", "appliance.initialized"], "outcome": "success"}, TWO_TYPES),
    ({"actor": "service", "subjects": ["unit:legal"]}, ("unit:legal",)),
    ({"actor": "service", "outcome": "success", "after": 50, "before": 58}, (None,)),
    ({"actor": "service", "subjects": ["unit:nobody"]}, ()),
]


@pytest.mark.parametrize(("filters", "leads"), LEADING, ids=str)
def test_the_rarest_filter_leads(frequent: str, filters: Filters, leads: tuple[str | None, ...]) -> None:
    """Heartbeats are frequent and refusals are rare: whichever is asked for first, the page walks the rarer ones, and
    the log itself where its part is no longer than what an index would lead to."""
    engine = open_engine(frequent)
    with engine.connect() as connection:
        walks = plan_search(connection, filters, *span(connection, filters)).walks
    engine.dispose()
    assert tuple(walk.key for walk in walks) == leads
