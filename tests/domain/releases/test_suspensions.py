"""A suspension stops a version for a unit until a person of the suspender's role, or two administrators, lift it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.names import NO_DIGEST, add_seconds
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.activations import ReleaseRolledBack, Rollback
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.releases.suspensions import ReleaseResumed, ReleaseSuspended, list_suspensions
from appliance.errors import ApplianceError, BadInput, Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.audit.test_verify import verify
from tests.kit.evaluated_release import adapter_of, approve, reasons


def suspended(name: str = "serving", by: str = "rita", **fields: Any) -> tuple[LogBuilder, int]:
    site = stage(name)
    return site, site.suspend(by, **fields).index


def granted(site: LogBuilder, name: str, role: str) -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


@pytest.mark.parametrize(
    ("by", "role"),
    [("rita", "reviewer:privacy"), ("otto", "release-owner:legal"), ("anna", "administrator")],
)
def test_one_person_stops_a_version_for_a_unit_and_somebody_of_the_role_lifts_it(by: str, role: str) -> None:
    site, index = suspended(by=by)
    assert reasons(site) == [
        f"{by} ({role}) suspended adapter clauses@1 for legal by entry {index}. A person with the role {role}, or two "
        "administrators, must resume it, on the release's page or with: appliance release resume."
    ]
    with pytest.raises(Denied, match=f"by entry {index}"):
        site.add(site.request(7))
    granted(site, "raul", role) if role != "administrator" else None
    site.resume_release(index, "ben" if role == "administrator" else "raul")
    assert reasons(site) == []
    site.add(site.request(7))
    assert verify(site).verdict == "verified"


@pytest.mark.parametrize(
    ("by", "fields", "why"),
    [
        ("otto", {"unit": "sales"}, r"otto is release-owner:legal\. This action needs release-owner:sales"),
        ("otto", {"role": "release-owner:sales"}, r"otto cannot suspend .* under the role release-owner:sales\."),
        ("rita", {"role": "reviewer:model-risk"}, r"rita cannot suspend .* under the role reviewer:model-risk\."),
        ("rita", {"role": "administrator"}, r"rita cannot suspend .* under the role administrator\."),
        ("olga", {}, r"olga is operator\. This action needs"),
        ("audrey", {}, r"audrey is auditor\. This action needs"),
        ("legal", {}, r"legal is unit\. This action needs"),
        ("rita", {"unit": "nowhere"}, r"nowhere is not an enrolled unit\."),
        ("rita", {"manifest": NO_DIGEST}, r"The sealed adapter has the manifest"),
        ("rita", {"adapter": "nothing"}, r"No adapter with the name nothing@1"),
    ],
)
def test_a_suspension_is_refused(by: str, fields: dict[str, Any], why: str) -> None:
    site = stage("serving")
    with pytest.raises(Denied, match=why):
        site.suspend(by, **fields)
    assert adapter_of(site).suspensions == ()


def test_a_role_counts_only_where_its_owner_can_suspend_with_it() -> None:
    site = stage("serving")
    granted(site, "olga", "reviewer:privacy")
    with pytest.raises(Denied, match=r"olga cannot suspend an adapter for legal under the role operator\."):
        site.suspend("olga", role="operator")
    site.suspend("olga", role="reviewer:privacy")


def test_a_suspension_has_a_reason() -> None:
    with pytest.raises((BadInput, ValueError), match="reason"):
        stage("serving").suspend(reason=None)


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (
            "raul",
            r"rita suspended the adapter by entry \d+ under the role reviewer:privacy, which raul does not have\.",
        ),
        ("otto", r"which otto does not have\. A person with the role reviewer:privacy, or two administrators, must"),
        ("olga", r"olga is operator\. This action needs"),
        ("anna", r"administrators: expected a second one's countersignature, got one order"),
    ],
)
def test_nobody_else_lifts_it(by: str, why: str) -> None:
    site, index = suspended()
    with pytest.raises(Denied, match=why):
        site.resume_release(index, by)
    assert len(list_suspensions(site.state, adapter_of(site))) == 1


def test_the_releases_owner_does_not_lift_what_an_administrator_suspended() -> None:
    site, index = suspended(by="anna")
    with pytest.raises(Denied, match=r"anna suspended the adapter by entry \d+ under the role administrator, which"):
        site.resume_release(index, "otto")


def test_two_administrators_lift_any_suspension() -> None:
    site, index = suspended()
    with pytest.raises(Denied, match=r"anna signed this order and cannot countersign it\."):
        site.resume_release(index, "anna", second="anna")
    with pytest.raises(Denied, match=r"rita is reviewer:privacy\. This action needs administrator or recovery\."):
        site.resume_release(index, "anna", second="rita")
    site.resume_release(index, "anna", second="ben")
    assert reasons(site) == []
    found = adapter_of(site).suspensions[0]
    assert (found.lifted_by, len(found.lifted_keyids)) == ("anna", 2)
    assert verify(site).verdict == "verified"


def test_an_order_of_the_role_itself_does_not_wait_for_a_second_person() -> None:
    site, index = suspended()
    order = site.resumption_order(index)
    assert not ACTIONS[order.action].needs_second(site.state, order)
    by_an_administrator = site.resumption_order(index, "anna")
    assert ACTIONS[by_an_administrator.action].needs_second(site.state, by_an_administrator)


def test_the_single_administrator_of_a_site_lifts_it_alone() -> None:
    site = stage("serving")
    index = site.suspend().index
    site.state.sites.put("site", site.state.site.model_copy(update={"single_administrator": True}))
    order = site.resumption_order(index, "anna")
    assert not ACTIONS[order.action].needs_second(site.state, order)


def test_a_suspender_who_lost_the_role_or_left_does_not_lift_it_and_the_suspension_stays() -> None:
    site, index = suspended()
    site.revoke("rita")
    with pytest.raises(ApplianceError, match="rita"):
        site.resume_release(index, "rita")
    assert len(list_suspensions(site.state, adapter_of(site))) == 1
    granted(site, "raul", "reviewer:privacy")
    site.resume_release(index, "raul")
    assert list_suspensions(site.state, adapter_of(site)) == []


def test_a_key_that_was_stolen_before_the_suspension_does_not_end_it() -> None:
    site = stage("serving")
    before = len(site.entries)
    index = site.suspend().index
    site.revoke_key("rita", since=before)
    assert any(f"by entry {index}" in one for one in reasons(site))


def test_a_lift_that_was_signed_with_a_stolen_key_does_not_count() -> None:
    site = stage("serving")
    site.enrol("ruth", "reviewer:privacy")
    index = site.suspend().index
    lifted = site.resume_release(index, "ruth").index
    assert reasons(site) == []
    site.revoke_key("ruth", since=lifted)
    assert any(f"by entry {index}" in one for one in reasons(site))
    site.resume_release(index)
    assert reasons(site) == []
    with pytest.raises(Denied, match=rf"The suspension of entry {index} was lifted by entry"):
        site.resume_release(index)


def test_both_keys_of_two_administrators_must_count() -> None:
    site, index = suspended()
    lifted = site.resume_release(index, "anna", second="ben").index
    site.revoke_key("ben", since=lifted)
    assert any(f"by entry {index}" in one for one in reasons(site))


def test_each_of_two_roles_lifts_its_own_suspension() -> None:
    site, first = suspended()
    second = site.suspend("otto").index
    assert len(reasons(site)) == 2
    with pytest.raises(Denied, match="which otto does not have"):
        site.resume_release(first, "otto")
    site.resume_release(first)
    assert [f"by entry {second}" in one for one in reasons(site)] == [True]
    with pytest.raises(Denied, match=f"by entry {second}"):
        site.add(site.request(7))
    site.resume_release(second, "otto")
    assert reasons(site) == []


def test_one_role_suspends_once_until_it_is_lifted() -> None:
    site, index = suspended()
    site.enrol("ruth", "reviewer:privacy")
    with pytest.raises(Denied, match=rf"since entry {index}\."):
        site.suspend("ruth")
    with pytest.raises(Denied, match=rf"since entry {index}\."):
        site.suspend("ruth", served_model="labels")
    site.resume_release(index)
    site.suspend("ruth")


def test_a_delegate_decides_reviews_only() -> None:
    site = stage("serving")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    with pytest.raises(Denied, match=r"dana cannot suspend .* under the role reviewer:privacy\."):
        site.suspend("dana", role="reviewer:privacy")
    index = site.suspend().index
    with pytest.raises(Denied, match="which dana does not have"):
        site.resume_release(index, "dana")


@pytest.mark.parametrize("maker", ["olga", "ines"])
def test_who_made_the_adapter_may_stop_it_but_not_lift_a_suspension(maker: str) -> None:
    site = stage("serving")
    granted(site, maker, "reviewer:privacy")
    index = site.suspend(maker, role="reviewer:privacy").index
    with pytest.raises(Denied, match="Nobody reviews what they made"):
        site.resume_release(index, maker)
    site.resume_release(index)


def test_an_entry_that_suspends_nothing_here_is_not_lifted() -> None:
    site, index = suspended()
    with pytest.raises(Denied, match=rf"Entry {index - 1} records no suspension .* Name one of .*: {index}\."):
        site.resume_release(index - 1)
    with pytest.raises(Denied, match=rf"Entry {index} records no suspension of adapter clauses@1 for sales\."):
        site.resume_release(index, unit="sales")


def two_versions() -> LogBuilder:
    """Version 2 serves the unit; version 1 served it before."""
    site = stage("released")
    site.train()
    site.seal("r-000002", version=2)
    approve(site, version=2)
    site.activate(version=2)
    return site


def rolled_back(site: LogBuilder) -> None:
    site.ordered(ReleaseRolledBack(policy=site.in_force), site.release_order(Rollback))


def test_another_version_can_be_rolled_back_to_and_the_suspended_one_cannot() -> None:
    site = two_versions()
    index = site.suspend(version=2).index
    assert any(f"by entry {index}" in one for one in reasons(site))
    rolled_back(site)
    assert reasons(site) == []
    site.load()
    site.add(site.request(1))
    with pytest.raises(Denied, match=rf"suspended adapter clauses@2 for legal by entry {index}\."):
        site.activate(version=2)
    site.resume_release(index, version=2)
    site.activate(version=2)


def test_neither_a_rollback_nor_a_new_activation_nor_an_emergency_serves_a_suspended_version() -> None:
    site = two_versions()
    index = site.suspend().index
    with pytest.raises(Denied, match=rf"suspended adapter clauses@1 for legal by entry {index}\."):
        rolled_back(site)
    with pytest.raises(Denied, match=rf"suspended adapter clauses@1 for legal by entry {index}\."):
        site.activate(served_model="drafts")
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match=rf"suspended adapter clauses@1 for legal by entry {index}\."):
        site.break_glass()


def test_an_emergency_that_serves_is_stopped_too() -> None:
    site = stage("released")
    site.review("rita", "privacy", decision="withdraw")
    site.break_glass()
    assert reasons(site) == []
    index = site.suspend("otto").index
    assert any(f"by entry {index}" in one for one in reasons(site))
    with pytest.raises(Denied, match=f"by entry {index}"):
        site.load(approvals=(site.state.adapters.get("clauses@1").reviews[1].index,))  # type: ignore[union-attr]


def test_a_suspension_for_one_unit_leaves_another_unit_its_release() -> None:
    site = stage("released")
    site.enrol("olaf", "release-owner:sales")
    approve(site, unit="sales")
    site.activate(unit="sales", signer="olaf")
    site.suspend()
    release = site.state.releases.get("sales/labels")
    assert reasons(site) != [] and release is not None
    approvals = tuple(one.index for one in adapter_of(site).reviews if one.unit == "sales")
    admitted = site.add(site.admitted(unit="sales", approvals=approvals)).index
    site.add(site.loaded(admitted, unit="sales"))
    site.add(site.request(7, unit="sales"))


def test_a_suspension_can_be_for_one_served_model() -> None:
    site, index = suspended("released", served_model="labels")
    assert any(f"by entry {index}" in one for one in reasons(site))
    site.activate(served_model="drafts")
    with pytest.raises(Denied, match=f"by entry {index}"):
        site.activate()
    whole = site.suspend().index  # the same role stops the other served models, too
    with pytest.raises(Denied, match=f"by entry {whole}"):
        site.activate(served_model="drafts")


def test_approvals_expire_during_a_suspension() -> None:
    site, index = suspended()
    site.now = add_seconds(site.now, 400_000)
    site.resume_release(index)
    assert any("expired" in one or "approval" in one for one in reasons(site))


def test_a_version_can_be_suspended_before_it_is_released() -> None:
    site, index = suspended("approved")
    with pytest.raises(Denied, match=f"by entry {index}"):
        site.activate()
    site.resume_release(index)
    site.activate()


def test_a_revoked_adapter_is_not_suspended() -> None:
    site = stage("serving")
    site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "rita", **site.on_adapter()))
    with pytest.raises(Denied, match="was revoked by entry"):
        site.suspend()


def test_an_order_takes_effect_once() -> None:
    site = stage("serving")
    order = site.suspension_order()
    index = site.ordered(ReleaseSuspended(policy=site.in_force), order).index
    lift = site.resumption_order(index)
    site.ordered(ReleaseResumed(policy=site.in_force), lift)
    again = site.suspend("otto").index
    for event, replayed in ((ReleaseResumed, lift), (ReleaseSuspended, order)):
        with pytest.raises(ApplianceError, match="accepted as entry"):
            site.ordered(event(policy=site.in_force), replayed)
    assert any(f"by entry {again}" in one for one in reasons(site))


def test_a_person_suspends_a_hundred_times_at_most() -> None:
    site = stage("sealed")
    for _ in range(100):
        site.resume_release(site.suspend().index)
    with pytest.raises(Denied, match=r"rita has signed 100 suspensions of clauses@1"):
        site.suspend()
