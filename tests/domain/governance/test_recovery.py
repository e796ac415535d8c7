"""A recovery key names a new administrator when too few have their keys, after a time in which others can stop it."""

from __future__ import annotations

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.countersignature import list_countersigners, list_waiting_orders
from appliance.domain.governance.people import Grant, PrincipalEnrolled, RoleGranted
from appliance.domain.governance.recovery import AdministratorRecovered
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import Measures
from appliance.domain.queries.pending import ORDER, list_pending
from appliance.errors import Denied, NotAuthenticated
from appliance.workflows.queries.measures import measure_state
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.audit.test_verify import verify

HALF_S = policy_set().parameters.order_lifetime_s // 2


def site_with_keys(*names: str) -> LogBuilder:
    site = stage("staffed")
    for name in names:
        site.enrol(name, "recovery")
    return site


def roles(site: LogBuilder, name: str) -> tuple[str, ...]:
    person = site.state.principals.get(name)
    return () if person is None else person.roles


def test_the_administrator_who_is_left_and_a_recovery_key_replace_the_lost_one() -> None:
    """Ben has lost his key, and anna alone cannot enrol anybody."""
    site = site_with_keys("vault")
    site.recover("carl", by="vault", second="anna")
    assert roles(site, "carl") == ("administrator",)
    site.two(
        RoleGranted(policy=site.in_force),
        site.order(Grant, "anna", principal="olga", role="reviewer:safety"),
        second="carl",
    )
    assert "reviewer:safety" in roles(site, "olga")
    assert verify(site).findings == ()


def test_two_recovery_keys_are_enough_when_no_administrator_is_left() -> None:
    site = site_with_keys("vault", "deposit")
    for name in ("ben", "anna"):
        site.revoke(name)
    site.recover("carl", by="vault", second="deposit")
    site.recover("dora", by="deposit", second="carl")
    assert roles(site, "carl") == roles(site, "dora") == ("administrator",)
    assert verify(site).findings == ()


@pytest.mark.parametrize(
    ("waits_s", "reason"), [(HALF_S - 2, "can be countersigned from"), (2 * HALF_S, "The order expired")]
)
def test_a_recovery_waits_for_half_of_an_order_s_lifetime_and_ends_with_it(waits_s: int, reason: str) -> None:
    site = site_with_keys("vault")
    with pytest.raises(Denied, match=reason):
        site.recover("carl", second="anna", waits_s=waits_s)
    assert roles(site, "carl") == ()


def test_the_wait_begins_at_the_entry_and_not_at_the_time_that_its_signer_chose() -> None:
    site = site_with_keys("vault")
    site.now = add_seconds(site.now, HALF_S)
    early = add_seconds(site.now, -HALF_S)
    order, documents = site.recovery_order("carl", issued_at=early, expires_at=add_seconds(early, 2 * HALF_S))
    envelope = site.pend(order, documents)
    site.now = add_seconds(site.now, HALF_S - 10)
    with pytest.raises(Denied, match="A recovery can be countersigned from"):
        site.countersign(AdministratorRecovered(policy=site.in_force), order, envelope, documents, "anna")


def test_one_recovery_key_alone_and_an_administrator_alone_do_nothing() -> None:
    site = site_with_keys("vault")
    with pytest.raises(Denied, match="cannot countersign it"):
        site.recover("carl", second="vault")
    for signer in ("anna", "olga"):
        with pytest.raises(Denied, match="needs recovery"):
            site.recover("carl", by=signer, second="ben")
    with pytest.raises(Denied, match="needs administrator or recovery"):
        site.recover("carl", second="olga")


