"""The site's identity provider as a policy set pins it: OpenID Connect with keys that are never fetched."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from appliance.domain.core.names import Value
from appliance.domain.core.words import form
from appliance.errors import BadInput
from appliance.formats.signatures.jwk import check_public_key

Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA"]
"""A signature algorithm of ID tokens (RFC 7518, RFC 8037). All are asymmetric."""
KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""The type of the key (`kty`) of each algorithm."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts whose provider may be reached without TLS, for a trial on one machine."""


def _check_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"expected an address such as https://login.bank.example, got {text!r:.80}") from None
    allowed = parts.scheme == "https" or (parts.scheme == "http" and host in LOCAL_HOSTS)
    if not host or not allowed or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "expected an https address without query and fragment, such as https://login.bank.example, "
            f"got {text!r:.80}"
        )
    return text


_Visible = Annotated[str, form(r"^[!-~]+$", "characters of ASCII without spaces")]
ProviderAddress = Annotated[_Visible, StringConstraints(min_length=9, max_length=500), AfterValidator(_check_address)]
"""An address of the provider: https, or http at the same machine."""
Subject = Annotated[
    str, StringConstraints(min_length=1, max_length=255), form(r"^[ -~]+$", "characters of ASCII on one line")
]
"""The provider's identifier of a person, the claim `sub`: at most 255 ASCII characters, compared exactly."""
Key = Annotated[
    str, StringConstraints(max_length=1_400), form(r"^[A-Za-z0-9_-]+$", "base64url: letters, digits and - _, unpadded")
]
"""A number of a key as base64url without padding."""
KeyName = Annotated[_Visible, StringConstraints(min_length=1, max_length=128)]
"""The provider's identifier of a key, the parameter `kid`."""


class IdentityKey(Value):
    """A public key of the provider, as its JWKS document has it (RFC 7517). Fields of certificates are left out."""

    kid: KeyName = Field(description="The key's identifier, which ID tokens name.")
    kty: Literal["RSA", "EC", "OKP"] = Field(description="Type of the key.")
    use: Literal["sig"] | None = Field(default=None, description="Purpose of the key.")
    alg: Algorithm | None = Field(default=None, description="The only algorithm of the key, if it has one.")
    n: Key | None = Field(default=None, description="Modulus of an RSA key, 2,048 to 8,192 bits.")
    e: Key | None = Field(default=None, description="Exponent of an RSA key.")
    crv: Literal["P-256", "Ed25519"] | None = Field(default=None, description="Curve of another key.")
    x: Key | None = Field(default=None, description="First coordinate of the point.")
    y: Key | None = Field(default=None, description="Second coordinate of a point on P-256.")

    @property
    def jwk(self) -> dict[str, Any]:
        """Return the fields that are given, as a JWK."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            check_public_key(self.jwk)
        except BadInput as error:
            raise ValueError(error.message) from None
        if self.alg is not None and KEY_TYPES[self.alg] != self.kty:
            raise ValueError(f"key {self.kid}, alg: expected an algorithm of the type {self.kty}, got {self.alg}")
        return self


class IdentityProvider(Value):
    """The site's identity provider. People open sessions only with a fresh ID token that one of its keys signed."""

    issuer: ProviderAddress = Field(description="Issuer of its ID tokens, compared exactly.")
    client_id: _Visible = Field(
        min_length=1,
        max_length=255,
        description="Identifier of the console at the provider: the only audience that an ID token may have.",
    )
    authorization_endpoint: ProviderAddress = Field(description="Address at which people sign in at the provider.")
    algorithms: tuple[Algorithm, ...] = Field(
        min_length=1, max_length=len(get_args(Algorithm)), description="Signature algorithms that ID tokens may have."
    )
    keys: tuple[IdentityKey, ...] = Field(
        min_length=1, max_length=16, description="Keys that sign ID tokens, each with its own `kid`."
    )
    lifetime_s: int = Field(
        default=900,
        ge=60,
        le=86_400,
        description="Longest time from the issue of an ID token to the end of the session that it opens.",
    )

    def find_key(self, kid: str) -> IdentityKey | None:
        """Return the key of this identifier, or None."""
        return next((key for key in self.keys if key.kid == kid), None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        kids = [key.kid for key in self.keys]
        if twice := sorted({kid for kid in kids if kids.count(kid) > 1}):
            raise ValueError(f"keys: expected each kid once, got {', '.join(twice)} twice")
        if len(set(self.algorithms)) != len(self.algorithms):
            raise ValueError(f"algorithms: expected each once, got {', '.join(self.algorithms)}")
        types = {KEY_TYPES[algorithm] for algorithm in self.algorithms}
        if types != {key.kty for key in self.keys}:
            got = ", ".join(sorted({key.kty for key in self.keys}))
            raise ValueError(
                f"keys: expected keys of the types of all algorithms, {', '.join(sorted(types))}, got {got}"
            )
        for key in self.keys:
            if key.alg is not None and key.alg not in self.algorithms:
                raise ValueError(f"key {key.kid}, alg: expected one of {', '.join(self.algorithms)}, got {key.alg}")
        return self
