"""Orders of one signer cannot fill the log, and do not count against another signer's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import Conflict, RateLimited
from appliance.formats.signatures.dsse import encode_envelope
from appliance.workflows import orders
from appliance.workflows.core import context as contexts
from appliance.workflows.core.context import SignerRate
from tests.kit.service import Service, running
from tests.kit.signed_session import sign_session

MOST = 3


@contextmanager
def limited(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(contexts, "MOST_RECORDED_A_MINUTE", MOST)
    with running("staffed", home) as service:
        yield service


def sign_revocation(service: Service, unit: str = "legal") -> bytes:
    """Sign the revocation of a token that nobody has, which the rules accept."""
    token = f"sha256:{os.urandom(32).hex()}"
    order = service.site.order(RevokeTokens, unit, unit=unit, token=token, issued_before=None, application=None)
    return encode_envelope(service.site.sign(order))


def submit(service: Service, envelope: bytes) -> None:
    orders.submit(service.context, orders.Submission(envelope, (), {}, "unix"))


def test_accepted_orders_of_one_signer_are_bounded_in_a_minute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with limited(home, monkeypatch) as service:
        now = 0.0
        service.context.signer_rate = SignerRate(clock=lambda: now)
        for _ in range(MOST):
            submit(service, sign_revocation(service))
        size = service.context.ledger.state.size
        waiting = sign_revocation(service)
        with pytest.raises(RateLimited, match="at most 3 orders and sessions of legal in a minute") as refused:
            submit(service, waiting)
        assert service.context.ledger.state.size == size and refused.value.retry_after_s == 61
        submit(service, sign_revocation(service, "sales"))
        now = 60.0
        submit(service, waiting)


def test_opened_sessions_count_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with limited(home, monkeypatch) as service:
        key = service.site.keys["legal"]
        for _ in range(MOST):
            token, _ = service.authenticator.open_session(sign_session(service.authenticator, "legal", key), "unix")
            service.authenticator.end_session(f"Bearer {token}", "unix")
        with pytest.raises(RateLimited):
            service.authenticator.open_session(sign_session(service.authenticator, "legal", key), "unix")
        with pytest.raises(RateLimited):
            submit(service, sign_revocation(service))


def test_bytes_that_are_sent_again_use_up_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the log can send its orders."""
    with limited(home, monkeypatch) as service:
        envelope = sign_revocation(service)
        submit(service, envelope)
        for _ in range(2 * MOST):
            with pytest.raises(Conflict):
                submit(service, envelope)
        submit(service, sign_revocation(service))


def test_a_thief_who_used_up_the_limit_does_not_delay_the_revocation_of_the_key(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limited(home, monkeypatch) as service:
        key = service.site.keys["anna"]
        for _ in range(MOST):
            service.authenticator.open_session(sign_session(service.authenticator, "anna", key), "unix")
        order = service.site.order(RevokePrincipal, "anna", principal="olga")
        submit(service, encode_envelope(service.site.sign(order)))
        revocation = service.site.order(RevokeKey, "anna", principal="anna", keyid=key.keyid, since=None)
        submit(service, encode_envelope(service.site.sign(revocation)))
        row = service.context.ledger.state.keys.get(key.keyid)
        assert row is not None and row.revoked is not None


def test_further_revocations_of_one_key_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can name an earlier entry, so there can be many."""
    with limited(home, monkeypatch) as service:
        keyid, size = service.site.keys["olga"].keyid, service.context.ledger.state.size
        made = [
            service.site.order(RevokeKey, "anna", principal="olga", keyid=keyid, since=size - earlier)
            for earlier in range(MOST + 1)
        ]
        for order in made[:-1]:
            submit(service, encode_envelope(service.site.sign(order)))
        with pytest.raises(RateLimited):
            submit(service, encode_envelope(service.site.sign(made[-1])))
