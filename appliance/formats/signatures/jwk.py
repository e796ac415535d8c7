"""Public keys as JSON Web Keys (RFC 7517): RSA, P-256 and Ed25519, checked before a policy set pins them."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from appliance.errors import BadInput
from appliance.formats.core.fields import parse_base64url
from appliance.formats.signatures.keys import is_prime_order

_LEAST_BITS, _MOST_BITS = 2_048, 8_192
"""Sizes of an RSA modulus."""
_COORDINATE_BYTES = 32
_MEMBERS = {"RSA": {"n", "e"}, "EC": {"crv", "x", "y"}, "OKP": {"crv", "x"}}
_CURVES = {"EC": "P-256", "OKP": "Ed25519"}


def check_public_key(jwk: Mapping[str, str]) -> None:
    """Check that a JWK of texts is a complete public key of a supported size or curve."""
    kid, kty = jwk["kid"], jwk["kty"]
    what, expected = f"key {kid}", _MEMBERS[kty]
    got = jwk.keys() & set().union(*_MEMBERS.values())
    if got != expected:
        raise BadInput(
            f"{what}: expected the fields {', '.join(sorted(expected))} of a key of the type {kty}, "
            f"got {', '.join(sorted(got)) or 'none'}"
        )
    if kty in _CURVES and jwk["crv"] != _CURVES[kty]:
        raise BadInput(f"{what}, crv: expected {_CURVES[kty]} of a key of the type {kty}, got {jwk['crv']}")
    numbers = {name: parse_base64url(jwk[name], f"{what}, {name}") for name in expected - {"crv"}}
    if kty == "RSA":
        _check_rsa(what, *(int.from_bytes(numbers[name]) for name in ("n", "e")))
    elif any(len(number) != _COORDINATE_BYTES for number in numbers.values()):
        raise BadInput(f"{what}: expected coordinates of {_COORDINATE_BYTES} bytes, got others")
    elif kty == "OKP":
        if not is_prime_order(numbers["x"]):
            raise BadInput(f"{what}, x: expected a point of prime order on Ed25519, got another")
    else:
        _check_p256(what, *(int.from_bytes(numbers[name]) for name in ("x", "y")))


def _check_rsa(what: str, modulus: int, exponent: int) -> None:
    if not _LEAST_BITS <= modulus.bit_length() <= _MOST_BITS:
        raise BadInput(
            f"{what}, n: expected a modulus of {_LEAST_BITS} to {_MOST_BITS} bits, got {modulus.bit_length()}"
        )
    if not (65_537 <= exponent < 1 << 32 and exponent & 1):
        raise BadInput(f"{what}, e: expected an odd exponent from 65537 to 2^32, got {exponent:.3g}")
    try:
        RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise BadInput(f"{what}, n: expected the modulus of an RSA key, got another number") from None


def _check_p256(what: str, x: int, y: int) -> None:
    try:
        EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    except ValueError:
        raise BadInput(f"{what}: expected a point on P-256, got another") from None
