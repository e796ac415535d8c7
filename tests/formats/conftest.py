"""Fixed keys and published vectors. The keys are derived from public numbers and protect nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from appliance.formats.signatures.ml_dsa import MlDsaSigner, ml_dsa_signer

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """`vectors(name)`: the parsed file tests/vectors/NAME.json."""
    return lambda name: json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def ed25519() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture(scope="session")
def other_ed25519() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))


@pytest.fixture(scope="session")
def p256() -> EcdsaSigner:
    return EcdsaSigner(ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1()))


@pytest.fixture(scope="session")
def other_p256() -> EcdsaSigner:
    return EcdsaSigner(ec.derive_private_key(0x1234567890ABCDEE, ec.SECP256R1()))


@pytest.fixture(scope="session")
def p384() -> EcdsaSigner:
    return EcdsaSigner(ec.derive_private_key(0x1234567890ABCDEF, ec.SECP384R1()))


@pytest.fixture(scope="session")
def ml_dsa_key() -> MlDsaSigner:
    return ml_dsa_signer(bytes(range(32)))


ORIGIN = "log.example/one"
LEAVES = [hash_leaf(f"entry {number}".encode()) for number in range(33)]
"""Leaf hashes of a log to prove things in."""


def read_node(level: int, index: int) -> bytes:
    """Compute a stored node of that log."""
    return root_of(LEAVES[index << level : (index + 1) << level])
