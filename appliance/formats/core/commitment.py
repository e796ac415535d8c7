"""Salted commitments, which bind names and free text to a signature or an entry so that they can be erased later.

A commitment is HMAC-SHA256(key = salt, message = UTF-8 text). With a fresh salt of 32 bytes it reveals nothing about
the text. After text and salt are erased, every signature over the commitment is still valid.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import encode_base64, parse_base64, parse_object, parse_text, show

SALT_BYTES = 32
_COMMITMENT = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_MEMBERS = frozenset({"commitment", "salt", "text"})


@dataclass(frozen=True, slots=True)
class Disclosure:
    """A text and the salt that opens its commitment; `verify_disclosure` checks that they match."""

    commitment: str
    # Excluded from logs and tracebacks: erasable text must not be copied elsewhere.
    salt: bytes = field(repr=False)
    text: str = field(repr=False)

    def __post_init__(self) -> None:
        parse_commitment(self.commitment)
        _check_salt(self.salt)


def commit(text: str, salt: bytes) -> str:
    """Compute the commitment to a text.

    `salt` is 32 random bytes that are used for this text only.

    Raises:
        BadInput: the salt has another length, or the text is not valid Unicode.
    """
    _check_salt(salt)
    try:
        message = text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("commitment, text: expected Unicode, got a lone surrogate") from None
    return f"hmac-sha256:{hmac.new(salt, message, hashlib.sha256).hexdigest()}"


def disclose(text: str, salt: bytes) -> Disclosure:
    """Return the text, its salt and its commitment."""
    return Disclosure(commit(text, salt), salt, text)


def parse_commitment(value: Any, what: str = "commitment") -> str:
    """Return the value if it is the text of a commitment."""
    text = parse_text(value, what)
    if _COMMITMENT.fullmatch(text) is None:
        raise BadInput(f"{what}: expected hmac-sha256: and 64 lower-case hexadecimal digits, got {show(text)}")
    return text


def encode_disclosure(disclosure: Disclosure) -> bytes:
    """Encode a disclosure as canonical JSON."""
    return encode_canonical(disclosure_value(disclosure))


def parse_disclosure(data: bytes) -> Disclosure:
    """Parse a disclosure from canonical JSON."""
    return parse_disclosure_value(parse_canonical(data))


def disclosure_value(disclosure: Disclosure) -> dict[str, str]:
    """Return the JSON object of a disclosure, for a document that includes it."""
    return {
        "commitment": disclosure.commitment,
        "salt": encode_base64(disclosure.salt),
        "text": disclosure.text,
    }


def parse_disclosure_value(value: Any) -> Disclosure:
    """Parse the JSON object that `disclosure_value` returns."""
    member = parse_object(value, "disclosure", _MEMBERS)
    return Disclosure(
        commitment=parse_commitment(member["commitment"], "disclosure, commitment"),
        salt=parse_base64(member["salt"], "disclosure, salt"),
        text=parse_text(member["text"], "disclosure, text"),
    )


def verify_disclosure(disclosure: Disclosure) -> None:
    """Check that the commitment is over this text and salt. An error omits the text, which may be a person's name."""
    got = commit(disclosure.text, disclosure.salt)
    if got != disclosure.commitment:
        raise Tampered(f"disclosure, commitment: expected {disclosure.commitment}, got {got}")


def _check_salt(salt: bytes) -> None:
    if len(salt) != SALT_BYTES:
        raise BadInput(f"disclosure, salt: expected {SALT_BYTES} bytes, got {len(salt)}")
