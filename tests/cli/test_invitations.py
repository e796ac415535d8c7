"""Invitations from the command line: the client makes the secret and compares the short code before an enrolment."""

from __future__ import annotations

import json
from collections.abc import Callable

from appliance.formats.core.digest import digest_bytes, short_code
from appliance.formats.core.fields import parse_base64url
from scripts.kit.authenticator import new_passkey
from tests.cli.conftest import Desk
from tests.kit.service import CONSOLE

Open = Callable[[str], Desk]
NINA = ("nina", "--printed-name", "Nina Example", "--role", "operator")
AT = ("--console", "https://appliance.example/", "--yes")


def test_an_invitation_prints_an_address_whose_secret_the_log_has_the_digest_of(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "invite", *NINA, *AT, "--json")
    assert told.code == 0, told.err
    address, _, secret = json.loads(told.out)["address"].partition("#")
    assert address == "https://appliance.example/invitation"
    row = desk.site.state.invitations.get("nina")
    assert row is not None and row.secret == digest_bytes(parse_base64url(secret, "secret"))
    assert len(parse_base64url(secret, "secret")) == 32
    told = desk.as_("anna", "principal", "invite", "omar", *NINA[1:], *AT)
    assert told.code == 0 and "https://appliance.example/invitation#" in told.out
    assert "principal enrol omar --invited" in told.err


def test_an_invitation_that_lasts_longer_than_an_hour_is_refused(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "invite", *NINA, *AT, "--until", "2h")
    assert told.code != 0 and "An invitation can end by" in told.err and "#" not in told.out
    assert desk.ordered() == 0


def test_two_administrators_enrol_an_invited_person_whose_short_code_was_compared(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    desk.site.invite("nina", "operator")
    early = desk.as_("anna", "principal", "enrol", *NINA, "--invited", "--short-code", "AAAA", "--yes")
    assert early.code != 0 and "expected one that nina has accepted, got none" in early.err
    desk.site.accept_invitation("nina", passkey)
    for words, message in (
        (("--short-code", short_code(digest_bytes(b"x"))), "expected that of the passkey of nina, got another"),
        ((), "expected --short-code"),
        (("--proof", "nina.proof"), "expected NAME with --proof or --invited"),
    ):
        told = desk.as_("anna", "principal", "enrol", *NINA, "--invited", *words, "--yes")
        assert told.code != 0 and message in told.err, told.err
    code = short_code(passkey.keyid).lower()
    told = desk.as_("anna", "principal", "enrol", *NINA, "--invited", "--short-code", code, "--yes")
    assert told.code == 0, told.err
    assert f"short code: {short_code(passkey.keyid)}" in " ".join(told.err.split())
    for words, message in (
        (("--short-code", short_code(digest_bytes(b"x"))), "expected that of the passkey of nina, got another"),
        ((), "expected --short-code"),
    ):
        told = desk.as_("ben", "order", "countersign", *words, "--yes")
        assert told.code != 0 and message in told.err and short_code(passkey.keyid) not in told.err, told.err
    told = desk.as_("ben", "order", "countersign", "--short-code", code, "--yes")
    assert told.code == 0, told.err
    person = desk.site.state.principals.get("nina")
    assert person is not None and (person.roles, person.keyid) == (("operator",), passkey.keyid)


def test_an_order_that_waits_is_shown_without_the_short_code_that_the_person_reads_out(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    desk.site.invite("nina", "operator")
    desk.site.accept_invitation("nina", passkey)
    order, documents = desk.site.enrolment_with_passkey("nina", passkey, ("operator",))
    desk.site.pend(order, documents)
    told = desk.as_("ben", "order", "show")
    assert told.code == 0 and passkey.keyid in told.out
    assert short_code(passkey.keyid) not in told.out and "short code" not in told.out


def test_an_invitation_takes_the_console_s_address_from_the_service(open_desk: Open) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "principal", "invite", *NINA, "--yes")
    assert told.code == 0 and f"{CONSOLE}/invitation#" in told.out
    desk.service.bend["/v1/console"] = lambda answer: {"url": "javascript:alert(1)"}
    told = desk.as_("anna", "principal", "invite", "omar", *NINA[1:], "--yes")
    assert told.code != 0 and "service, console: expected an address" in told.err
    assert desk.site.state.invitations.get("omar") is None, "nothing was signed"


def test_another_order_is_countersigned_without_a_short_code(open_desk: Open) -> None:
    desk = open_desk("staffed")
    assert desk.as_("anna", "principal", "grant", "rita", "release-owner:sales", "--yes").code == 0
    told = desk.as_("ben", "order", "countersign", "--short-code", "AAAA", "--yes")
    assert told.code != 0 and "expected none, since the order enrols no invited person" in told.err
    told = desk.as_("ben", "order", "countersign", "--yes")
    assert told.code == 0, told.err


def test_another_invitation_says_that_it_drops_the_passkey_of_the_first(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    first = desk.as_("anna", "principal", "invite", *NINA, *AT)
    assert first.code == 0 and "drops" not in first.err
    desk.site.accept_invitation("nina", passkey)
    told = desk.as_("anna", "principal", "invite", *NINA, *AT)
    assert told.code == 0, told.err
    assert f"with the short code {short_code(passkey.keyid)} by an earlier invitation" in told.err
    again = desk.as_("anna", "principal", "invite", *NINA, *AT)
    assert again.code == 0 and "drops" not in again.err, "the passkey was dropped before"


def test_another_administrator_withdraws_an_invitation_whose_passkey_then_cannot_be_enrolled(open_desk: Open) -> None:
    desk, passkey = open_desk("staffed"), new_passkey()
    told = desk.as_("ben", "principal", "withdraw-invitation", "nina", "--yes")
    assert told.code != 0 and "no invitation that is open or accepted" in told.err
    assert desk.as_("anna", "principal", "invite", *NINA, *AT).code == 0
    desk.site.accept_invitation("nina", passkey)
    told = desk.as_("ben", "principal", "withdraw-invitation", "nina", "--reason", "The address was seen.", "--yes")
    assert told.code == 0 and "the invitation of nina was withdrawn" in told.out + told.err, told.err
    row = desk.site.state.invitations.get("nina")
    assert row is not None and row.withdrawn is not None
    code = short_code(passkey.keyid)
    told = desk.as_("anna", "principal", "enrol", *NINA, "--invited", "--short-code", code, "--yes")
    assert told.code != 0 and "expected one that nina has accepted, got none" in told.err
    again = desk.as_("anna", "principal", "invite", *NINA, *AT)
    assert again.code == 0 and "drops" not in again.err, "the passkey was dropped before"
