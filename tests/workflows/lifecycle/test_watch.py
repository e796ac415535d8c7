"""What is near its end is said before it stops the appliance."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.policy import Parameters
from appliance.errors import Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.lifecycle import watch

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def context(last: datetime) -> Any:
    state = SimpleNamespace(last_time=encode_time(last), parameters=Parameters())
    return SimpleNamespace(clock=lambda: NOW, ledger=SimpleNamespace(state=state, check_schema=list))


def space(free_bytes: int, total_bytes: int) -> Any:
    return SimpleNamespace(f_frsize=4096, f_bavail=free_bytes // 4096, f_blocks=total_bytes // 4096)


@pytest.mark.parametrize(
    ("free", "total", "said"),
    [
        (2 << 30, 100 << 30, False),
        (1 << 30, 100 << 30, False),
        ((1 << 30) - 4096, 100 << 30, True),
        (60 << 20, 1 << 30, False),
        (50 << 20, 1 << 30, True),
    ],
)
def test_a_disk_that_fills_up_is_said_while_entries_still_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, total: int, said: bool
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: space(free, total))
    found = watch.warnings(context(NOW), tmp_path)
    assert bool(found) is said
    assert all("MiB free" in text for text in found)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_does_not_say_what_is_free_is_said_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """The heartbeat that asks goes on."""

    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "statvfs", refuse)
    expected = f"disk of {tmp_path}: expected to read the free space, got {os.strerror(number)}"
    assert watch.warnings(context(NOW), tmp_path) == [expected]


@pytest.mark.parametrize(("lead_s", "said"), [(-5, False), (0, False), (60, False), (61, True), (86_400, True)])
def test_a_clock_that_went_back_further_than_its_skew_is_said(tmp_path: Path, lead_s: int, said: bool) -> None:
    found = watch.warnings(context(NOW + timedelta(seconds=lead_s)), tmp_path)
    assert bool([text for text in found if text.startswith("clock: expected a time after")]) is said


def test_what_is_planted_in_the_database_is_said_each_minute(tmp_path: Path) -> None:
    told = context(NOW)
    told.ledger.check_schema = lambda: ["trigger steal on disclosures: expected none, got one"]
    expected = ["database, trigger steal on disclosures: expected none, got one"]
    assert watch.warnings(told, tmp_path)[-1:] == expected

    def fail() -> list[str]:
        raise Unavailable("database: expected one that answers, got none")

    told.ledger.check_schema = fail
    assert watch.warnings(told, tmp_path) == [], "the heartbeat says it"
