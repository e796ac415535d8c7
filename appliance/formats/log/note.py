"""C2SP signed notes (c2sp.org/signed-note): text, an empty line, and one line for each signature.

Two signature types: 0x01 Ed25519 and 0x02 ECDSA P-256 with SHA-256. Signatures by unknown keys are carried, not judged;
those of witnesses have types and a page of their own, `appliance.formats.log.cosignature`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import encode_base64, parse_base64, show
from appliance.formats.signatures.keys import Signer, ed25519_spki, parse_spki, verify_signature

MAX_SIGNATURES = 64
_DASH = "\u2014"
_ED25519, _ECDSA = 1, 2
_NOT_IN_NAME = re.compile(r"[\s+\x00-\x1f\ud800-\udfff]")
_NOT_IN_TEXT = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_KEY_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One line: `key_id` is 4 bytes, `sig` what follows them."""

    name: str
    key_id: bytes
    sig: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if len(self.key_id) != 4 or not self.sig:
            raise BadInput(f"note, signature of {show(self.name)}: expected 4 bytes of key id and more, got fewer")


@dataclass(frozen=True, slots=True)
class Note:
    """`text` ends in a newline and is exactly what is signed."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __post_init__(self) -> None:
        _check_text(self.text)
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise BadInput(f"note, signatures: expected 1 to {MAX_SIGNATURES}, got {len(self.signatures)}")
        if len(set(self.signatures)) != len(self.signatures):
            raise BadInput("note, signatures: expected each line once, got one twice")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A key with the name under which it signs notes."""

    name: str
    spki: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        _typed_key(self.spki)

    @property
    def key_id(self) -> bytes:
        return _key_id(self.name, self.spki)


def encode_note(note: Note) -> bytes:
    return _join(note.text, [_signature_line(s.name, s.key_id, s.sig) for s in note.signatures])


def _join(text: str, lines: Sequence[str]) -> bytes:
    return f"{text}\n{''.join(lines)}".encode()


def _signature_line(name: str, key_id: bytes, sig: bytes) -> str:
    return f"{_DASH} {name} {encode_base64(key_id + sig)}\n"


def parse_note(data: bytes) -> Note:
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"note, byte {error.start}: expected UTF-8, got {error.reason}") from None
    middle = whole.rfind("\n\n")
    if middle < 0 or not whole.endswith("\n"):
        raise BadInput("note: expected text, an empty line and signature lines, got no empty line or no line end")
    text, rest = whole[: middle + 1], whole[middle + 2 :]
    return Note(text, tuple(_parse_signature_line(line) for line in rest.split("\n")[:-1]))


def sign_note(text: str, name: str, signer: Signer, *others: Signer) -> bytes:
    """The note's bytes, with a line of each signer under the one name."""
    check_key_name(name)
    _check_text(text)
    signed, lines = text.encode("utf-8"), []
    for each in (signer, *others):
        lines.append(_signature_line(name, _key_id(name, each.spki), each.sign(signed)))
    return _join(text, lines)


def add_signature(note: Note, signature: NoteSignature) -> Note:
    """The note with one line more, at its end, in the place of an older one by the same key."""
    others = tuple(s for s in note.signatures if (s.name, s.key_id) != (signature.name, signature.key_id))
    return replace(note, signatures=(*others, signature))


def verify_note(note: Note, vkey: str) -> None:
    """The key signed the text: at least one signature carries its name and id, and every one that does holds."""
    key = parse_vkey(vkey)
    for signature in signatures_by(note, key.name, key.key_id):
        verify_signature(key.spki, note.text.encode("utf-8"), signature.sig)


def signatures_by(note: Note, name: str, key_id: bytes) -> list[NoteSignature]:
    """The lines that claim to be this key's, at least one; Tampered where there is none."""
    found = [s for s in note.signatures if (s.name, s.key_id) == (name, key_id)]
    if not found:
        names = [f"{s.name}+{s.key_id.hex()}" for s in note.signatures]
        raise Tampered(f"note, signature: expected one by {name}+{key_id.hex()}, got {show(names)}")
    return found


