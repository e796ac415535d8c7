"""The members of a parsed JSON value, read strictly: exact names, exact types, one spelling of every value."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from appliance.errors import BadInput

MAX_DECIMAL = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def show(value: object) -> str:
    """An untrusted value for a message: escaped and short."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_object(value: Any, what: str, names: frozenset[str]) -> dict[str, Any]:
    """An object with exactly these members."""
    if not isinstance(value, dict):
        raise BadInput(f"{what}: expected an object, got {type(value).__name__}")
    if value.keys() != names:
        raise BadInput(f"{what}, members: expected {sorted(names)}, got {show(sorted(value))}")
    return value


def parse_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{what}: expected an array, got {type(value).__name__}")
    return value


def parse_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{what}: expected a string, got {type(value).__name__}")
    return value


def parse_count(value: Any, what: str, *, least: int = 0) -> int:
    """An integer, never a boolean, of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInput(f"{what}: expected an integer >= {least}, got {show(value)}")
    return value


def parse_decimal(text: str, what: str) -> int:
    """A size or an index in a text format: ASCII digits without leading zero, at most 2^63 - 1."""
    if _DECIMAL.fullmatch(text) is None or int(text) > MAX_DECIMAL:
        raise BadInput(f"{what}: expected 0 to {MAX_DECIMAL} without leading zero, got {show(text)}")
    return int(text)


def parse_constant(value: Any, what: str, constant: str | int) -> None:
    if type(value) is not type(constant) or value != constant:
        raise BadInput(f"{what}: expected {show(constant)}, got {show(value)}")


def parse_identifier(value: Any, what: str) -> str:
    """A name of a principal, base, dataset, adapter, unit or task."""
    text = parse_text(value, what)
    if _IDENTIFIER.fullmatch(text) is None:
        raise BadInput(f"{what}: expected 1 to 63 of a-z, 0-9 and inner hyphens, got {show(text)}")
    return text


def encode_base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def parse_base64(value: Any, what: str, *, size: int | None = None) -> bytes:
    """Standard base64 with padding, in its one spelling: stray bits in the last character are refused.

    With `size`, of exactly that many bytes.
    """
    text = parse_text(value, what)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{what}: expected standard base64, got {show(text)}") from None
    if encode_base64(data) != text:
        raise BadInput(f"{what}: expected base64 in its one spelling, got {show(text)}")
    if size is not None and len(data) != size:
        raise BadInput(f"{what}: expected {size} bytes, got {len(data)}")
    return data


def encode_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def parse_base64url(value: Any, what: str) -> bytes:
    """URL-safe base64 without padding, in its one spelling."""
    text = parse_text(value, what)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{what}: expected base64url without padding, got {show(text)}") from None
    if encode_base64url(data) != text:
        raise BadInput(f"{what}: expected base64url in its one spelling, got {show(text)}")
    return data