def test_a_recovery_key_signs_and_countersigns_recoveries_only() -> None:
    site = site_with_keys("vault")
    with pytest.raises(Denied, match="needs administrator"):
        site.two(
            RoleGranted(policy=site.in_force),
            site.order(Grant, "anna", principal="olga", role="reviewer:safety"),
            second="vault",
        )
    with pytest.raises(Denied, match="needs administrator"):
        site.revoke("ben", signer="vault")
    with pytest.raises(Denied, match=r"is a recovery key\. It signs recoveries, and no order about keys"):
        site.rotate("vault", site.now)
    with pytest.raises(Denied, match=r"is a recovery key\. It signs recoveries, and no order about keys"):
        site.revoke_key("vault", signer="vault")
    for role in ("administrator", "operator"):
        with pytest.raises(Denied, match="can have no other role"):
            site.grant("vault", role)


def test_an_administrator_stops_a_recovery_by_revoking_the_key_that_signed_it() -> None:
    site = site_with_keys("vault")
    order, documents = site.recovery_order("eve")
    envelope = site.pend(order, documents)
    site.revoke("vault")
    site.now = add_seconds(site.now, HALF_S)
    with pytest.raises(NotAuthenticated, match="no longer valid"):
        site.countersign(AdministratorRecovered(policy=site.in_force), order, envelope, documents, "ben")
    assert roles(site, "eve") == ()


def test_a_recovery_names_somebody_new() -> None:
    site = site_with_keys("vault")
    with pytest.raises(Denied, match="belongs to an enrolled or revoked principal for ever"):
        site.recover("olga", second="anna")


def test_a_waiting_recovery_is_an_alarm_and_waits_for_everybody_who_can_sign_it() -> None:
    site = site_with_keys("vault", "deposit")
    order, documents = site.recovery_order("carl")
    site.pend(order, documents)
    (alarm,) = (
        one for one in find_alarms(measure_state(site.state, Measures(now=site.now))) if one.code == "recovery-waiting"
    )
    assert alarm.severity == "critical" and "vault ordered to make carl an administrator" in alarm.text
    assert list_countersigners(site.state, order) == ("anna", "ben", "deposit")
    for name, count in (("anna", 1), ("deposit", 1), ("vault", 0), ("olga", 0)):
        assert len(list_waiting_orders(site.state, site.now, name)) == count
        assert sum(item.kind == ORDER for item in list_pending(site.state, site.now, name)) == count
    # The orders of administrators wait for administrators.
    site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))
    assert [one.action for one in list_waiting_orders(site.state, site.now, "deposit")] == ["recover-administrator"]
    assert len(list_waiting_orders(site.state, site.now, "ben")) == 2


def test_the_alarm_of_a_recovery_ends_with_the_key_that_signed_it() -> None:
    site = site_with_keys("vault", "deposit")
    for name, signer in (("carl", "vault"), ("dora", "deposit")):
        order, documents = site.recovery_order(name, signer)
        site.pend(order, documents)
    site.revoke("vault")
    site.revoke_key("deposit", signer="anna")
    assert "recovery-waiting" not in {
        one.code for one in find_alarms(measure_state(site.state, Measures(now=site.now)))
    }


@pytest.mark.parametrize("is_principal_revoked", [True, False])
def test_a_recovery_waits_for_nobody_once_the_key_that_signed_it_is_revoked(is_principal_revoked: bool) -> None:
    site = site_with_keys("vault", "deposit")
    site.pend(*site.recovery_order("carl"))
    assert len(list_waiting_orders(site.state, site.now, "anna")) == 1
    if is_principal_revoked:
        site.revoke("vault")
    else:
        site.revoke_key("vault", signer="anna")
    for name in ("anna", "ben", "deposit"):
        assert list_waiting_orders(site.state, site.now, name) == []
        assert not [item for item in list_pending(site.state, site.now, name) if item.kind == ORDER]
    assert list_waiting_orders(site.state, site.now) == []


def test_a_site_with_a_single_administrator_has_no_recovery() -> None:
    site = LogBuilder(single=True)
    order, documents = site.enrolment("vault", ("recovery",))
    site.ordered(PrincipalEnrolled(policy=site.in_force), order, documents=documents)
    recovery, documents = site.recovery_order("carl")
    with pytest.raises(Denied, match="A recovery needs a second signature"):
        site.ordered(AdministratorRecovered(policy=site.in_force), recovery, documents=documents)
