"""A unit's application gets tokens by its own key, and that key does nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.credentials import UnitToken, encode_credential
from appliance.domain.core.names import NO_DIGEST, add_seconds
from appliance.domain.core.records.people import Application
from appliance.domain.core.signatures import accept_session, accept_token
from appliance.domain.governance.keys import KeyRevoked, ReplaceKey, RevokeKey, RotateKey
from appliance.domain.serving.tokens import (
    MOST_TOKENS,
    ApplicationEnrolled,
    RevokeTokens,
    TokensRevoked,
    accept_issued,
    application_ended,
)
from appliance.errors import Denied, NotAuthenticated
from appliance.formats.core.fields import encode_base64
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.refusals import refuses


def application(site: LogBuilder, name: str = "legal/indexer") -> Application:
    found = site.state.applications.get(name)
    assert found is not None
    return found


def asks(site: LogBuilder, number: int, token: str, **fields: object) -> None:
    site.add(site.request(number, **{"application": "indexer", "token": token, **fields}))


def test_an_application_is_given_a_token_that_asks_for_its_tasks() -> None:
    site = stage("serving")
    key = site.enrol_application()
    token = site.issue(site.token_request(key))
    assert application(site).served_models == ("labels",)
    row, found = accept_issued(site.state, token, site.now)
    assert (row.unit, found.name, found.keyid) == ("legal", "indexer", key.keyid)
    asks(site, 3, token)
    site.add(site.answered(3))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"by": "anna"}, "anna is administrator. This action needs the unit legal."),
        ({"by": "otto"}, "otto is release-owner:legal. This action needs the unit legal."),
        ({"by": "sales"}, "sales is unit. This action needs the unit legal."),
        ({"served_models": ("labels", "labels")}, "The order names a served model twice."),
    ],
)
def test_only_the_unit_itself_enrols_one(fields: dict[str, object], words: str) -> None:
    site = stage("serving")
    with refuses(site, Denied, words):
        site.enrol_application(**fields)


def test_names_and_keys_are_used_once() -> None:
    site = stage("serving")
    key = site.enrol_application()
    with refuses(site, Denied, "The unit has had an application with the name indexer."):
        site.enrol_application()
    for held in (key, site.keys["legal"]):
        with refuses(site, Denied, f"The key {held.keyid} was enrolled before"):
            site.enrol_application(application="another", held=held)
    order, documents, _ = site.new_key(ReplaceKey, "anna", "rita", key=application(site).spki, keyid=key.keyid)
    with refuses(site, Denied, f"The key {key.keyid} was enrolled before"):
        site.pend(order, documents)
    site.revoke_tokens(application="indexer")
    with refuses(site, Denied, "The unit has had an application with the name indexer."):
        site.enrol_application()


def test_the_key_signs_no_order_no_session_and_no_token_of_the_units_own() -> None:
    site = stage("serving")
    key = site.enrol_application()
    order = site.order(RevokeTokens, "legal", unit="legal", token=None, issued_before=None, application="indexer")
    with refuses(site, NotAuthenticated, "expected a key enrolled for this principal"):
        site.ordered(TokensRevoked(policy=site.in_force), order, key=key)
    again, documents, _ = site.application_order(application="another")
    with refuses(site, NotAuthenticated, "expected a key enrolled for this principal"):
        site.ordered(ApplicationEnrolled(policy=site.in_force), again, key=key, documents=documents)
    own = UnitToken(
        origin=ORIGIN,
        signer="legal",
        nonce="0" * 32,
        issued_at=site.now,
        expires_at=add_seconds(site.now, 600),
    )
    with pytest.raises(NotAuthenticated, match="expected a key enrolled for this principal"):
        accept_token(site.state, sign_envelope(encode_credential(own), key), site.now)
    with pytest.raises(NotAuthenticated, match="expected a key enrolled for this principal"):
        session = sign_envelope(site.session("legal").payload, key)
        accept_session(site.state, encode_envelope(session), site.now)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"unit": "sales"}, "application indexer of sales: expected one that was enrolled, got none"),
        ({"application": "another"}, "application another of legal: expected one that was enrolled, got none"),
        ({"origin": "other.example/log"}, "expected one for the log"),
    ],
)
def test_a_request_in_anothers_name_is_refused(fields: dict[str, str], words: str) -> None:
    site = stage("serving")
    key = site.enrol_application()
    with refuses(site, NotAuthenticated, words):
        site.issue(site.token_request(key, **fields))


def test_a_key_asks_for_its_own_application_alone() -> None:
    site = stage("serving")
    site.enrol_application()
    other = site.enrol_application(application="another")
    for key in (other, generate_ed25519(), site.keys["legal"]):
        with refuses(site, NotAuthenticated, "expected the key of indexer"):
            site.issue(site.token_request(key))


def test_a_requests_signature_and_its_dates_hold_or_nothing_is_issued() -> None:
    site = stage("serving")
    key = site.enrol_application()
    request = site.token_request(key)
    forged = sign_envelope(request.payload, generate_ed25519())
    under_its_name = replace(forged.signature, keyid=key.keyid)
    with refuses(site, NotAuthenticated, "signature"):
        site.issue(replace(forged, signature=under_its_name))
    now = site.now
    for fields, code in (
        ({"expires_at": add_seconds(now, 3_700)}, "too-long"),
        ({"issued_at": add_seconds(now, -50), "expires_at": add_seconds(now, -1)}, "expired"),
        ({"issued_at": add_seconds(now, 600), "expires_at": add_seconds(now, 900)}, "not-yet-valid"),
    ):
        with refuses(site, NotAuthenticated, code=code):
            site.issue(site.token_request(key, **fields))
    early = site.token_request(key, issued_at=add_seconds(now, -600), expires_at=add_seconds(now, 60))
    with refuses(site, NotAuthenticated, "was issued at"):
        site.issue(early)


def test_an_application_ends_with_the_key_that_enrolled_it() -> None:
    site = stage("serving")
    key = site.enrol_application()
    site.rotate("legal", old_until=add_seconds(site.now, DAY_S))
    assert application_ended(site.state, application(site)) is None
    enrolled_by = application(site).enrolled_by
    order = site.order(RevokeKey, "anna", principal="legal", keyid=enrolled_by, since=application(site).enrolled)
    site.ordered(KeyRevoked(policy=site.in_force), order)
    ended = application_ended(site.state, application(site))
    assert ended is not None and ended.code == "application-key-invalid"
    with refuses(site, NotAuthenticated, str(ended)):
        site.issue(site.token_request(key))


def test_one_request_gives_one_token_and_no_more_than_some_stand_at_a_time() -> None:
    site = stage("serving")
    key = site.enrol_application()
    request = site.token_request(key)
    site.issue(request)
    with refuses(site, Denied, "token request: expected a new one"):
        site.issue(request)
    for _ in range(MOST_TOKENS - 1):
        site.issue(site.token_request(key))
    with refuses(site, Denied, f"expected fewer than {MOST_TOKENS} that stand", code="rate-limited-tokens"):
        site.issue(site.token_request(key))


def test_what_an_entry_says_of_a_token_is_what_was_signed() -> None:
    site = stage("serving")
    key = site.enrol_application()
    for fields in ({"unit": "sales"}, {"application": "another"}):
        with refuses(site, Denied, "application"):
            site.issue(site.token_request(key), **fields)


def test_an_ended_application_opens_nothing_and_neither_do_its_tokens() -> None:
    site = stage("serving")
    key = site.enrol_application()
    token = site.issue(site.token_request(key))
    site.revoke_tokens(signer="otto", application="indexer")
    with pytest.raises(NotAuthenticated, match="The application was ended by entry 36") as ended:
        accept_issued(site.state, token, site.now)
    assert ended.value.code == "revoked"
    with refuses(site, NotAuthenticated, "The application was ended by entry 36."):
        site.issue(site.token_request(key))
    with refuses(site, NotAuthenticated, "The application was ended by entry 36."):
        asks(site, 3, token)
    for name, words in (
        ("indexer", "The application was ended by entry 36."),
        ("another", "The unit has no application with the name another."),
    ):
        with refuses(site, Denied, words):
            site.revoke_tokens(application=name)


def test_one_of_its_tokens_ends_alone_and_all_of_a_time_end_together() -> None:
    site = stage("serving")
    key = site.enrol_application()
    one, other = (site.issue(site.token_request(key)) for _ in range(2))
    site.revoke_tokens(token=one)
    with pytest.raises(NotAuthenticated, match="revoked by entry"):
        accept_issued(site.state, one, site.now)
    accept_issued(site.state, other, site.now)
    site.revoke_tokens(issued_before=add_seconds(site.now, 30))
    with pytest.raises(NotAuthenticated, match="was issued at"):
        accept_issued(site.state, other, site.now)


def test_with_the_unit_its_applications_end() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enrol_application()))
    site.revoke("legal")
    with pytest.raises(NotAuthenticated, match="the unit of the application, was revoked"):
        accept_issued(site.state, token, site.now)


@pytest.mark.parametrize("back", [False, True])
def test_a_revoked_key_of_the_unit_takes_the_applications_that_it_enrolled_since(back: bool) -> None:
    site = stage("serving")
    since = site.state.size
    token = site.issue(site.token_request(site.enrol_application()))
    site.revoke_key("legal", since=since if back else None)
    if back:
        with pytest.raises(NotAuthenticated, match="was enrolled with a key of"):
            accept_issued(site.state, token, site.now)
    else:
        accept_issued(site.state, token, site.now)


def test_a_request_names_the_application_whose_token_it_came_with_and_one_of_its_tasks() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enrol_application()))
    elsewhere = site.issue(
        site.token_request(
            site.enrol_application(application="other", served_models=("payroll",)), application="other"
        ),
        application="other",
    )
    with refuses(site, Denied, "application: expected indexer, got None"):
        asks(site, 3, token, application=None)
    with refuses(site, Denied, "application: expected None, got indexer"):
        asks(site, 3, "sha256:" + "7" * 64)
    with refuses(site, Denied, "served_model: expected one of payroll, got labels"):
        asks(site, 3, elsewhere, application="other")
    asks(site, 3, token)


def test_a_later_time_of_a_token_does_not_get_past_a_revocation_by_time() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enrol_application()))
    row = site.state.issued_tokens.get(token)
    assert row is not None
    before = add_seconds(row.issued_at, 1)
    site.revoke_tokens(issued_before=before)
    with refuses(site, NotAuthenticated, "was issued at"):
        asks(site, 3, token)
    with refuses(site, Denied, f"token_issued_at: expected {row.issued_at}, got {before}"):
        asks(site, 3, token, token_issued_at=before)


def test_what_has_ended_is_forgotten_after_a_while_and_makes_room() -> None:
    site = stage("serving")
    key = site.enrol_application()
    old = site.issue(site.token_request(key, expires_at=add_seconds(site.now, 30)))
    site.now = add_seconds(site.now, 120)
    with pytest.raises(NotAuthenticated, match="expired") as late:
        accept_issued(site.state, old, site.now)
    assert late.value.code == "expired"
    site.issue(site.token_request(key))
    assert old in site.state.issued_tokens
    site.now = add_seconds(site.now, 600)
    site.issue(site.token_request(key))
    assert old not in site.state.issued_tokens


def test_no_token_from_before_a_clock_reset_counts_or_is_in_the_way() -> None:
    site = stage("serving")
    key = site.enrol_application()
    right = run_ahead(site, 20 * DAY_S)
    token = site.issue(site.token_request(key))
    reset_clock(site, right)
    assert token not in site.state.issued_tokens
    with pytest.raises(NotAuthenticated, match="expected one that this appliance issued"):
        accept_issued(site.state, token, site.now)


@pytest.mark.parametrize("owner", ["an application", "a unit"])
def test_a_unit_that_names_anothers_key_does_not_learn_whose_it_is(owner: str) -> None:
    site = stage("serving")
    held = site.enrol_application() if owner == "an application" else site.keys["legal"]
    site.enrol("claims", "unit")
    order = site.order(
        RotateKey, "claims", principal="claims", key=encode_base64(held.spki), keyid=held.keyid,
        possession=NO_DIGEST, old_until=site.now,
    )  # fmt: skip
    reasons = list_refusal_reasons(site.state, order, site.now)
    assert [(one.code, one.subject, one.values) for one in reasons] == [("key-taken", f"key:{held.keyid}", {})]
