"""An identity provider of a test: its keys, and the ID tokens that it signs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from appliance.access.identity import PinnedRegistry
from appliance.domain.core.identity import IdentityKey, IdentityProvider
from appliance.formats.core.timestamp import parse_time
from scripts.kit.log_builder import ISSUER

CLIENT = "appliance-console"
Key = RSAKey | ECKey | OKPKey
KINDS = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}


def new_key(algorithm: str = "ES256", kid: str = "k1") -> Key:
    parameters: dict[str, Any] = {"kid": kid}
    if KINDS[algorithm] == "RSA":
        return RSAKey.generate_key(2048, parameters)
    if KINDS[algorithm] == "EC":
        return ECKey.generate_key("P-256", parameters)
    return OKPKey.generate_key("Ed25519", parameters)


def public(key: Key) -> IdentityKey:
    """Return a key's public half as a policy set has it."""
    known = {name: value for name, value in key.as_dict(private=False).items() if name in IdentityKey.model_fields}
    return IdentityKey(**known)


@dataclass
class Provider:
    """A provider with one key."""

    algorithm: str = "ES256"
    key: Key = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.key = self.key or new_key(self.algorithm)

    def pinned(self, **fields: Any) -> IdentityProvider:
        """Return it as a policy set pins it."""
        defaults: dict[str, Any] = {
            "issuer": ISSUER,
            "client_id": CLIENT,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "algorithms": (self.algorithm,),
            "keys": (public(self.key),),
        }
        return IdentityProvider(**defaults | fields)

    def claims(self, subject: str, nonce: str, now: str | None = None) -> dict[str, Any]:
        moment = datetime.now(UTC) if now is None else parse_time(now)
        issued = int(moment.timestamp())
        return {"iss": ISSUER, "sub": subject, "aud": CLIENT, "nonce": nonce, "iat": issued, "exp": issued + 600}

    def token(self, subject: str, nonce: str, /, now: str | None = None, **claims: Any) -> str:
        """Return an ID token. A claim that is None is left out."""
        made = self.claims(subject, nonce, now) | {"email": "rita@bank.example"} | claims
        return self.sign({name: value for name, value in made.items() if value is not None})

    def sign(self, claims: object, key: Key | None = None, **header: Any) -> str:
        made = {"alg": self.algorithm, "kid": self.key.kid, "typ": "JWT"} | header
        made = {name: value for name, value in made.items() if value is not None}
        registry = PinnedRegistry(algorithms=[made["alg"]], strict_check_header=False)
        return jws.serialize_compact(made, json.dumps(claims), key or self.key, registry=registry)
