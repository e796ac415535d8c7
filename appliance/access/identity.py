"""Verification of ID tokens (OpenID Connect Core 1.0) under the keys that the policy set pins.

No key is fetched, and a token that names a key of its own is refused.
"""

from __future__ import annotations

import binascii
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import import_key
from joserfc.jws import JWSRegistry

from appliance.domain.core.identity import KEY_TYPES, IdentityKey, IdentityProvider
from appliance.domain.core.names import parse_file
from appliance.domain.governance.identities import IDENTITY_TOKEN_INVALID, Claims, VerifiedToken
from appliance.errors import BadInput, Denied
from appliance.formats.core.canonical import parse_json
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64url, show

MAX_TOKEN = 8_192
"""Largest number of characters of an ID token."""
_KEYS_OF_TOKEN = ("jku", "jwk", "x5u", "x5c")
"""Header parameters by which a token would bring a key of its own."""


class PinnedRegistry(JWSRegistry):
    """The algorithm that policy allows and the token names.

    joserfc itself warns of the name EdDSA, which RFC 9864 replaces and providers use. Only Ed25519 keys can be pinned.
    """

    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(f"algorithm {name}")
        return self.algorithms[name]


def read_identity_token(provider: IdentityProvider, text: str) -> VerifiedToken:
    """Return an ID token in the compact form whose signature verifies under one of the provider's keys.

    Its claims are not compared with anything.

    Raises: Denied for another token.
    """
    try:
        key, algorithm = _find_key(provider, text)
        verified = jws.deserialize_compact(
            text.encode("ascii"),
            import_key(key.jwk),
            registry=PinnedRegistry(algorithms=[algorithm], strict_check_header=False),
        )
        claims = parse_file(Claims, verified.payload, "claims")
    except BadInput as error:
        raise _refuse(error.message) from None
    except (JoseError, ValueError, binascii.Error):
        raise _refuse("its signature does not verify under the key that it names") from None
    return VerifiedToken(key.kid, claims, digest_bytes(text.encode("ascii")))


def _find_key(provider: IdentityProvider, text: str) -> tuple[IdentityKey, str]:
    """Return the pinned key and the algorithm that the token's header names.

    Raises: BadInput if the policy set pins none of this identifier and algorithm.
    """
    if len(text) > MAX_TOKEN or not text.isascii() or text.count(".") != 2:
        raise BadInput(f"expected three parts of base64url with at most {MAX_TOKEN} characters, got another text")
    header: Any = parse_json(parse_base64url(text.partition(".")[0], "header"), "header")
    if not isinstance(header, dict):
        raise BadInput("header: expected an object, got another value")
    if own := [name for name in _KEYS_OF_TOKEN if name in header]:
        raise BadInput(f"header: expected no key of its own, got {', '.join(own)}")
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in provider.algorithms:
        raise BadInput(f"alg: expected one of {', '.join(provider.algorithms)}, got {show(algorithm)}")
    key = provider.find_key(kid) if isinstance(kid, str) else None
    if key is None:
        raise BadInput(f"kid: expected a key that policy pins, got {show(kid)}")
    if key.kty != KEY_TYPES[algorithm] or key.alg not in (None, algorithm):
        raise BadInput(f"alg: expected one of the key {key.kid}, got {algorithm}")
    return key, algorithm


def _refuse(problem: str) -> Denied:
    return Denied("ID token", refusals=(IDENTITY_TOKEN_INVALID(problem=problem),), code="identity-refused")
