"""A small log and its witness, with fixed keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.formats.core.merkle import consistency_proof, hash_leaf, root_of
from appliance.formats.log.checkpoint import Checkpoint, encode_checkpoint
from appliance.formats.log.note import sign_note, vkey_of
from appliance.formats.log.proof import WitnessRequest, encode_request
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.witness import Witness

ORIGIN, NAME = "log.example/one", "witness.example/w1"
NOW = 1_764_000_000


def signer(number: int) -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


LOG_KEY, NEXT_LOG_KEY, WITNESS_KEY = signer(1), signer(2), signer(3)
LOG_VKEY, NEXT_LOG_VKEY = vkey_of(ORIGIN, LOG_KEY), vkey_of(ORIGIN, NEXT_LOG_KEY)
WITNESS = Witness(NAME, WITNESS_KEY, LOG_VKEY)


class Log:
    """Leaves by their words; two logs with the same words up to a place have the same past."""

    def __init__(self, words: Sequence[str], origin: str = ORIGIN) -> None:
        self.leaves = [hash_leaf(word.encode()) for word in words]
        self.origin = origin

    def checkpoint(self, size: int, *keys: Ed25519Signer) -> bytes:
        text = encode_checkpoint(Checkpoint(self.origin, size, root_of(self.leaves[:size])))
        return sign_note(text, self.origin, *(keys or (LOG_KEY,)))

    def request(self, old: int, size: int, *keys: Ed25519Signer) -> bytes:
        def node(level: int, index: int) -> bytes:
            return root_of(self.leaves[index << level : (index + 1) << level])

        proof = tuple(consistency_proof(old, size, node))
        return encode_request(WitnessRequest(old, proof, self.checkpoint(size, *keys)))


LOG = Log([f"entry {number}" for number in range(20)])
FORK = Log([f"entry {number}" if number < 6 else f"forged {number}" for number in range(20)])


class Desk:
    """The witness's folder: its state, and the files that are carried to it and away."""

    def __init__(self, folder: Path) -> None:
        self.state, self.request, self.out = folder / "log.state", folder / "request", folder / "cosigned"

    def bring(self, data: bytes) -> Path:
        self.request.write_bytes(data)
        return self.request
