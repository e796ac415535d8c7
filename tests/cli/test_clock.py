"""Two administrators reset a clock that ran ahead, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from appliance.domain.core.entry import EntryDraft
from appliance.store.ledger.queue import LogClock
from tests.cli.conftest import Desk

AHEAD = timedelta(days=20)


def run_ahead(desk: Desk) -> str:
    """Add an entry that is dated ahead, and correct the host's clock. Return the entry's time."""
    ledger = desk.site.ledger
    ledger.clock = LogClock(lambda: datetime.now(UTC) + AHEAD)
    time = ledger.append(EntryDraft(type="heartbeat", body={})).entry.time
    ledger.clock = LogClock(lambda: datetime.now(UTC))
    return time


@pytest.mark.thorough
def test_two_administrators_reset_a_clock_that_ran_ahead_and_work_continues(open_desk: Callable[[str], Desk]) -> None:
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
    assert "another administrator types: appliance clock countersign" in first.err
    assert "by anna" in desk.type("clock", "show").out

    alone = desk.as_("anna", "clock", "countersign", "--yes")
    assert alone.code == 3 and "anna signed this order and cannot countersign it." in alone.err

    second = desk.as_("ben", "clock", "countersign", "--yes")
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


def test_both_signatures_of_a_reset_work_under_a_log_key_that_these_accounts_have_not_seen(
    open_desk: Callable[[str], Desk],
) -> None:
    """Its proof needs a session, and none can be opened."""
    desk = open_desk("staffed")
    first = desk.as_("anna", "log-key", "rotate", "--old-until", "now", "--yes")
    line = next(line for line in first.err.splitlines() if line.startswith("next: another administrator types:"))
    assert desk.as_("ben", *line.partition("appliance ")[2].split(), "--yes").code == 0
    rotated = desk.site.state.site.log_key
    run_ahead(desk)
    trust = ("--trust", str(desk.trust))
    first = desk.as_("anna", "clock", "reset", "--yes", *trust)
    assert first.code == 0, first.err
    assert f"rotated to {rotated}. That is the service's own word" in first.err
    second = desk.as_("ben", "clock", "countersign", "--yes", *trust)
    assert second.code == 0, second.err
    assert f"rotated to {rotated}. That is the service's own word" in second.err
    assert json.loads(desk.type("clock", "show", "--json").out)["behind"] is False
    # Once sessions can be opened, the key is proved as ever.
    assert "the log verified from it to today's key" in desk.as_("ben", "ledger", "show", "0", *trust).err


def test_a_clock_that_is_right_is_not_reset(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "clock", "reset", "--yes")
    assert told.code == 5 and "expected one that is behind the last entry" in told.err
    assert desk.ordered() == 0


def test_nothing_is_countersigned_where_nobody_ordered_a_reset(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    run_ahead(desk)
    told = desk.as_("ben", "clock", "countersign", "--yes")
    assert told.code != 0 and "an administrator types: appliance clock reset" in told.err


def test_who_is_no_administrator_resets_nothing_and_hears_why(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    run_ahead(desk)
    size = desk.site.state.size
    told = desk.as_("olga", "clock", "reset", "--yes")
    assert told.code == 3 and "olga is operator. This action needs administrator." in told.err
    assert desk.site.state.size == size
