"""Unauthenticated attempts are counted until they are recorded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.credentials import SessionStatement, encode_credential
from appliance.domain.core.entry import parse_entry
from appliance.errors import Conflict, Denied, NotAuthenticated, RateLimited, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import generate_ed25519
from appliance.web.core import auth
from appliance.web.core.auth import CallerAuthenticator
from appliance.workflows import governance
from appliance.workflows.governance import Refusals, RefusedRequest, beat
from tests.kit.service import Service, running
from tests.kit.signed_session import sign_session


def test_an_attempt_that_was_refused_is_recorded_with_whom_and_which_key_it_claimed(home: Path) -> None:
    with running("staffed", home) as service:
        context, site = service.context, service.site
        for name, key in (
            ("rita", generate_ed25519()),
            ("mallory", site.keys["olga"]),
            ("mallory", generate_ed25519()),
        ):
            envelope = sign_session(service.authenticator, name, key)
            with pytest.raises(NotAuthenticated) as refused:
                service.authenticator.open_session(envelope, "unix")
            service.authenticator.count(None, refused.value)
        with service.authenticator.counted() as refusals:
            beat(context, refusals)
        ((_, data),) = context.ledger.find(types=["auth.refused"])
        entry = parse_entry(data)
        assert entry.body["count"] == 3
        assert (entry.body["principals"], entry.body["keys"]) == (["rita"], [site.keys["olga"].keyid])
        assert "mallory" not in str(entry)


def test_an_order_that_comes_again_is_counted_as_an_attempt(home: Path) -> None:
    again = Conflict("order: expected a new one, got one accepted as entry 3")
    again.claimed = ("rita", "sha256:1")
    with running("staffed", home) as service:
        service.authenticator.count(None, again)
        service.authenticator.count(None, Conflict("dataset: expected another name, got one that is there"))
        with service.authenticator.counted() as refusals:
            assert (refusals.unauthenticated, refusals.claimed) == (1, {("rita", "sha256:1")})


def test_refusals_that_could_not_be_recorded_are_counted_on() -> None:
    context: Any = SimpleNamespace(clock=lambda: datetime(2026, 11, 26, tzinfo=UTC))
    authenticator = CallerAuthenticator(context)
    for _ in range(2):
        authenticator.count(None, NotAuthenticated("token: expected one, got none"))
    authenticator.count("legal", RateLimited("requests: expected fewer"))
    first = Refusals(2, "2026-11-26T00:00:00.000Z", {RefusedRequest("legal", "rate-limited"): 1})

    def record() -> None:
        with authenticator.counted() as counted:
            assert counted == first
            authenticator.count("legal", RateLimited("requests: expected fewer"))
            raise Unavailable("ledger: expected a database, got none")

    with pytest.raises(Unavailable):
        record()
    with authenticator.counted() as counted:
        assert counted == Refusals(2, first.since, {RefusedRequest("legal", "rate-limited"): 2})
    with authenticator.counted() as counted:
        assert counted == Refusals()


def test_no_number_of_open_challenges_keeps_a_person_out(home: Path) -> None:
    """Nor do they use memory up; each is answered once."""
    with running("staffed", home) as service:
        authenticator = service.authenticator

        first = statement_of(service)
        for _ in range(5_000):
            authenticator.challenge()
        assert authenticator.open_session(first, "unix")[1].principal == "rita"
        authenticator.open_session(statement_of(service), "unix")
        with pytest.raises(NotAuthenticated, match="unknown, used or too old"):
            authenticator.open_session(first, "unix")


@pytest.mark.parametrize(("moved_s", "stands_s"), [(0, 599), (-30 * 86_400, 600), (300, 299)])
def test_a_session_outlives_its_own_lifetime_by_no_move_of_the_clock(
    monkeypatch: pytest.MonkeyPatch, moved_s: float, stands_s: float
) -> None:
    """Not even by one between its entry and its end."""
    issued = datetime(2026, 11, 26, tzinfo=UTC)
    times = iter([issued, issued + timedelta(seconds=1 + moved_s)])
    context: Any = SimpleNamespace(clock=lambda: next(times), ledger=SimpleNamespace(state=SimpleNamespace(size=0)))
    authenticator, signer = CallerAuthenticator(context), generate_ed25519()
    ends = encode_time(issued + timedelta(seconds=600))
    checked = SimpleNamespace(identity=None, expires_at=ends)
    monkeypatch.setattr(auth.governance, "check_statement", lambda context, *_: context.clock() and checked)
    monkeypatch.setattr(auth.governance, "open_session", lambda *_: "token")
    monkeypatch.setattr(auth.time, "monotonic", lambda: 1_000.0)
    statement = SessionStatement(
        origin="bank.example/test",
        signer="olga",
        nonce=authenticator.challenge(),
        issued_at=encode_time(issued),
        expires_at=ends,
    )
    authenticator.open_session(encode_envelope(sign_envelope(encode_credential(statement), signer)), "unix")
    assert authenticator._ends == {"token": 1_000.0 + stands_s}


def statement_of(service: Service, who: str = "rita") -> bytes:
    """Return the statement that this person signs to open a session."""
    return sign_session(service.authenticator, who, service.site.keys[who])


def test_a_person_has_a_bounded_number_of_open_sessions(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governance, "MOST_OPEN", 3)
    with running("staffed", home) as service:
        authenticator, context = service.authenticator, service.context
        tokens = [authenticator.open_session(statement_of(service), "unix")[0] for _ in range(3)]
        with pytest.raises(Denied, match="expected fewer than 3 open ones of rita, got 3") as refused:
            authenticator.open_session(statement_of(service), "unix")
        assert refused.value.code == "rate-limited-sessions"
        authenticator.open_session(statement_of(service, "anna"), "unix")
        authenticator.end_session(f"Bearer {tokens[0]}", "unix")
        authenticator.open_session(statement_of(service), "unix")
        assert len(context.ledger.find(types=["session.opened"])) == 5
