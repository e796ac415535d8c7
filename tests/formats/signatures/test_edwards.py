"""Only points of the prime-order group of edwards25519, each in its one encoding, are public keys."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.formats.signatures.keys import is_prime_order
from tests.kit.curve import FIELD, ORDER, add, decode, encode, multiply, point_of, torsion, twins

BASE = decode((4 * pow(5, -1, FIELD) % FIELD).to_bytes(32, "little"))

# RFC 8032, section 7.1.
PUBLIC_KEYS = [
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
    "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
]
# The encodings that libraries are known to take, canonical or not, of points whose order divides 8
# (Chalkias, Garillot, Nikolaenko: Taming the many EdDSAs, 2020, table 1).
SMALL = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("text", PUBLIC_KEYS)
def test_public_keys_of_the_rfc_are_taken_and_their_twins_are_not(text: str) -> None:
    public = bytes.fromhex(text)
    assert is_prime_order(public)
    assert not any(map(is_prime_order, twins(public)))


@pytest.mark.parametrize("text", SMALL)
def test_points_of_small_order_are_refused_in_every_encoding(text: str) -> None:
    assert not is_prime_order(bytes.fromhex(text))


def test_all_eight_points_of_small_order_are_among_them() -> None:
    assert {encode(point).hex() for point in torsion()} == set(SMALL[:8])


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_is_made_is_taken(seed: bytes) -> None:
    assert is_prime_order(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**255 - 1), st.integers(0, 1))
def test_any_other_bytes_are_judged_by_their_point(y: int, sign: int) -> None:
    point = point_of(y, sign) if y < FIELD else None
    expected = point is not None and point != (0, 1) and multiply(ORDER, point) == (0, 1)
    assert is_prime_order((y | sign << 255).to_bytes(32, "little")) == expected


@pytest.mark.parametrize("data", [b"", bytes(31), bytes.fromhex(PUBLIC_KEYS[0]) + b"\0"])
def test_other_lengths_are_no_point(data: bytes) -> None:
    assert not is_prime_order(data)


def test_a_library_takes_signatures_of_one_secret_under_two_keys() -> None:
    """Why: with the key and a point of order 2, half of the nonces give a signature that holds."""
    digest = hashlib.sha512(bytes(32)).digest()
    secret = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
    twin = encode(add(multiply(secret, BASE), (0, FIELD - 1)))
    for nonce in range(1, 40):
        start = encode(multiply(nonce, BASE))
        hashed = int.from_bytes(hashlib.sha512(start + twin + b"data").digest(), "little")
        if hashed % 2 == 0:
            signature = start + ((nonce + hashed * secret) % ORDER).to_bytes(32, "little")
            Ed25519PublicKey.from_public_bytes(twin).verify(signature, b"data")
            break
    else:
        raise AssertionError("no even hash in 39 tries")
    assert not is_prime_order(twin)
