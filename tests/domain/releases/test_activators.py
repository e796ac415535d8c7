"""A person behind a valid approval cannot activate the adapter for that unit, unless policy allows it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.activations import ReleaseRolledBack, Rollback
from appliance.domain.releases.approval import list_eligible_reviewers
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.evaluated_release import adapter_of, approve, reasons


def grant(site: LogBuilder, name: str, role: str = "release-owner:legal") -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


def delegated() -> LogBuilder:
    """Dana approved in Rita's place, and Raul for himself. All three may release for the unit."""
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("raul", "model-risk")
    for name in ("dana", "rita", "raul"):
        grant(site, name)
    return site


@pytest.mark.parametrize("name", ["dana", "rita", "raul"])
def test_a_person_behind_an_approval_does_not_activate(name: str) -> None:
    site = delegated()
    with pytest.raises(Denied, match=rf"{name} is behind the approval of entry"):
        site.activate(signer=name)
    site.activate()
    assert reasons(site) == []


@pytest.mark.parametrize("name", ["dana", "rita", "raul"])
def test_policy_may_let_a_person_approve_and_activate_until_another_set_is_adopted(name: str) -> None:
    site = delegated()
    site.adopt(policy_set(approver_may_activate=True))
    site.activate(signer=name)
    assert reasons(site) == []
    site.adopt(policy_set())
    (reason,) = reasons(site)
    assert "is behind the approval" in reason
    with pytest.raises(Denied, match="is behind the approval"):
        site.load()


def test_an_approval_for_another_unit_is_no_reason() -> None:
    site = stage("approved")
    grant(site, "rita", "release-owner:sales")
    for name, field in (("quinn", "privacy"), ("ravi", "model-risk")):
        site.enrol(name, f"reviewer:{field}")
        site.review(name, field, unit="sales")
    site.activate(signer="rita", unit="sales")


def with_a_third_approval() -> LogBuilder:
    """Two approvals are enough without Rita's, which she may have withdrawn."""
    site = stage("approved")
    site.enrol("quinn", "reviewer:privacy")
    site.review("quinn", "privacy")
    grant(site, "rita")
    return site


def test_who_withdrew_an_approval_may_activate_and_not_approve_again() -> None:
    site = with_a_third_approval()
    with pytest.raises(
        Denied,
        match=r"rita is behind the approval of entry 26\. Policy \(approver_may_activate\) does not let one person",
    ):
        site.activate(signer="rita")
    site.review("rita", "privacy", decision="withdraw")
    site.activate(signer="rita")
    assert reasons(site) == []
    assert "rita" not in {name for _, name in list_eligible_reviewers(site.state, adapter_of(site), "legal", site.now)}
    again = r"rita activated this adapter by entry 34\. Policy \(approver_may_activate\) does not let one person"
    with pytest.raises(Denied, match=again):
        site.review("rita", "privacy")
    site.review("rita", "privacy", decision="reject")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    with pytest.raises(Denied, match=again):
        site.review("dana", "privacy", on_behalf_of="rita")


def test_who_activated_approves_once_another_person_has_activated() -> None:
    site = with_a_third_approval()
    site.review("rita", "privacy", decision="withdraw")
    site.activate(signer="rita")
    site.activate(signer="otto")
    site.review("rita", "privacy")
    assert reasons(site) == []


def two_versions(site: LogBuilder, **approval: Any) -> None:
    """Version 1 answered, and version 2 does."""
    approve(site, **approval)
    site.activate()
    site.seal(site.train(), 2)
    site.review("rita", "privacy", 2)
    site.review("raul", "model-risk", 2)
    site.activate(2)
    grant(site, "rita")


def test_a_person_behind_an_approval_does_not_rollback_to_it() -> None:
    site = stage("sealed")
    two_versions(site)
    with pytest.raises(
        Denied,
        match=r"rita is behind the approval of entry 26\. Policy \(approver_may_activate\) does not let one person",
    ):
        site.ordered(ReleaseRolledBack(policy=site.in_force), site.release_order(Rollback, "rita"))
    site.ordered(ReleaseRolledBack(policy=site.in_force), site.release_order(Rollback))


def test_an_emergency_is_declared_by_nobody_behind_an_approval_that_is_still_valid() -> None:
    site = stage("released")
    grant(site, "rita")
    site.review("raul", "model-risk", decision="withdraw")
    with pytest.raises(
        Denied,
        match=r"rita is behind the approval of entry 26\. Policy \(approver_may_activate\) does not let one person",
    ):
        site.break_glass(signer="rita")
    site.break_glass()
    assert reasons(site) == []


def test_an_emergency_may_be_declared_by_a_person_whose_approval_has_expired() -> None:
    site = stage("released")
    grant(site, "rita")
    site.now = add_seconds(site.now, 90_000)
    site.break_glass(signer="rita")
    assert reasons(site) == []
    with pytest.raises(
        Denied,
        match=r"rita activated this adapter by entry 32\. Policy \(approver_may_activate\) does not let one person",
    ):
        site.review("rita", "privacy")
