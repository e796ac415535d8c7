"""Finding entries: every filter, combined, page by page, in the order of the log."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from appliance.domain.entry import parse_entry
from appliance.errors import BadInput
from appliance.formats.timestamp import encode_time
from appliance.store.engine import open_engine
from appliance.store.ledger import Ledger
from appliance.store.search import Filters
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
    {"type": "heartbeat"},
    {"actor": "legal"},
    {"actor": "alice"},
    {"outcome": "denied"},
    {"outcome": "pending"},
    {"unit": "treasury"},
    {"subject": "unit:legal"},
    {"subject": "principal:carol"},
    {"subject": "principal:nobody"},
    {"type": "request.refused", "unit": "legal"},
    {"type": "heartbeat", "unit": "legal"},
    {"subject": "principal:carol", "outcome": "pending"},
    {"subject": "unit:legal", "type": "request.refused", "actor": "legal", "outcome": "denied"},
    {"since": minute(5)},
    {"until": minute(5)},
    {"since": minute(3), "until": minute(9)},
    {"since": minute(9), "until": minute(3)},
    {"since": minute(10_000)},
    {"until": minute(10_000)},
    {"since": minute(4), "type": "heartbeat", "after": 7},
    {"subject": "unit:legal", "since": minute(4), "until": minute(11)},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_find_gives_what_reading_everything_gives(log: Ledger, filters: Filters) -> None:
    expected = []
    for data in log.entries():
        entry = parse_entry(data)
        units = [name.removeprefix("unit:") for name in entry.subjects if name.startswith("unit:")]
        wanted = (
            filters.get("type") in (None, entry.type)
            and filters.get("actor") in (None, entry.actor)
            and filters.get("outcome") in (None, entry.outcome)
            and ("unit" not in filters or filters["unit"] in units)
            and ("subject" not in filters or filters["subject"] in entry.subjects)
            and str(filters.get("since", "")) <= entry.time
            and ("until" not in filters or entry.time < str(filters["until"]))
            and entry.index > (filters.get("after") if filters.get("after") is not None else -1)
        )
        if wanted:
            expected.append((entry.index, data))
    assert log.find(**filters) == expected
    paged: list[tuple[int, bytes]] = []
    while page := log.find(**{**filters, "limit": 2, "after": paged[-1][0] if paged else filters.get("after")}):
        assert len(page) <= 2
        paged += page
    assert paged == expected


@pytest.mark.parametrize("filters", [{"limit": 0}, {"limit": 10_001}, {"since": "yesterday"}, {"until": ""}])
def test_a_filter_that_makes_no_sense_is_refused(log: Ledger, filters: Filters) -> None:
    with pytest.raises(BadInput):
        log.find(**filters)


@pytest.mark.parametrize("filters", [item for item in FILTERS if item], ids=str)
def test_a_search_walks_an_index_in_the_logs_order(sqlite_path: Path, site: Site, filters: Filters) -> None:
    """No sorting, and no reading of the whole log for a rare thing. PostgreSQL's planner wants a large table first."""
    engine = open_engine(f"sqlite:///{sqlite_path}")
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    ledger.find(**filters)
    event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        plans = [
            str(row[3])
            for statement, parameters in asked
            if statement.startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    ledger.close()
    assert plans and not [plan for plan in plans if "TEMP B-TREE" in plan]
    if set(filters) - {"until"}:
        assert not [plan for plan in plans if plan.startswith("SCAN")]
