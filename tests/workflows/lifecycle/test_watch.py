"""A running service measures what its alarms compare, and logs them before they stop it."""

from __future__ import annotations

import errno
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.state import State
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import Expiry, Growth
from appliance.errors import Tampered, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.store.database.catalogue import check_catalogue
from appliance.store.files.space import Reserve
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import DatabaseMeasures
from appliance.workflows.lifecycle.running import log_alarms
from appliance.workflows.queries.measures import measure, measure_database, measure_disk
from scripts.kit.log_builder import stage

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GIB = 1 << 30


def context(home: Path, last: datetime = NOW, state: State | None = None) -> Any:
    state = stage("initialized").state if state is None else state
    state.last_time = encode_time(last)
    ledger = SimpleNamespace(
        state=state,
        ask=lambda question: [] if question is check_catalogue else None,
        partial_block=None,
        stored_bytes=lambda: 1000,
        dialect="sqlite",
    )
    return SimpleNamespace(
        clock=lambda: NOW,
        ledger=ledger,
        logs=home / "logs",
        reserve=None,
        contact=Contact(),
        certificates=(),
        stalled=False,
        began=encode_time(NOW - timedelta(hours=1)),
        missing_from_log=[],
        database_measures=DatabaseMeasures(),
        backups=None,
        logged_alarms=frozenset(),
    )


def codes(context: Any) -> list[str]:
    return [alarm.code for alarm in find_alarms(measure(context))]


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the free bytes of a disk of 100 GiB."""

    def set_free(free: int) -> None:
        found = SimpleNamespace(f_frsize=4096, f_bavail=free // 4096, f_blocks=(100 * GIB) // 4096)
        monkeypatch.setattr(os, "statvfs", lambda _: found)

    set_free(50 * GIB)
    return set_free


def test_a_service_in_order_has_no_alarm(tmp_path: Path, space: Any) -> None:
    assert codes(context(tmp_path)) == []


def test_the_disk_is_that_of_the_home(tmp_path: Path, space: Any) -> None:
    space(3 * GIB)
    assert codes(context(tmp_path)) == ["disk-low"]
    space(GIB - 4096)
    assert codes(context(tmp_path)) == ["disk-full"]
    assert measure_disk(tmp_path / "none" / "yet").folder == str(tmp_path)


def test_a_released_reserve_is_an_alarm_and_its_bytes_are_not_free(tmp_path: Path, space: Any) -> None:
    measured = context(tmp_path)
    measured.reserve = Reserve(tmp_path, 256 << 20)
    space(GIB)
    measured.reserve.maintain()
    (alarm, full) = find_alarms(measure(measured))
    assert {alarm.code, full.code} == {"disk-reserve-released", "disk-full"}
    found = measure(measured).disk
    assert found is not None and found.free == GIB - (256 << 20)
    measured.reserve = None
    assert "disk-reserve-released" in codes(measured), "doctor beside the service sees it, too"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_cannot_be_read_is_an_alarm_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "statvfs", refuse)
    (alarm,) = find_alarms(measure(context(tmp_path)))
    assert (alarm.code, os.strerror(number) in alarm.text) == ("disk-unreadable", True)


@pytest.mark.parametrize(("lead_s", "is_on"), [(-5, False), (0, False), (60, False), (61, True), (86_400, True)])
def test_a_clock_that_went_back_further_than_its_skew(tmp_path: Path, space: Any, lead_s: int, is_on: bool) -> None:
    assert codes(context(tmp_path, NOW + timedelta(seconds=lead_s))) == ["clock-behind"] * is_on


def test_what_the_service_holds_in_memory_is_measured(tmp_path: Path, space: Any) -> None:
    measured = context(tmp_path, NOW - timedelta(seconds=200))
    measured.certificates = (Expiry("chain.pem", encode_time(NOW)),)
    measured.missing_from_log = [Tampered("log: expected 9 entries, got 8")]
    measured.contact.end()
    assert set(codes(measured)) == {"certificate-ended", "log-lost", "database-lost", "heartbeat-late"}
    measured.stalled = True
    assert measure(measured).stalled


def test_the_database_is_measured_once_a_minute_and_the_last_values_remain(tmp_path: Path, space: Any) -> None:
    measured = context(tmp_path)
    size = measured.ledger.state.size
    finding = "trigger steal on disclosures: expected none, got one"
    measured.ledger.ask = lambda question: [finding] if question is check_catalogue else size - 3
    measured.database_measures = measure_database(measured)
    expected = DatabaseMeasures((f"database, {finding}",), Growth(2, 2000 // size, True), 1000)
    assert measured.database_measures == expected
    assert codes(measured) == ["database-changed"]

    def fail(question: object) -> None:
        raise Unavailable("database: expected one that responds, got none")

    measured.ledger.ask = fail
    assert measure_database(measured) == expected


def test_the_log_has_critical_alarms_each_minute_and_warnings_when_they_begin(
    tmp_path: Path, space: Any, caplog: pytest.LogCaptureFixture
) -> None:
    measured = context(tmp_path)
    space(3 * GIB)

    def told() -> list[tuple[str, str]]:
        caplog.clear()
        log_alarms(measured)
        return [(one.levelname, one.getMessage().split(": ")[0]) for one in caplog.records]

    with caplog.at_level(logging.WARNING, "appliance"):
        assert told() == [("WARNING", "disk-low")]
        assert told() == []
        space(GIB - 4096)
        assert told() == told() == [("CRITICAL", "ALARM")]
        space(3 * GIB)
        assert told() == [("WARNING", "disk-low")], "it began anew"
