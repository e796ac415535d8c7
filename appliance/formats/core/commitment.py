"""Salted commitments: what binds names and free text to a signature or an entry, so that they can be erased later.

The commitment is HMAC-SHA256(key = salt, message = UTF-8 text). With a fresh salt of 32 bytes it reveals nothing about
the text. After text and salt are erased, every signature over the commitment is still valid.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import encode_base64, parse_base64, parse_list, parse_object, parse_text, show

SALT_BYTES = 32
_COMMITMENT = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_MEMBERS = frozenset({"commitment", "salt", "text"})


@dataclass(frozen=True, slots=True)
class Disclosure:
    """A text and the salt that opens its commitment; `verify_disclosure` checks whether they fit."""

    commitment: str
    # Out of every log and traceback: what can be erased must not have been copied.
    salt: bytes = field(repr=False)
    text: str = field(repr=False)

    def __post_init__(self) -> None:
        parse_commitment(self.commitment)
        _check_salt(self.salt)


def commit(text: str, salt: bytes) -> str:
    """`salt` is 32 random bytes, used for this text alone."""
    _check_salt(salt)
    try:
        message = text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("commitment, text: expected Unicode, got a lone surrogate") from None
    return f"hmac-sha256:{hmac.new(salt, message, hashlib.sha256).hexdigest()}"


def disclose(text: str, salt: bytes) -> Disclosure:
    """The text with its commitment beside it."""
    return Disclosure(commit(text, salt), salt, text)


def parse_commitment(value: Any, what: str = "commitment") -> str:
    """The text itself, when it is a commitment."""
    text = parse_text(value, what)
    if _COMMITMENT.fullmatch(text) is None:
        raise BadInput(f"{what}: expected hmac-sha256: and 64 lower-case hexadecimal digits, got {show(text)}")
    return text


def encode_disclosure(disclosure: Disclosure) -> bytes:
    return encode_canonical(disclosure_value(disclosure))


def parse_disclosure(data: bytes) -> Disclosure:
    return parse_disclosure_value(parse_canonical(data))


def encode_disclosures(disclosures: Iterable[Disclosure]) -> bytes:
    """A canonical array, in the order given."""
    return encode_canonical([disclosure_value(disclosure) for disclosure in disclosures])


def parse_disclosures(data: bytes) -> tuple[Disclosure, ...]:
    return tuple(parse_disclosure_value(item) for item in parse_list(parse_canonical(data), "disclosures"))


def disclosure_value(disclosure: Disclosure) -> dict[str, str]:
    """The JSON object, for a document that carries disclosures among other members."""
    return {
        "commitment": disclosure.commitment,
        "salt": encode_base64(disclosure.salt),
        "text": disclosure.text,
    }


def parse_disclosure_value(value: Any) -> Disclosure:
    """The reverse of `disclosure_value`."""
    member = parse_object(value, "disclosure", _MEMBERS)
    return Disclosure(
        commitment=parse_commitment(member["commitment"], "disclosure, commitment"),
        salt=parse_base64(member["salt"], "disclosure, salt"),
        text=parse_text(member["text"], "disclosure, text"),
    )


def verify_disclosure(disclosure: Disclosure) -> None:
    # The text stays out of the message: it may be a person's name.
    got = commit(disclosure.text, disclosure.salt)
    if got != disclosure.commitment:
        raise Tampered(f"disclosure, commitment: expected {disclosure.commitment}, got {got}")


def _check_salt(salt: bytes) -> None:
    if len(salt) != SALT_BYTES:
        raise BadInput(f"disclosure, salt: expected {SALT_BYTES} bytes, got {len(salt)}")
