"""ID tokens: verified under pinned keys only, by the algorithms that policy lists."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import RSAKey

from appliance.access.identity import MAX_TOKEN, read_identity_token
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes
from tests.kit.identity_provider import KINDS, Provider, new_key, public

PROVIDERS = {algorithm: Provider(algorithm) for algorithm in KINDS}
NONCE = digest_bytes(b"statement")


@pytest.mark.parametrize("algorithm", sorted(KINDS))
def test_a_token_is_read_under_its_pinned_key(algorithm: str) -> None:
    provider = PROVIDERS[algorithm]
    text = provider.token("sub-rita", NONCE)
    token = read_identity_token(provider.pinned(), text)
    assert (token.kid, token.claims.sub, token.claims.nonce) == ("k1", "sub-rita", NONCE)
    assert token.digest == digest_bytes(text.encode())


def refused(text: str, words: str, algorithm: str = "ES256", **pinned: Any) -> None:
    with pytest.raises(Denied) as caught:
        read_identity_token(PROVIDERS[algorithm].pinned(**pinned), text)
    assert [one.code for one in caught.value.refusals] == ["identity-token-invalid"]
    assert words in caught.value.message, caught.value.message


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "RS256", "ES384", "", None, 7])
def test_an_algorithm_that_policy_does_not_list_is_refused(algorithm: object) -> None:
    _, payload, signature = PROVIDERS["ES256"].token("sub-rita", NONCE).split(".")
    header = encoded({"alg": algorithm, "kid": "k1"})
    refused(f"{header}.{payload}.{signature}", "alg: expected one of ES256")
    refused(f"{header}.{payload}.", "alg: expected one of ES256")


def test_a_mac_under_the_public_key_is_refused() -> None:
    """The classic confusion of algorithms: the public key as the secret of HS256."""
    provider = PROVIDERS["RS256"]
    content = f"{encoded({'alg': 'HS256', 'kid': 'k1'})}.{encoded(provider.claims('sub-rita', NONCE))}"
    for secret in (provider.key.as_pem(private=False), json.dumps(public(provider.key).jwk).encode()):
        mac = base64.urlsafe_b64encode(hmac.digest(secret, content.encode(), "sha256")).decode().rstrip("=")
        refused(f"{content}.{mac}", "alg: expected one of RS256", "RS256")


def test_a_token_of_another_key_is_refused() -> None:
    provider, thief = PROVIDERS["ES256"], new_key(kid="k1")
    claims = provider.claims("sub-rita", NONCE)
    refused(provider.sign(claims, thief), "signature does not verify")
    refused(provider.sign(claims, thief, kid="k2"), "kid: expected a key that policy pins")
    refused(provider.sign(claims, kid=None), "kid: expected a key that policy pins")
    refused(provider.sign(claims, kid=None, x5t="k1"), "kid: expected a key that policy pins")


@pytest.mark.parametrize("name", ["jku", "jwk", "x5u", "x5c"])
def test_a_token_that_brings_a_key_of_its_own_is_refused(name: str) -> None:
    provider, thief = PROVIDERS["ES256"], new_key(kid="k1")
    values = {"jku": "https://evil.example/keys", "jwk": thief.as_dict(private=False), "x5u": "https://evil.example"}
    header = {name: values.get(name, ["MIIB"])}
    refused(provider.sign(provider.claims("sub-rita", NONCE), thief, **header), f"no key of its own, got {name}")


def test_a_critical_header_that_is_not_known_is_refused() -> None:
    _, payload, signature = PROVIDERS["ES256"].token("sub-rita", NONCE).split(".")
    refused(f"{encoded({'alg': 'ES256', 'kid': 'k1', 'crit': ['exp'], 'exp': 1})}.{payload}.{signature}", "signature")


def test_a_key_of_another_type_or_algorithm_is_refused() -> None:
    provider = PROVIDERS["RS256"]
    ec = public(new_key(kid="k2"))
    both = {"algorithms": ("RS256", "PS256", "ES256"), "keys": (public(provider.key), ec)}
    header = encoded({"alg": "ES256", "kid": "k1"})
    _, payload, signature = provider.token("sub-rita", NONCE).split(".")
    refused(f"{header}.{payload}.{signature}", "alg: expected one of the key k1", "RS256", **both)
    own = public(provider.key).model_copy(update={"alg": "PS256"})
    refused(provider.token("sub-rita", NONCE), "alg: expected one of the key k1", "RS256", **both | {"keys": (own, ec)})


def test_a_token_that_was_altered_is_refused() -> None:
    head, payload, signature = PROVIDERS["ES256"].token("sub-rita", NONCE).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    refused(f"{head}.{encoded(claims | {'sub': 'sub-anna'})}.{signature}", "signature does not verify")
    refused(f"{head}.{payload}.", "signature")
    refused(f"{head}.{payload}.{signature}A", "signature")


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c.d", "e30.e30.e30", "é.b.c", "a" * (MAX_TOKEN + 1), "W10.e30.e30", ".."]
)
def test_a_text_that_is_no_token_is_refused(text: str) -> None:
    refused(text, "ID token")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "tomorrow"},
        {"exp": None},
        {"iat": True},
        {"iat": -1},
        {"exp": 1 << 60},
        {"sub": 7},
        {"aud": None},
        {"aud": {}},
    ],
)
def test_claims_of_another_form_are_refused(claims: dict[str, Any]) -> None:
    refused(PROVIDERS["ES256"].token("sub-rita", NONCE, **claims), "claims")
    made = PROVIDERS["ES256"].sign(["sub-rita"])
    refused(made, "claims")


def test_a_claim_that_occurs_twice_is_refused() -> None:
    provider = PROVIDERS["ES256"]
    text = json.dumps(provider.claims("sub-rita", NONCE))[:-1] + ', "sub": "sub-anna"}'
    registry = jws.JWSRegistry(algorithms=["ES256"])
    refused(jws.serialize_compact({"alg": "ES256", "kid": "k1"}, text, provider.key, registry=registry), "claims")


def test_an_rsa_signature_of_another_scheme_is_refused() -> None:
    """A key for RS256 and PS256 has signatures of both, and a token's header decides which."""
    provider = PROVIDERS["RS256"]
    assert isinstance(provider.key, RSAKey)
    ps = Provider("PS256", provider.key).token("sub-rita", NONCE)
    refused(ps, "alg: expected one of RS256", "RS256")
    assert read_identity_token(provider.pinned(algorithms=("RS256", "PS256")), ps).claims.sub == "sub-rita"
