"""A role is removed by two administrators, and what its holder decided in it follows at once."""

from __future__ import annotations

import pytest

from appliance.domain.governance.people import RemoveRole, RoleRemoved
from appliance.domain.releases.approval import find_blockers, list_counted_approvals
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.audit.test_verify import verify
from tests.kit.evaluated_release import adapter_of, reasons
from tests.kit.refusals import refuses


def roles(site: LogBuilder, name: str = "olga") -> tuple[str, ...]:
    person = site.state.principals.get(name)
    assert person is not None
    return person.roles


def counted(site: LogBuilder) -> list[str]:
    return [review.reviewer for review in list_counted_approvals(site.state, adapter_of(site), "legal", site.now)]


def test_a_role_is_removed_when_a_second_administrator_has_signed() -> None:
    site = stage("staffed")
    site.grant("olga", "reviewer:privacy")
    order = site.order(RemoveRole, "anna", principal="olga", role="operator")
    site.pend(order)
    assert roles(site) == ("operator", "reviewer:privacy")
    site.remove_role("olga", "reviewer:privacy")
    assert roles(site) == ("operator",)
    assert verify(site).findings == ()
    with pytest.raises(Denied, match="olga is operator"):
        site.review("olga", "privacy")


def test_approvals_of_a_removed_role_leave_the_quorum_and_return_with_the_role() -> None:
    site = stage("approved")
    assert set(counted(site)) == {"rita", "raul"}
    site.grant("rita", "reviewer:safety")
    site.remove_role("rita", "reviewer:privacy")
    assert counted(site) == ["raul"]
    with refuses(site, Denied, "needs 2 valid approvals for legal and has 1"):
        site.activate()
    site.grant("rita", "reviewer:privacy")
    assert set(counted(site)) == {"rita", "raul"}
    assert verify(site).findings == ()


def test_a_slot_is_blocked_when_an_approver_or_the_release_owner_loses_the_role() -> None:
    site = stage("serving")
    assert reasons(site) == []
    site.grant("rita", "reviewer:safety")
    site.remove_role("rita", "reviewer:privacy")
    assert any("needs 2 valid approvals" in str(one) for one in reasons(site))
    site.grant("rita", "reviewer:privacy")
    assert reasons(site) == []
    site.grant("otto", "operator")
    site.remove_role("otto", "release-owner:legal")
    assert any("is no longer a release owner of legal" in str(one) for one in reasons(site))


def test_a_delegation_ends_with_the_role_that_was_delegated() -> None:
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    site.review("dana", "privacy", on_behalf_of="rita")
    assert counted(site) == ["dana"]
    site.grant("rita", "reviewer:safety")
    site.remove_role("rita", "reviewer:privacy")
    assert counted(site) == []
    with pytest.raises(Denied, match=r"rita, who delegated privacy by entry .*, is no longer a reviewer of it"):
        site.review("dana", "privacy", on_behalf_of="rita")
    assert find_blockers(site.state, adapter_of(site), "legal", site.now)


@pytest.mark.parametrize(
    ("principal", "role", "words"),
    [
        ("nobody", "operator", "nobody is not enrolled or has been revoked."),
        ("rita", "operator", "rita does not have the role operator."),
        ("rita", "reviewer:privacy", "reviewer:privacy is the only role of rita."),
        ("anna", "administrator", "administrator is the only role of anna."),
        ("legal", "unit", "unit is the only role of legal."),
    ],
)
def test_a_removal_that_breaks_an_invariant_is_refused(principal: str, role: str, words: str) -> None:
    site = stage("staffed")
    with refuses(site, Denied, words):
        site.pend(site.order(RemoveRole, "anna", principal=principal, role=role))


def test_a_revoked_person_has_no_role_to_remove() -> None:
    site = stage("staffed")
    site.grant("olga", "reviewer:privacy")
    site.revoke("olga")
    with refuses(site, Denied, "olga was revoked by entry"):
        site.pend(site.order(RemoveRole, "anna", principal="olga", role="operator"))


def test_two_orders_do_not_remove_both_roles() -> None:
    site = stage("staffed")
    site.grant("olga", "reviewer:privacy")
    first = site.order(RemoveRole, "anna", principal="olga", role="operator")
    second = site.order(RemoveRole, "anna", principal="olga", role="reviewer:privacy")
    one, other = site.pend(first), site.pend(second)
    site.countersign(_removed(site), first, one)
    with refuses(site, Denied, "reviewer:privacy is the only role of olga"):
        site.countersign(_removed(site), second, other)


def _removed(site: LogBuilder) -> RoleRemoved:
    return RoleRemoved(policy=site.in_force)
