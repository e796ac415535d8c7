"""Tokens are revoked by the unit, its release owner or an administrator, and later requests with them are refused."""

from __future__ import annotations

import pytest

from appliance.domain.core.credentials import UnitToken, encode_credential
from appliance.domain.core.names import add_seconds
from appliance.domain.core.signatures import accept_token
from appliance.errors import Denied, NotAuthenticated
from appliance.formats.signatures.dsse import Envelope, sign_envelope
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.kit.refusals import refuses

ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def token(site: LogBuilder, unit: str = "legal", age_s: int = 0) -> Envelope:
    issued = add_seconds(site.now, -age_s)
    value = UnitToken(
        origin=ORIGIN, signer=unit, nonce="0" * 32, issued_at=issued, expires_at=add_seconds(issued, 3_600)
    )
    return sign_envelope(encode_credential(value), site.keys[unit])


@pytest.mark.parametrize("signer", ["anna", "legal", "otto"])
def test_one_token_is_revoked_and_its_neighbour_is_not(signer: str) -> None:
    site = stage("serving")
    first, second = token(site), token(site, age_s=1)
    site.revoke_tokens(signer=signer, token=first.pae_digest)
    with pytest.raises(NotAuthenticated, match="revoked by entry") as refused:
        accept_token(site.state, first, site.now)
    assert refused.value.code == "revoked"
    assert accept_token(site.state, second, site.now)[1].name == "legal"
    with refuses(site, NotAuthenticated, "revoked by entry"):
        site.add(site.request(3, token=first.pae_digest))
    site.add(site.request(3, token=second.pae_digest))


def test_all_that_were_issued_before_a_time_are_revoked_and_later_ones_are_not() -> None:
    site = stage("serving")
    old, new, others = token(site, age_s=10), token(site, age_s=1), token(site, "sales", age_s=10)
    site.revoke_tokens(issued_before=add_seconds(site.now, -5))
    with pytest.raises(NotAuthenticated, match="was issued at"):
        accept_token(site.state, old, site.now)
    for stands in (new, others):
        accept_token(site.state, stands, site.now)
    with refuses(site, NotAuthenticated, "was issued at"):
        site.add(site.request(3, token=ONE, token_issued_at=add_seconds(site.now, -10)))
    site.add(site.request(3, token=ONE, token_issued_at=add_seconds(site.now, -1)))


@pytest.mark.parametrize("signer", ["sales", "olga", "audrey", "rita"])
def test_nobody_else_revokes_a_units_tokens(signer: str) -> None:
    site = stage("serving")
    with refuses(site, Denied, "This action needs the unit legal or release-owner:legal or administrator"):
        site.revoke_tokens(signer=signer, token=ONE)


def test_an_order_says_one_thing_and_says_it_once() -> None:
    site = stage("serving")
    for fields in ({}, {"token": ONE, "issued_before": site.now}, {"token": ONE, "application": "indexer"}):
        with refuses(site, Denied, "of these: a token, a time before which tokens were issued, and an application."):
            site.revoke_tokens(**fields)
    site.revoke_tokens(token=ONE)
    with refuses(site, Denied, "The token of legal was revoked by entry 34."):
        site.revoke_tokens(token=ONE)
    site.revoke_tokens(token=OTHER)
    now = site.now
    site.revoke_tokens(issued_before=now)
    for time in (now, add_seconds(now, -1), add_seconds(now, 3_600)):
        with refuses(site, Denied, "Tokens can be revoked that were issued before a time after"):
            site.revoke_tokens(issued_before=time)
    with refuses(site, Denied, "rita is not an enrolled unit."):
        site.revoke_tokens(unit="rita", token=ONE)


def test_another_units_revocation_of_the_same_digest_is_not_this_units() -> None:
    """Otherwise a unit could end another unit's token by naming it."""
    site = stage("serving")
    mine = token(site)
    site.revoke_tokens("sales", "sales", token=mine.pae_digest)
    accept_token(site.state, mine, site.now)
    site.add(site.request(3, token=mine.pae_digest))
    site.revoke_tokens(token=mine.pae_digest)
