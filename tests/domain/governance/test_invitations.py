"""Invitations: open once and for an hour at most, they enrol nobody; two administrators enrol the person's passkey."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.names import add_seconds
from appliance.domain.governance import invitations
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.invitations import Invite, PersonInvited, WithdrawInvitation
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.audit.test_verify import verify
from tests.kit.refusals import refuses


def list_codes(
    site: LogBuilder, name: str = "nina", roles: tuple[str, ...] = ("operator",), **fields: Any
) -> list[str]:
    """Return the codes of the refusal reasons of an invitation."""
    fields = {"secret": digest_bytes(b"new"), "until": add_seconds(site.now, 600)} | fields
    order = site.order(Invite, "anna", principal=name, printed_name=site.text("Nina Example"), roles=roles, **fields)
    return [reason.code for reason in list_refusal_reasons(site.state, order, site.now)]


def test_an_invited_person_is_enrolled_by_two_administrators_with_their_passkey_as_the_only_key() -> None:
    site, passkey = stage("staffed"), new_passkey()
    site.invite("nina", "operator")
    entry = site.accept_invitation("nina", passkey)
    row = site.state.invitations.get("nina")
    assert row is not None and (row.accepted, row.keyid) == (entry.index, passkey.keyid)
    assert "nina" not in site.state.principals and passkey.keyid not in site.state.keys
    site.enrol_with_passkey("nina", passkey, "operator")
    person, key = site.state.principals.get("nina"), site.state.keys.get(passkey.keyid)
    assert person is not None and person.roles == ("operator",) and person.keyid == passkey.keyid
    assert key is not None and key.passkey is not None and key.passkey.name == "blue"
    assert site.state.invitations.get("nina") is None
    assert verify(site).verdict == "verified"


def test_a_person_with_a_passkey_can_be_enrolled_without_an_invitation() -> None:
    site = stage("staffed")
    site.enrol_with_passkey("nina", new_passkey(), "operator")
    assert site.state.principals.get("nina") is not None


def test_an_invitation_is_accepted_once() -> None:
    site = stage("staffed")
    site.invite("nina", "operator")
    site.accept_invitation("nina", new_passkey())
    with refuses(site, Denied, "invitation: expected one that is open"):
        site.accept_invitation("nina", new_passkey())


def test_nobody_accepts_without_an_invitation_or_after_its_end() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "invitation: expected one that is open"):
        site.accept_invitation("nina", new_passkey())
    site.invite("nina", "operator", lasts_s=60)
    site.now = add_seconds(site.now, 60)
    with refuses(site, Denied, "time: expected a time before"):
        site.accept_invitation("nina", new_passkey())


def test_a_later_invitation_of_the_name_replaces_the_earlier_one() -> None:
    site = stage("staffed")
    site.invite("nina", "operator")
    site.accept_invitation("nina", new_passkey())
    site.invite("nina", "auditor", secret=digest_bytes(b"second"))
    row = site.state.invitations.get("nina")
    assert row is not None and row.roles == ("auditor",) and row.accepted is None


def test_an_invitation_of_somebody_who_was_enrolled_meanwhile_is_not_accepted() -> None:
    site = stage("staffed")
    site.invite("nina", "operator")
    site.enrol("nina", "operator")
    with refuses(site, Denied, "a newcomer's passkey"):
        site.accept_invitation("nina", new_passkey())


@pytest.mark.parametrize(
    "passkey", [new_passkey(flags=0x0D), new_passkey(rp_id="localhost", origin="http://localhost:8330")]
)
def test_a_passkey_that_policy_does_not_allow_is_not_accepted(passkey: Any) -> None:
    site = stage("staffed")
    site.invite("nina", "operator")
    with refuses(site, Denied, "a newcomer's passkey that policy allows"):
        site.accept_invitation("nina", passkey)
    site.adopt(policy_set(passkeys_synced=True, passkeys_on_localhost=True))
    site.accept_invitation("nina", passkey)


def test_a_proof_for_another_name_or_key_is_not_accepted() -> None:
    site = stage("staffed")
    site.invite("nina", "operator")
    site.invite("omar", "operator")
    _, proof = site.passkey_proof("omar", (passkey := new_passkey()))
    body = invitations.InvitationAccepted(principal="nina", keyid=passkey.keyid)
    with refuses(site, Denied, "possession: expected nina"):
        site.add(body, documents={"possession": encode_envelope(proof)})
    with refuses(site, Denied, "possession: expected nina"):
        other = body.model_copy(update={"keyid": new_passkey().keyid})
        _, own = site.passkey_proof("nina", passkey)
        site.add(other, documents={"possession": encode_envelope(own)})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "rita"}, "name-taken"),
        ({"roles": ("unit",)}, "unit-invited"),
        ({"roles": ("operator", "validator")}, "roles-apart"),
        ({"roles": ("release-owner:nowhere",)}, "owned-unit-unknown"),
        ({"until": "2000-01-01T00:00:00.000Z"}, "invitation-end-out-of-range"),
    ],
)
def test_an_invitation_that_could_not_become_an_enrolment_is_refused(fields: dict[str, Any], code: str) -> None:
    assert list_codes(stage("staffed"), **fields) == [code]


def test_an_invitation_ends_after_an_hour_at_most_and_its_secret_is_new() -> None:
    site = stage("staffed")
    assert list_codes(site, until=add_seconds(site.now, 3_600)) == []
    assert list_codes(site, until=add_seconds(site.now, 3_601)) == ["invitation-end-out-of-range"]
    site.invite("omar", "operator", secret=digest_bytes(b"same"))
    assert list_codes(site, secret=digest_bytes(b"same")) == ["invitation-secret-used"]


@pytest.mark.parametrize("by", ["anna", "ben"])
def test_each_administrator_withdraws_an_invitation_and_its_address_works_no_longer(by: str) -> None:
    site = stage("staffed")
    site.invite("nina", "operator", by="anna")
    entry = site.withdraw_invitation("nina", by)
    row = site.state.invitations.get("nina")
    assert (entry.type, entry.actor, row and row.withdrawn) == ("invitation.withdrawn", by, entry.index)
    with refuses(site, Denied, "invitation: expected one that is open"):
        site.accept_invitation("nina", new_passkey())
    assert list_codes(site.fork(), secret=digest_bytes(b"nina")) == ["invitation-secret-used"]
    site.invite("nina", "operator", secret=digest_bytes(b"second"))
    site.accept_invitation("nina", new_passkey())
    assert verify(site).findings == ()


def test_the_withdrawal_of_an_accepted_invitation_drops_the_passkey_and_the_order_that_waits_to_enrol_it() -> None:
    site, passkey = stage("staffed"), new_passkey()
    for name in ("nina", "omar"):
        site.invite(name, "operator")
    site.accept_invitation("nina", passkey)
    site.accept_invitation("omar", (omars := new_passkey()))
    order, documents = site.enrolment_with_passkey("nina", passkey, ("operator",))
    dropped = site.pend(order, documents)
    other = site.pend(*site.enrolment_with_passkey("omar", omars, ("operator",)))
    site.withdraw_invitation("nina")
    row = site.state.invitations.get("nina")
    assert row is not None and (row.accepted, row.keyid) == (None, None)
    assert site.state.pending.get(dropped.pae_digest) is None and site.state.pending.get(other.pae_digest) is not None
    countersignature = site.order(Countersign, "ben", order=dropped.pae_digest)
    codes = [reason.code for reason in list_refusal_reasons(site.state, countersignature, site.now)]
    assert codes == ["order-not-pending"]
    assert verify(site).findings == ()


def test_another_invitation_drops_an_order_that_waits_to_enrol_the_earlier_passkey() -> None:
    site, passkey = stage("staffed"), new_passkey()
    site.invite("nina", "operator")
    site.accept_invitation("nina", passkey)
    waiting = site.pend(*site.enrolment_with_passkey("nina", passkey, ("operator",)))
    site.invite("nina", "operator", secret=digest_bytes(b"second"))
    assert site.state.pending.get(waiting.pae_digest) is None


@pytest.mark.parametrize("again", [False, True])
def test_an_order_that_was_made_before_its_passkey_was_dropped_is_refused(again: bool) -> None:
    site, passkey = stage("staffed"), new_passkey()
    site.invite("nina", "operator")
    site.accept_invitation("nina", passkey)
    order, documents = site.enrolment_with_passkey("nina", passkey, ("operator",))
    if again:
        site.invite("nina", "operator", secret=digest_bytes(b"second"))
    else:
        site.withdraw_invitation("nina")
    assert [one.code for one in list_refusal_reasons(site.state, order, site.now)] == ["passkey-not-invited"]
    with refuses(site, Denied, "The invitation of nina was not accepted with this passkey"):
        site.pend(order, documents)


def test_only_an_invitation_that_is_open_or_accepted_is_withdrawn_and_only_by_an_administrator() -> None:
    site, passkey = stage("staffed"), new_passkey()

    def codes(by: str = "ben") -> list[str]:
        order = site.order(WithdrawInvitation, by, principal="nina")
        return [reason.code for reason in list_refusal_reasons(site.state, order, site.now)]

    assert codes() == ["invitation-not-valid"], "nobody is invited"
    site.invite("nina", "operator", lasts_s=60)
    assert (codes(), codes("olga")) == ([], ["role-missing"])
    site.now = add_seconds(site.now, 60)
    assert codes() == ["invitation-not-valid"], "it has expired"
    site.invite("nina", "operator", lasts_s=60, secret=digest_bytes(b"second"))
    site.accept_invitation("nina", passkey)
    site.now = add_seconds(site.now, 60)
    assert codes() == [], "the passkey can still be enrolled"
    site.withdraw_invitation("nina")
    assert codes() == ["invitation-not-valid"], "it is withdrawn"
    site.invite("nina", "operator", secret=digest_bytes(b"third"))
    site.enrol("nina", "operator")
    assert codes() == ["invitation-not-valid"], "nina is enrolled"


def test_one_administrator_invites_and_cannot_enrol_alone() -> None:
    site = stage("staffed")
    order = site.order(
        Invite,
        "olga",
        principal="nina",
        printed_name=site.text("Nina Example"),
        roles=("operator",),
        secret=digest_bytes(b"new"),
        until=add_seconds(site.now, 600),
    )
    with refuses(site, Denied, "olga is operator. This action needs administrator."):
        site.ordered(PersonInvited(policy=site.in_force), order)
    with pytest.raises(Denied, match="anna signed this order and cannot countersign it"):
        site.enrol_with_passkey("nina", new_passkey(), "operator", second="anna")
