from __future__ import annotations

from collections.abc import Callable

from appliance.client import rules
from appliance.domain.governance.rules import RaiseRules
from appliance.domain.rulebook.registry import NEWEST_RULES
from tests.client.conftest import Office


def test_the_version_in_force_and_the_newest_known_are_told(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    assert rules.rules_in_force(office.as_("rita")) == rules.RulesAnswer(NEWEST_RULES, NEWEST_RULES, 0)


def test_a_raise_names_the_version_alone(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    order = rules.propose_rules(office.door.about, "anna", 2).order
    assert isinstance(order, RaiseRules)
    assert (order.rules, order.about()) == (2, ("rules",))
