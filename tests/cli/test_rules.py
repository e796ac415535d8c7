"""The rules version on the command line: shown and raised by administrators."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from appliance.domain.actions.registry import RULE_SETS
from appliance.domain.core.action import NEWEST_RULES
from appliance.workflows import governance
from tests.cli.conftest import Desk

LATER = NEWEST_RULES + 1


@pytest.fixture
def knows_later_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULE_SETS, LATER, RULE_SETS[NEWEST_RULES])
    monkeypatch.setattr(governance, "NEWEST_RULES", LATER)


@pytest.mark.usefixtures("knows_later_rules")
def test_two_administrators_raise_the_rules_and_everybody_sees_since_when(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    assert json.loads(desk.as_("rita", "rules", "show", "--json").out) == {
        "version": NEWEST_RULES, "newest": NEWEST_RULES, "entry": 0,
    }  # fmt: skip
    first = desk.as_("anna", "rules", "raise", str(LATER), "--yes")
    assert first.code == 0, first.err
    assert "This cannot be undone" in first.err
    assert desk.site.state.site.rules == NEWEST_RULES
    line = next(line for line in first.err.splitlines() if line.startswith("next: "))
    second = desk.as_("ben", *line.partition("appliance ")[2].split(), "--yes")
    assert second.code == 0, second.err
    raised = json.loads(desk.as_("rita", "rules", "show", "--json").out)
    assert (raised["version"], desk.site.ledger.find(types=["rules.raised"])[0][0]) == (LATER, raised["entry"])
    told = desk.as_("rita", "rules", "show")
    assert "valid" in told.out and f"{raised['entry']}" in told.out


def test_a_version_that_the_appliance_does_not_know_is_refused_and_named(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "rules", "raise", str(LATER), "--yes")
    assert told.code == 5, told.err
    assert f"expected a version that this build knows, {NEWEST_RULES} at most, got {LATER}" in told.err
    assert not len(desk.site.state.pending)
