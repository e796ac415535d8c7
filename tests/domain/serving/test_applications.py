"""A unit's application gets tokens by its own key, and that key does nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.domain.core.credentials import UnitToken, encode_credential
from appliance.domain.core.names import add_seconds
from appliance.domain.core.records.people import Application
from appliance.domain.core.signatures import accept_session, accept_token
from appliance.domain.governance.keys import ReplaceKey
from appliance.domain.serving.applications import MOST_TOKENS, ApplicationEnrolled, accept_issued
from appliance.domain.serving.tokens import RevokeTokens, TokensRevoked
from appliance.errors import Denied, NotAuthenticated
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
    key = site.enroll_application()
    token = site.issue(site.token_request(key))
    assert application(site).tasks == ("labels",)
    row, found = accept_issued(site.state, token, site.now)
    assert (row.unit, found.name, found.keyid) == ("legal", "indexer", key.keyid)
    asks(site, 3, token)
    site.add(site.answered(3))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"by": "anna"}, "expected anna to be unit"),
        ({"by": "otto"}, "expected otto to be unit"),
        ({"by": "sales"}, "unit: expected the signer's own name sales, got legal"),
        ({"tasks": ("labels", "labels")}, "tasks: expected each once"),
    ],
)
def test_only_the_unit_itself_enrols_one(fields: dict[str, object], words: str) -> None:
    site = stage("serving")
    with refuses(site, Denied, words):
        site.enroll_application(**fields)


def test_names_and_keys_are_used_once() -> None:
    site = stage("serving")
    key = site.enroll_application()
    with refuses(site, Denied, "expected a name never used by legal, got indexer"):
        site.enroll_application()
    with refuses(site, Denied, "which belongs to the application indexer of legal"):
        site.enroll_application(application="another", held=key)
    with refuses(site, Denied, "which belongs to legal"):
        site.enroll_application(application="another", held=site.keys["legal"])
    order, documents, _ = site.new_key(ReplaceKey, "anna", "rita", key=application(site).spki, keyid=key.keyid)
    with refuses(site, Denied, "which belongs to the application indexer of legal"):
        site.pend(order, documents)
    site.revoke_tokens(application="indexer")
    with refuses(site, Denied, "expected a name never used by legal, got indexer"):
        site.enroll_application()


def test_the_key_signs_no_order_no_session_and_no_token_of_the_units_own() -> None:
    site = stage("serving")
    key = site.enroll_application()
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
    key = site.enroll_application()
    with refuses(site, NotAuthenticated, words):
        site.issue(site.token_request(key, **fields))


def test_a_key_asks_for_its_own_application_alone() -> None:
    site = stage("serving")
    site.enroll_application()
    other = site.enroll_application(application="another")
    for key in (other, generate_ed25519(), site.keys["legal"]):
        with refuses(site, NotAuthenticated, "expected the key of indexer"):
            site.issue(site.token_request(key))


def test_a_requests_signature_and_its_dates_hold_or_nothing_is_issued() -> None:
    site = stage("serving")
    key = site.enroll_application()
    request = site.token_request(key)
    forged = sign_envelope(request.payload, generate_ed25519())
    under_its_name = replace(forged.signatures[0], keyid=key.keyid)
    with refuses(site, NotAuthenticated, "signature"):
        site.issue(replace(forged, signatures=(under_its_name,)))
    now = site.now
    for fields, code in (
        ({"expires_at": add_seconds(now, 3_700)}, "too-long"),
        ({"issued_at": add_seconds(now, -50), "expires_at": add_seconds(now, -1)}, "expired"),
        ({"issued_at": add_seconds(now, 600), "expires_at": add_seconds(now, 900)}, "not-yet-valid"),
    ):
        with refuses(site, NotAuthenticated, code=code):
            site.issue(site.token_request(key, **fields))
    early = site.token_request(key, issued_at=add_seconds(now, -600), expires_at=add_seconds(now, 60))
    with refuses(site, NotAuthenticated, "expected one issued since"):
        site.issue(early)


def test_one_request_gives_one_token_and_no_more_than_some_stand_at_a_time() -> None:
    site = stage("serving")
    key = site.enroll_application()
    request = site.token_request(key)
    site.issue(request)
    with refuses(site, Denied, "token request: expected a new one"):
        site.issue(request)
    for _ in range(MOST_TOKENS - 1):
        site.issue(site.token_request(key))
    with refuses(site, Denied, f"expected fewer than {MOST_TOKENS} that stand", code="too-many-tokens"):
        site.issue(site.token_request(key))


def test_what_an_entry_says_of_a_token_is_what_was_signed() -> None:
    site = stage("serving")
    key = site.enroll_application()
    for fields in ({"unit": "sales"}, {"application": "another"}):
        with refuses(site, Denied, "application"):
            site.issue(site.token_request(key), **fields)


def test_an_ended_application_opens_nothing_and_neither_do_its_tokens() -> None:
    site = stage("serving")
    key = site.enroll_application()
    token = site.issue(site.token_request(key))
    site.revoke_tokens(signer="otto", application="indexer")
    with pytest.raises(NotAuthenticated, match="got one ended by entry") as ended:
        accept_issued(site.state, token, site.now)
    assert ended.value.code == "revoked"
    with refuses(site, NotAuthenticated, "got one ended by entry"):
        site.issue(site.token_request(key))
    with refuses(site, NotAuthenticated, "got one ended by entry"):
        asks(site, 3, token)
    for name, words in (("indexer", "expected one that stands"), ("another", "expected one that legal enrolled")):
        with refuses(site, Denied, words):
            site.revoke_tokens(application=name)


def test_one_of_its_tokens_ends_alone_and_all_of_a_time_end_together() -> None:
    site = stage("serving")
    key = site.enroll_application()
    one, other = (site.issue(site.token_request(key)) for _ in range(2))
    site.revoke_tokens(token=one)
    with pytest.raises(NotAuthenticated, match="revoked by entry"):
        accept_issued(site.state, one, site.now)
    accept_issued(site.state, other, site.now)
    site.revoke_tokens(issued_before=add_seconds(site.now, 30))
    with pytest.raises(NotAuthenticated, match="expected one issued since"):
        accept_issued(site.state, other, site.now)


def test_with_the_unit_its_applications_end() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enroll_application()))
    site.revoke("legal")
    with pytest.raises(NotAuthenticated, match="expected a standing unit"):
        accept_issued(site.state, token, site.now)


@pytest.mark.parametrize("back", [False, True])
def test_a_revoked_key_of_the_unit_takes_the_applications_that_it_enrolled_since(back: bool) -> None:
    site = stage("serving")
    since = site.state.size
    token = site.issue(site.token_request(site.enroll_application()))
    site.revoke_key("legal", since=since if back else None)
    if back:
        with pytest.raises(NotAuthenticated, match="enrolled by a key that counts"):
            accept_issued(site.state, token, site.now)
    else:
        accept_issued(site.state, token, site.now)


def test_a_request_names_the_application_whose_token_it_came_with_and_one_of_its_tasks() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enroll_application()))
    elsewhere = site.issue(
        site.token_request(site.enroll_application(application="other", tasks=("payroll",)), application="other"),
        application="other",
    )
    with refuses(site, Denied, "application: expected indexer, got None"):
        asks(site, 3, token, application=None)
    with refuses(site, Denied, "application: expected None, got indexer"):
        asks(site, 3, "sha256:" + "7" * 64)
    with refuses(site, Denied, "task: expected one of payroll, got labels"):
        asks(site, 3, elsewhere, application="other")
    asks(site, 3, token)


def test_a_later_time_of_a_token_does_not_get_past_a_revocation_by_time() -> None:
    site = stage("serving")
    token = site.issue(site.token_request(site.enroll_application()))
    row = site.state.issued_tokens.get(token)
    assert row is not None
    before = add_seconds(row.issued_at, 1)
    site.revoke_tokens(issued_before=before)
    with refuses(site, NotAuthenticated, "expected one issued since"):
        asks(site, 3, token)
    with refuses(site, Denied, f"token_issued_at: expected {row.issued_at}, got {before}"):
        asks(site, 3, token, token_issued_at=before)


def test_what_has_ended_is_forgotten_after_a_while_and_makes_room() -> None:
    site = stage("serving")
    key = site.enroll_application()
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
    key = site.enroll_application()
    right = run_ahead(site, 20 * DAY_S)
    token = site.issue(site.token_request(key))
    reset_clock(site, right)
    assert token not in site.state.issued_tokens
    with pytest.raises(NotAuthenticated, match="expected one that this appliance issued"):
        accept_issued(site.state, token, site.now)
