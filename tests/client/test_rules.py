from __future__ import annotations

from collections.abc import Callable

from appliance.api.people import Rules
from appliance.client import policies
from appliance.domain.actions.registry import NEWEST_RULES
from appliance.domain.governance.log_control import RaiseRules
from tests.client.conftest import Office


def test_the_version_in_force_and_the_newest_known_are_told(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    assert policies.read_rules(office.as_("rita")) == Rules(version=NEWEST_RULES, newest=NEWEST_RULES, entry=0)


def test_a_raise_names_the_version_alone(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    order = office.propose("anna", RaiseRules, {"rules": 2}).order
    assert isinstance(order, RaiseRules)
    assert (order.rules, order.about()) == (2, ("rules",))
