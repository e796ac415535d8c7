"""A log with two versions of the rules: each entry is checked by the version that was valid before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.domain.actions import registry
from appliance.domain.actions.registry import ACTIONS, RULE_SETS, make_rule_set
from appliance.domain.audit.report import Report
from appliance.domain.core.action import NEWEST_RULES
from appliance.domain.core.names import Time
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, refuse_role
from appliance.domain.core.state import State
from appliance.domain.governance.log_control import RaiseRules, RulesRaised
from appliance.domain.governance.people import Grant
from appliance.domain.queries.effective_access import effective_access
from appliance.domain.retention import HoldPlaced, PlaceHold, authorise_place_hold
from appliance.errors import BadInput, Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.audit.test_verify import verify
from tests.kit.refusals import refuses

LATER = NEWEST_RULES + 1


def _only_auditors(state: State, order: PlaceHold, signer: Principal, now: Time) -> Reasons:
    """Apply the later version's rule: an administrator alone places no hold."""
    extra = [] if signer.has("auditor") else [refuse_role(signer.name, signer.roles, ("auditor",))]
    return [*extra, *authorise_place_hold(state, order, signer, now)]


@pytest.fixture
def two_versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stricter = replace(ACTIONS["place-hold"], authorise=_only_auditors, since=LATER)
    book = make_rule_set(LATER, (*RULE_SETS[NEWEST_RULES].actions.values(), stricter), registry._EVENTS)
    monkeypatch.setitem(RULE_SETS, LATER, book)
    yield


def hold(site: LogBuilder, signer: str, subject: str) -> None:
    site.ordered(HoldPlaced(policy=site.in_force), site.order(PlaceHold, signer, subject=subject))


def raise_rules(site: LogBuilder, rules: int = LATER) -> None:
    site.two(RulesRaised(policy=site.in_force), site.order(RaiseRules, "anna", rules=rules))


@pytest.mark.usefixtures("two_versions")
def test_an_entry_that_older_rules_allowed_still_verifies_after_stricter_ones_came() -> None:
    site = stage("staffed")
    hold(site, "anna", "unit:legal")
    raise_rules(site)
    hold(site, "audrey", "principal:olga")
    report: Report = verify(site)
    assert (report.verdict, report.findings) == ("verified", ())


@pytest.mark.usefixtures("two_versions")
def test_what_stricter_rules_refuse_is_refused_from_their_entry_on() -> None:
    site = stage("staffed")
    raise_rules(site)
    with refuses(site, Denied, "This action needs auditor"):
        hold(site, "anna", "unit:legal")


def test_a_build_that_does_not_know_the_version_refuses_what_follows_by_name() -> None:
    site = stage("staffed")
    raise_rules(site, rules=7)
    with refuses(site, BadInput, f"expected version {NEWEST_RULES} at most, got 7", "this build is older than the log"):
        hold(site, "anna", "unit:legal")


@pytest.mark.usefixtures("two_versions")
def test_rules_only_rise() -> None:
    site = stage("staffed")
    raise_rules(site)
    with refuses(site, Denied, f"The order names version {LATER}"):
        site.pend(site.order(RaiseRules, "anna", rules=LATER))


@pytest.mark.usefixtures("two_versions")
def test_rules_are_raised_by_two_administrators_alone() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "olga is operator. This action needs administrator."):
        site.pend(site.order(RaiseRules, "olga", rules=LATER))
    with refuses(site, Denied, "expected a second one's countersignature"):
        site.ordered(RulesRaised(policy=site.in_force), site.order(RaiseRules, "anna", rules=LATER))


def test_an_action_of_a_later_version_is_refused_under_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    actions = (*(row for row in ACTIONS.values() if row.name != "grant"), replace(ACTIONS["grant"], since=LATER))
    monkeypatch.setitem(RULE_SETS, NEWEST_RULES, make_rule_set(NEWEST_RULES, actions))
    site = stage("staffed")
    with refuses(site, Denied, "The action grant does not exist in rules version"):
        site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))


def test_two_rules_for_one_type_of_entry_are_a_mistake_that_is_found() -> None:
    twice = replace(ACTIONS["place-hold"], apply=lambda case: [])
    actions = (ACTIONS["replace-key"], replace(ACTIONS["rotate-key"], apply=twice.apply))
    with pytest.raises(TypeError, match=r"key\.enrolled: expected one rule"):
        make_rule_set(NEWEST_RULES, actions, ())


def test_what_a_unit_could_load_under_rules_that_the_build_does_not_know_is_not_answered_by_earlier_ones() -> None:
    site = stage("released")
    raise_rules(site, rules=7)
    with pytest.raises(BadInput, match="got 7: this build is older than the log"):
        effective_access(site.state, "legal", site.now)
