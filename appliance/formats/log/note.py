"""C2SP signed notes (c2sp.org/signed-note): a text, an empty line, and one line per signature.

Three signature types are verified: 0x01 Ed25519, 0x02 ECDSA P-256 with SHA-256, and ML-DSA-65. C2SP has assigned no
byte to plain ML-DSA-65, so its type is 0xff followed by `ML_DSA_TYPE`. Signatures by unknown keys are kept without
verification. Cosignatures of witnesses are in `appliance.formats.log.checkpoint`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import encode_base64, parse_base64, show
from appliance.formats.signatures.keys import Signer, ed25519_spki, parse_spki, verify_signature
from appliance.formats.signatures.ml_dsa import is_ml_dsa, ml_dsa_raw, ml_dsa_spki

MAX_SIGNATURES = 64
_DASH = "\u2014"
ML_DSA_TYPE = b"urn:appliance:note-signature:ml-dsa-65:v1"
"""The long identifier of signatures by ML-DSA-65: pure, with an empty context, over the text of the note."""
_ED25519, _ECDSA, _ML_DSA = b"\x01", b"\x02", b"\xff" + ML_DSA_TYPE
_NOT_IN_NAME = re.compile(r"[\s+\x00-\x1f\ud800-\udfff]")
_NOT_IN_TEXT = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_KEY_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: the 4-byte `key_id`, and `sig`, the bytes after it."""

    name: str
    key_id: bytes
    sig: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        if len(self.key_id) != 4 or not self.sig:
            raise BadInput(f"note, signature of {show(self.name)}: expected 4 bytes of key id and more, got fewer")


@dataclass(frozen=True, slots=True)
class Note:
    """A signed note; `text` ends with a newline and is exactly what is signed."""

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
    """A public key and the name under which it signs notes."""

    name: str
    spki: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        _typed_key(self.spki)

    @property
    def key_id(self) -> bytes:
        """Return the 4-byte key id."""
        return _key_id(self.name, self.spki)


def encode_note(note: Note) -> bytes:
    """Encode the note with its signature lines."""
    return _join(note.text, [_signature_line(s.name, s.key_id, s.sig) for s in note.signatures])


def _join(text: str, lines: Sequence[str]) -> bytes:
    return f"{text}\n{''.join(lines)}".encode()


def _signature_line(name: str, key_id: bytes, sig: bytes) -> str:
    return f"{_DASH} {name} {encode_base64(key_id + sig)}\n"


def parse_note(data: bytes) -> Note:
    """Parse a signed note without verifying its signatures."""
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
    """Sign the text with each signer under one name and return the bytes of the note."""
    check_key_name(name)
    _check_text(text)
    signed, lines = text.encode("utf-8"), []
    for each in (signer, *others):
        lines.append(_signature_line(name, _key_id(name, each.spki), each.sign(signed)))
    return _join(text, lines)


def add_signature(note: Note, signature: NoteSignature) -> Note:
    """Return the note with this line at its end, which replaces an older line by the same key."""
    others = tuple(s for s in note.signatures if (s.name, s.key_id) != (signature.name, signature.key_id))
    return replace(note, signatures=(*others, signature))


def is_post_quantum(vkey: str) -> bool:
    """Return True if the key is ML-DSA-65."""
    return is_ml_dsa(parse_vkey(vkey).spki)


def name_key(vkey: str) -> str:
    """Return `name+hex(key id)`, by which a line names the key."""
    return "+".join(vkey.split("+", 2)[:2])


def verify_note(note: Note, vkey: str) -> None:
    """Check that the key signed the text: it has at least one line, and all of its lines are valid."""
    key = parse_vkey(vkey)
    for signature in signatures_by(note, key.name, key.key_id):
        verify_signature(key.spki, note.text.encode("utf-8"), signature.sig)


def signatures_by(note: Note, name: str, key_id: bytes) -> list[NoteSignature]:
    """Return the lines that claim to be by this key, unverified.

    Raises:
        Tampered: there is none.
    """
    found = [s for s in note.signatures if (s.name, s.key_id) == (name, key_id)]
    if not found:
        names = [f"{s.name}+{s.key_id.hex()}" for s in note.signatures]
        raise Tampered(f"note, signature: expected one by {name}+{key_id.hex()}, got {show(names)}")
    return found


def vkey_of(name: str, key: Signer | bytes) -> str:
    """Return the vkey `name+hex(key id)+base64(type ‖ public key)` of a signer or an SPKI."""
    verifier = VerifierKey(name, key if isinstance(key, bytes) else key.spki)
    kind, public = _typed_key(verifier.spki)
    return join_vkey(name, verifier.key_id, kind + public)


def parse_vkey(text: str) -> VerifierKey:
    """Parse a vkey and check its key id."""
    name, key_id, typed = split_vkey(text)
    key = VerifierKey(name, _spki_of_typed(typed))
    check_key_id(key.key_id, key_id)
    return key


def hash_key(name: str, typed: bytes) -> bytes:
    """Compute the key id of a name and a typed key: the first 4 bytes of SHA-256(name ‖ newline ‖ type byte ‖ key)."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + typed).digest()[:4]


def join_vkey(name: str, key_id: bytes, typed: bytes) -> str:
    """Return the vkey of a name, a key id and a typed key."""
    return f"{name}+{key_id.hex()}+{encode_base64(typed)}"


def split_vkey(text: str) -> tuple[str, bytes, bytes]:
    """Split a vkey into name, claimed key id, and typed key; the caller must check the parts."""
    parts = text.split("+", 2)
    if len(parts) != 3 or _KEY_ID.fullmatch(parts[1]) is None:
        raise BadInput(f"vkey: expected name+8 hexadecimal digits+base64, got {show(text)}")
    return parts[0], bytes.fromhex(parts[1]), parse_base64(parts[2], "vkey, key")


def check_key_id(expected: bytes, claimed: bytes) -> None:
    """Check that the key id in a vkey is the expected one."""
    if claimed != expected:
        raise BadInput(f"vkey, key id: expected {expected.hex()}, got {claimed.hex()}")


@lru_cache(maxsize=256)
def check_key_name(name: str) -> None:
    """Check that a key name is not empty and has no white space, plus sign or control character."""
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
    return hash_key(name, kind + public)


@lru_cache(maxsize=256)
def _typed_key(spki: bytes) -> tuple[bytes, bytes]:
    """Return the signature type of a key and its bytes in a vkey."""
    if is_ml_dsa(spki):
        return _ML_DSA, ml_dsa_raw(spki)
    key = parse_spki(spki)
    if isinstance(key, Ed25519PublicKey):
        return _ED25519, key.public_bytes_raw()
    # Other implementations hash with SHA-256 for every curve, so only P-256 is interoperable.
    if not isinstance(key.curve, SECP256R1):
        raise BadInput("vkey, key: expected Ed25519 or P-256, got P-384")
    return _ECDSA, spki


def _spki_of_typed(typed: bytes) -> bytes:
    kind, public = typed[:1], typed[1:]
    if kind == _ED25519 and len(public) == 32:
        return ed25519_spki(public)
    if kind == _ECDSA:
        parsed = parse_spki(public)
        if isinstance(parsed, EllipticCurvePublicKey):
            return public
    if typed.startswith(_ML_DSA):
        return ml_dsa_spki(typed.removeprefix(_ML_DSA))
    raise BadInput(
        f"vkey, type: expected 01 and 32 bytes, 02 and an ECDSA key, or ff, {ML_DSA_TYPE.decode()} and a key, "
        f"got {show(kind.hex())}"
    )
