"""Counts of a search by type, actor, outcome, unit and subject are those that counting its entries gives."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from appliance.domain.core.entry import Entry, parse_entry
from appliance.store.ledger import search, search_index
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.search import Count, Totals, count_by
from scripts.kit.log_builder import LogBuilder, stage
from tests.store.retold import retell

pytestmark = pytest.mark.thorough

SEARCHES: tuple[dict[str, Any], ...] = (
    {},
    {"types": ["review.recorded", "request.admitted"]},
    {"actor": "legal"},
    {"outcome": "success"},
    {"outcome": "failure"},
    {"unit": "legal", "subjects": ["adapter:clauses@1"]},
    {"types": ["review.recorded"], "actor": "nobody"},
)


@pytest.fixture(scope="module")
def told() -> LogBuilder:
    site = stage("serving")
    for number in range(3, 30):
        site.add(site.request(number))
        site.add(site.answered(number), outcome=("success", "failure", "interrupted")[number % 3])
    return site


@pytest.fixture(scope="module")
def ledger(shared_engine: Engine, told: LogBuilder) -> Iterator[Ledger]:
    made = retell(shared_engine, told)
    yield made
    made.close()


def values_of(entry: Entry) -> Iterator[tuple[str, str]]:
    yield from (("type", entry.type), ("actor", entry.actor), ("outcome", entry.outcome))
    yield from (("subject", subject) for subject in entry.subjects)
    yield from (("unit", subject.removeprefix("unit:")) for subject in entry.subjects if subject.startswith("unit:"))


def counted(ledger: Ledger, filters: Any, facets: dict[str, list[str]]) -> dict[str, list[Count]]:
    return ledger.ask(lambda connection: count_by(connection, ledger.partial_block, ledger.totals, filters, facets))


def facets_of(site: LogBuilder) -> dict[str, list[str]]:
    every = {pair for data in site.entries for pair in values_of(parse_entry(data))} | {("actor", "nobody")}
    return {
        name: sorted(value for kind, value in every if kind == name)
        for name in ("type", "actor", "outcome", "unit", "subject")
    }


def test_counts_are_those_of_the_entries_that_fit(ledger: Ledger, told: LogBuilder) -> None:
    facets = facets_of(told)
    for filters in SEARCHES:
        found = counted(ledger, {**filters, "limit": 3, "newest": True, "before": 9}, facets)
        fitting = [parse_entry(data) for _, data in ledger.find(**filters, limit=1_000)]
        expected = Counter(itertools.chain.from_iterable(map(values_of, fitting)))
        assert {(name, one.value): one.count for name, ones in found.items() for one in ones} == dict(expected)
        assert not any(one.is_least for ones in found.values() for one in ones)
        for ones in found.values():
            assert ones == sorted(ones, key=lambda one: (-one.count, one.value))


def test_the_whole_log_s_counts_go_on_with_the_log_and_read_no_block_twice(
    ledger: Ledger, told: LogBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    facets = {"type": ["heartbeat", "request.admitted"], "actor": ["legal"]}
    before = counted(ledger, {}, facets)
    read: list[tuple[int, int]] = []
    real = search.read_bits
    monkeypatch.setattr(
        search, "read_bits", lambda c, key, low, high: read.append((low, high)) or real(c, key, low, high)
    )
    assert counted(ledger, {}, facets) == before and read == []
    assert counted(ledger, {}, facets) == ledger.ask(
        lambda connection: count_by(connection, ledger.partial_block, Totals(), {}, facets)
    )


def test_a_search_that_continues_beyond_the_blocks_that_are_counted_says_at_least(
    engine: Engine, told: LogBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "BLOCK", 1)
    monkeypatch.setattr(search, "MOST_BLOCKS", 5)
    ledger = retell(engine, told)
    found = counted(ledger, {"unit": "legal"}, {"type": ["request.admitted", "request.finished"]})
    assert sum(one.count for one in found["type"]) == 5 and all(one.is_least for one in found["type"])
    ledger.close()
