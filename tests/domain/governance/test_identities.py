"""Identities: bound by two administrators; a session that needs one is opened with a fresh token's record only."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.identity import IdentityKey
from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.identities import (
    BindIdentity,
    IdentityUnbound,
    SessionIdentity,
    UnbindIdentity,
    list_unbound_people,
)
from appliance.domain.governance.policies import list_policy_signers
from appliance.domain.governance.sessions import SessionOpened, has_ended_binding
from appliance.errors import BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import ISSUER, LogBuilder, policy_set, stage
from tests.domain.audit.test_verify import verify
from tests.kit.identity_provider import CLIENT, Provider, new_key, public
from tests.kit.refusals import refuses

PROVIDER = Provider()
REMOTE = "tcp:10.0.0.7"


def founded(**pinned: Any) -> LogBuilder:
    """Return a site whose policy requires identities, with rita bound."""
    site = stage("staffed").fork()
    site.bind("rita")
    site.adopt(policy_set(identity_provider=PROVIDER.pinned(**pinned)))
    return site


def identity(site: LogBuilder, name: str = "rita", **fields: Any) -> SessionIdentity:
    row = site.state.identities.get(name)
    defaults: dict[str, Any] = {
        "issuer": ISSUER,
        "binding": 1 if row is None else row.index,
        "key": "k1",
        "token": digest_bytes(b"token"),
        "issued_at": site.now,
        "expires_at": add_seconds(site.now, 300),
    }
    return SessionIdentity(**defaults | fields)


def open_session(site: LogBuilder, found: SessionIdentity | None, name: str = "rita", source: str = REMOTE) -> int:
    documents = {"session": encode_envelope(site.session(name))}
    return site.add(SessionOpened(identity=found), documents=documents, actor=name, source=source).index


def reasons(site: LogBuilder, order: BindIdentity | UnbindIdentity) -> list[str]:
    return [one.code for one in list_refusal_reasons(site.state, order, site.now)]


def test_a_session_ends_with_its_token_or_the_policys_longest_time_and_the_log_verifies() -> None:
    site = founded(lifetime_s=120)
    site.now = add_seconds(site.now, 60)
    began = site.now
    open_session(site, identity(site, issued_at=began, expires_at=add_seconds(began, 300)))
    open_session(site, identity(site, issued_at=began, expires_at=add_seconds(began, 60)))
    open_session(site, identity(site, issued_at=add_seconds(began, -90), expires_at=add_seconds(began, 300)))
    row = site.state.sessions.get("rita")
    assert row is not None
    assert [one.expires_at for one in row.open] == [add_seconds(began, seconds) for seconds in (120, 60, 30)]
    assert verify(site).verdict == "verified"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"issuer": "https://login.other.example"}, "identity-claim-differs"),
        ({"binding": 2}, "identity-binding-differs"),
        ({"key": "k2"}, "identity-token-invalid"),
        ({"issued_at": "2026-01-15T11:30:00.000Z"}, "identity-in-future"),
        ({"issued_at": "2026-01-15T09:00:00.000Z"}, "identity-not-fresh"),
        ({"expires_at": "2026-01-15T09:30:00.000Z"}, "identity-not-fresh"),
    ],
)
def test_the_rules_refuse_a_session_whose_identity_does_not_fit(fields: dict[str, Any], code: str) -> None:
    site = founded()
    with pytest.raises(Denied) as refused:
        open_session(site, identity(site, **fields))
    assert code in [one.code for one in refused.value.refusals]


def test_a_session_has_an_identity_exactly_if_policy_requires_one() -> None:
    site = founded()
    with refuses(site, Denied, "identity: expected one exactly if policy requires it"):
        open_session(site, None)
    with refuses(site, Denied, "exactly if policy requires it"):
        open_session(site, None, source="unix:1000")  # a reviewer on the service's machine
    site.enrol("vault", "recovery")
    assert "vault" not in list_unbound_people(site.state, PROVIDER.pinned())
    with pytest.raises(Denied, match="one exactly if policy requires it"):
        open_session(site, None, "vault")
    for name, source in (("anna", "unix:1000"), ("anna", "unix"), ("vault", "unix:1000"), ("legal", REMOTE)):
        open_session(site, None, name, source)
        with refuses(site, Denied, "exactly if policy requires it"):
            open_session(site, identity(site), name, source)
    with refuses(site, Denied, "exactly if policy requires it"):
        open_session(site, None, "anna", "tcp:127.0.0.1")
    site.adopt(policy_set())
    open_session(site, None)
    with refuses(site, Denied, "exactly if policy requires it"):
        open_session(site, identity(site))


def test_a_person_without_an_identity_opens_no_session() -> None:
    site = founded()
    with pytest.raises(Denied, match="not the valid binding of olga"):
        open_session(site, identity(site, "olga"), "olga")
    site.unbind("rita")
    with pytest.raises(Denied, match="not the valid binding of rita"):
        open_session(site, identity(site))


@pytest.mark.parametrize("replace", [True, False])
def test_a_session_ends_when_its_binding_is_removed_or_replaced(replace: bool) -> None:
    site = founded()
    first = open_session(site, identity(site))
    assert not has_ended_binding(site.state, "rita", first)
    if replace:
        site.bind("rita", "another")
    else:
        site.unbind("rita", "ben")
    assert has_ended_binding(site.state, "rita", first)
    site.bind("rita")
    assert has_ended_binding(site.state, "rita", first)


def test_keys_of_the_provider_are_replaced_by_another_policy_set() -> None:
    site = founded()
    other = Provider(key=new_key(kid="k2"))
    site.adopt(policy_set(identity_provider=other.pinned()))
    with pytest.raises(Denied, match="no key of its identifier"):
        open_session(site, identity(site))
    open_session(site, identity(site, key="k2"))
    site.adopt(policy_set(identity_provider=other.pinned(issuer="https://login.other.example")))
    with pytest.raises(Denied, match="not the valid binding of rita to https"):
        open_session(site, identity(site, key="k2", issuer="https://login.other.example"))


def test_a_subject_is_one_persons_and_a_unit_has_none() -> None:
    site = stage("staffed").fork()
    site.bind("rita", "sub-1")

    def bind(name: str, subject: str, issuer: str = ISSUER) -> list[str]:
        return reasons(site, site.order(BindIdentity, "anna", principal=name, issuer=issuer, subject=subject))

    assert bind("olga", "sub-1") == ["subject-taken"]
    assert bind("olga", "sub-1", "https://login.other.example") == []
    assert bind("olga", "SUB-1") == []
    assert bind("rita", "sub-1") == []
    assert bind("rita", "sub-2") == []
    assert bind("legal", "sub-3") == ["identity-of-unit"]
    assert bind("nobody", "sub-3") == ["not-enrolled"]
    site.revoke("rita")
    assert bind("olga", "sub-1") == []


@pytest.mark.parametrize("issuer", [f"{ISSUER}/", ISSUER.upper().replace("HTTPS", "https")])
def test_an_issuer_that_almost_equals_the_pinned_one_is_refused(issuer: str) -> None:
    """ID tokens are compared with it exactly, so that the person could not sign in."""
    site = founded()
    order = site.order(BindIdentity, "anna", principal="olga", issuer=issuer, subject="sub-olga")
    (reason,) = list_refusal_reasons(site.state, order, site.now)
    assert reason.code == "issuer-almost-same" and f"pins the issuer {ISSUER}." in str(reason)
    before = stage("staffed").fork()
    assert reasons(before, before.order(BindIdentity, "anna", principal="olga", issuer=issuer, subject="s")) == []


def test_only_administrators_bind_and_only_two_of_them() -> None:
    site = stage("staffed").fork()
    order = site.order(BindIdentity, "olga", principal="olga", issuer=ISSUER, subject="s")
    assert reasons(site, order) == ["role-missing"]
    with pytest.raises(Denied):
        site.fork().bind("rita", second="anna")
    assert reasons(site, site.order(UnbindIdentity, "anna", principal="rita")) == ["no-identity"]
    site.bind("rita")
    with pytest.raises(Denied):
        site.fork().ordered(IdentityUnbound(policy=site.in_force), site.order(UnbindIdentity, "rita", principal="rita"))
    site.unbind("rita")
    assert "rita" not in site.state.identities


def test_administrators_need_key_files_while_an_identity_provider_is_pinned() -> None:
    site = stage("staffed").fork()
    site.enrol_passkey("ben", new_passkey())
    plain, pinned = (policy_set(identity_provider=one).parameters for one in (None, PROVIDER.pinned()))
    assert [one.name for one in list_policy_signers(site.state, pinned, site.now)] == ["anna", "ben"]
    site.revoke_key("ben")
    assert [one.name for one in list_policy_signers(site.state, plain, site.now)] == ["anna", "ben"]
    assert [one.name for one in list_policy_signers(site.state, pinned, site.now)] == ["anna"]


def test_a_policy_set_pins_keys_of_its_algorithms_only() -> None:
    provider = Provider("RS256")
    pinned = provider.pinned()
    assert parse_policy(encode_value(policy_set(identity_provider=pinned))).parameters.identity_provider == pinned
    ec, okp = new_key(kid="k2"), new_key("EdDSA", "k3")
    Provider().pinned(
        algorithms=("RS256", "PS256", "ES256", "EdDSA"), keys=(public(provider.key), public(ec), public(okp))
    )
    for fields, words in (
        ({"keys": (public(provider.key), public(provider.key))}, "expected each kid once"),
        ({"keys": (public(ec),)}, "expected keys of the types of all algorithms"),
        ({"keys": (public(provider.key), public(ec))}, "expected keys of the types of all algorithms"),
        ({"keys": ()}, "keys"),
        ({"algorithms": ("RS256", "RS256")}, "expected each once"),
        ({"algorithms": ("HS256",)}, "algorithms"),
        ({"algorithms": ("none",)}, "algorithms"),
        ({"keys": (public(provider.key).model_copy(update={"alg": "PS256"}),)}, "alg: expected one of RS256"),
        ({"issuer": "http://login.bank.example"}, "https address"),
        ({"issuer": "https://login.bank.example?a=b"}, "https address"),
        ({"issuer": "https:///path"}, "https address"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "https address"),
        ({"authorization_endpoint": "https://user@login.bank.example"}, "https address"),
        ({"client_id": "a b"}, "client_id"),
        ({"lifetime_s": 59}, "lifetime_s"),
    ):
        with pytest.raises(ValidationError, match=words):
            provider.pinned(**fields)
    Provider().pinned(issuer="http://127.0.0.1:4593", authorization_endpoint="http://localhost:4593/auth")


@pytest.mark.parametrize(
    ("algorithm", "changes", "words"),
    [
        ("RS256", {"d": "AQAB"}, "d"),
        ("RS256", {"n": "AQAB"}, "modulus of 2048"),
        ("RS256", {"e": "Aw"}, "odd exponent"),
        ("RS256", {"e": None}, "expected the fields e, n"),
        ("RS256", {"kty": "oct"}, "kty"),
        ("RS256", {"use": "enc"}, "use"),
        ("RS256", {"crv": "P-256"}, "expected the fields e, n"),
        ("RS256", {"alg": "ES256"}, "algorithm of the type RSA"),
        ("ES256", {"y": "A" * 43}, "point on P-256"),
        ("ES256", {"x": "AQAB"}, "coordinates of 32 bytes"),
        ("ES256", {"crv": "Ed25519"}, "crv: expected P-256"),
        ("EdDSA", {"x": "A" * 43}, "prime order"),
        ("EdDSA", {"kty": "EC"}, "fields"),
    ],
)
def test_a_key_that_is_private_small_or_off_its_curve_is_not_pinned(
    algorithm: str, changes: dict[str, Any], words: str
) -> None:
    jwk = public(new_key(algorithm)).jwk
    made = {name: value for name, value in {**jwk, **changes}.items() if value is not None}
    with pytest.raises((ValidationError, BadInput), match=words):
        IdentityKey(**made)


def test_the_record_of_a_session_names_no_person_at_the_provider() -> None:
    site = founded()
    index = open_session(site, identity(site))
    assert "sub-rita" not in site.entries[index].decode()
    assert CLIENT not in site.entries[index].decode()
