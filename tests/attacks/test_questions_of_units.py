"""A unit's questions cost what the unit may read, however many entries other units have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.unit_reading import find_unit_reader
from appliance.workflows.queries.log import LogFilters, search
from tests.kit.service import running

REQUESTS = 40


@pytest.mark.parametrize("newest", [False, True])
def test_a_search_reads_no_requests_of_another_unit_to_the_same_adapter(
    home: Path, monkeypatch: pytest.MonkeyPatch, newest: bool
) -> None:
    """The units share the adapter, so the entries are about something that this unit may read about."""
    with running("serving", home) as service:
        service.site.review("rita", "privacy", unit="sales")
        for number in range(100, 100 + REQUESTS):
            service.site.add(service.site.request(number))
        ledger, reader = service.context.ledger, find_unit_reader(service.context.ledger.state, "sales")
        assert reader is not None and "adapter:clauses@1" in reader.chain
        find, read = ledger.find, list[Any]()

        def counting(**filters: Any) -> list[tuple[int, bytes]]:
            read.append(find(**filters))
            return read[-1]

        monkeypatch.setattr(ledger, "find", counting)
        theirs = search(service.context, LogFilters(unit="legal", limit=1, newest=newest), reader)
        assert theirs.entries == []
        own = search(service.context, LogFilters(limit=500, newest=newest), reader).entries
        assert {parse_entry(data).type for _, data in own} >= {
            "adapter.sealed",
            "principal.enrolled",
            "review.recorded",
        }
        assert not any(b"request.admitted" in data for page in read for _, data in page)


def test_a_small_page_needs_few_searches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions about the same adapter for another unit are found by the unit's keys, and not shown."""
    with running("serving", home) as service:
        service.site.review("rita", "privacy", unit="sales")
        for _ in range(REQUESTS):
            service.site.review("rita", "privacy", unit="legal")
        ledger, reader = service.context.ledger, find_unit_reader(service.context.ledger.state, "sales")
        find, calls = ledger.find, list[int]()

        def counting(**filters: Any) -> list[tuple[int, bytes]]:
            calls.append(filters["limit"])
            return find(**filters)

        monkeypatch.setattr(ledger, "find", counting)
        assert search(service.context, LogFilters(unit="legal", limit=1), reader).entries == []
        assert calls == [1, 4, 16, 64]
