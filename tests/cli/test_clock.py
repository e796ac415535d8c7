"""A clock that ran ahead, as two administrators see it and set it right."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from appliance.domain.core.entry import Draft
from appliance.store.ledger.clock import LogClock
from tests.cli.conftest import Desk

AHEAD = timedelta(days=20)


def run_ahead(desk: Desk) -> str:
    """An entry is dated ahead, and the host's clock is set right; the entry's time."""
    ledger = desk.site.ledger
    ledger.clock = LogClock(lambda: datetime.now(UTC) + AHEAD)
    time = ledger.append(Draft(type="heartbeat", body={})).entry.time
    ledger.clock = LogClock(lambda: datetime.now(UTC))
    return time


def test_two_administrators_reset_a_clock_that_ran_ahead_and_work_goes_on(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    assert desk.as_("rita", "principal", "list").code == 0  # a session
    ahead = run_ahead(desk)
    stuck = desk.as_("audrey", "hold", "place", "principal:rita", "--yes")
    assert stuck.code == 7 and "two administrators type: appliance clock reset" in stuck.err
    shown = json.loads(desk.type("clock", "show", "--json").out)
    assert (shown["last"], shown["behind"], shown["waiting"]) == (ahead, True, [])

    first = desk.as_("anna", "clock", "reset", "--yes")
    assert first.code == 0, first.err
    assert (
        f"The log's last entry is dated {ahead}" in first.err and "Compare it with a clock that you trust" in first.err
    )
    assert "another administrator types: appliance clock endorse" in first.err
    assert "by anna" in desk.type("clock", "show").out

    alone = desk.as_("anna", "clock", "endorse", "--yes")
    assert alone.code == 3 and "separation of duties" in alone.err

    second = desk.as_("ben", "clock", "endorse", "--yes")
    assert second.code == 0, second.err
    assert desk.site.state.last_time < ahead
    assert json.loads(desk.type("clock", "show", "--json").out)["behind"] is False

    held = desk.as_("audrey", "hold", "place", "principal:rita", "--yes")
    assert held.code == 0, held.err
    # The session of before the reset reads nothing; the command opens another.
    opened = desk.as_("audrey", "ledger", "log", "--type", "session.opened", "--actor", "rita", "--csv").out
    assert len(opened.splitlines()) == 2
    assert desk.as_("rita", "principal", "list").code == 0
    again = desk.as_("audrey", "ledger", "log", "--type", "session.opened", "--actor", "rita", "--csv").out
    assert len(again.splitlines()) == 3
    verified = desk.as_("audrey", "ledger", "verify", "--trust", str(desk.trust))
    assert verified.code == 0, verified.out + verified.err
    assert f"set it back from {ahead}" in verified.out + verified.err


def test_a_clock_that_is_right_is_not_reset(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "clock", "reset", "--yes")
    assert told.code == 5 and "expected one that is behind the last entry" in told.err
    assert desk.ordered() == 0


def test_nothing_is_endorsed_where_nobody_ordered_a_reset(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    run_ahead(desk)
    told = desk.as_("ben", "clock", "endorse", "--yes")
    assert told.code != 0 and "an administrator types: appliance clock reset" in told.err


def test_who_is_no_administrator_resets_nothing_and_hears_why(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    run_ahead(desk)
    size = desk.site.state.size
    told = desk.as_("olga", "clock", "reset", "--yes")
    assert told.code == 3 and "expected olga to be administrator" in told.err
    assert desk.site.state.size == size