def vkey_of(name: str, key: Signer | bytes) -> str:
    """`name+hex(key id)+base64(type ‖ public key)`, of a signer or of an SPKI."""
    verifier = VerifierKey(name, key if isinstance(key, bytes) else key.spki)
    kind, public = _typed_key(verifier.spki)
    return join_vkey(name, verifier.key_id, bytes([kind]) + public)


def parse_vkey(text: str) -> VerifierKey:
    """The key id is recomputed: a vkey whose parts do not belong together is refused."""
    name, key_id, typed = split_vkey(text)
    key = VerifierKey(name, _spki_of_typed(typed))
    check_key_id(key.key_id, key_id)
    return key


def hash_key(name: str, typed: bytes) -> bytes:
    """The key id of a type byte and a key: the first 4 bytes of a hash."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + typed).digest()[:4]


def join_vkey(name: str, key_id: bytes, typed: bytes) -> str:
    return f"{name}+{key_id.hex()}+{encode_base64(typed)}"


def split_vkey(text: str) -> tuple[str, bytes, bytes]:
    """Name, key id as it is claimed, and type byte with key; what these are is not judged yet."""
    parts = text.split("+", 2)
    if len(parts) != 3 or _KEY_ID.fullmatch(parts[1]) is None:
        raise BadInput(f"vkey: expected name+8 hexadecimal digits+base64, got {show(text)}")
    return parts[0], bytes.fromhex(parts[1]), parse_base64(parts[2], "vkey, key")


def check_key_id(expected: bytes, claimed: bytes) -> None:
    if claimed != expected:
        raise BadInput(f"vkey, key id: expected {expected.hex()}, got {claimed.hex()}")


@lru_cache(maxsize=256)
def check_key_name(name: str) -> None:
    """Not empty, no space of any kind, no plus, no control character."""
    if not name or _NOT_IN_NAME.search(name):
        raise BadInput(f"key name: expected text without spaces and plus signs, got {show(name)}")


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _NOT_IN_TEXT.search(text):
        raise BadInput("note, text: expected lines without control characters, got a control character or no line end")


def _parse_signature_line(line: str) -> NoteSignature:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != _DASH:
        raise BadInput(f"note, signature line: expected em dash, name and base64, got {show(line)}")
    blob = parse_base64(parts[2], "note, signature")
    return NoteSignature(parts[1], blob[:4], blob[4:])


@lru_cache(maxsize=256)
def _key_id(name: str, spki: bytes) -> bytes:
    kind, public = _typed_key(spki)
    if kind == _ECDSA:
        return hashlib.sha256(public).digest()[:4]
    return hash_key(name, bytes([kind]) + public)


@lru_cache(maxsize=256)
def _typed_key(spki: bytes) -> tuple[int, bytes]:
    """A key's signature type and its bytes in a vkey."""
    key = parse_spki(spki)
    if isinstance(key, Ed25519PublicKey):
        return _ED25519, key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    # Other implementations hash with SHA-256 for every curve: only with P-256 do all implementations agree.
    if not isinstance(key.curve, SECP256R1):
        raise BadInput("vkey, key: expected Ed25519 or P-256, got P-384")
    return _ECDSA, spki


def _spki_of_typed(typed: bytes) -> bytes:
    kind, public = typed[:1], typed[1:]
    if kind == bytes([_ED25519]) and len(public) == 32:
        return ed25519_spki(public)
    if kind == bytes([_ECDSA]):
        parsed = parse_spki(public)
        if isinstance(parsed, EllipticCurvePublicKey):
            return public
    raise BadInput(f"vkey, type: expected 01 and 32 bytes, or 02 and an ECDSA key, got {show(kind.hex())}")
