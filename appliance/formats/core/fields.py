"""Strict readers for the fields of parsed JSON: exact names, exact types, one spelling for each value.

Each reader raises BadInput for any other value; `what` names the field in the message.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar

from appliance.errors import BadInput, Tampered


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


R = TypeVar("R", bound=_Dataclass)
MAX_DECIMAL = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def show(value: object) -> str:
    """Return an untrusted value for a message, escaped and cut to 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def as_tampered(what: str = "") -> Iterator[None]:
    """Raise Tampered in place of BadInput. The message begins with `what`, if it is given."""
    try:
        yield
    except BadInput as error:
        raise Tampered(f"{what}: {error.message}" if what else error.message) from None


def parse_object(value: Any, what: str, names: frozenset[str]) -> dict[str, Any]:
    """Return the value if it is an object with exactly these fields."""
    if not isinstance(value, dict):
        raise BadInput(f"{what}: expected an object, got {type(value).__name__}")
    if value.keys() != names:
        raise BadInput(f"{what}, fields: expected {sorted(names)}, got {show(sorted(value))}")
    return value


def parse_record(model: type[R], value: Any, what: str) -> R:
    """Return the dataclass of an object with exactly its fields. The dataclass checks the type of each."""
    return model(**parse_object(value, what, frozenset(field.name for field in fields(model))))


def parse_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{what}: expected an array, got {type(value).__name__}")
    return value


def parse_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{what}: expected a string, got {type(value).__name__}")
    return value


def parse_count(value: Any, what: str, *, least: int = 0) -> int:
    """Return the value if it is an integer of at least `least`; booleans are refused."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInput(f"{what}: expected an integer >= {least}, got {show(value)}")
    return value


def parse_decimal(text: str, what: str) -> int:
    """Parse a size or an index of a text format: ASCII digits without leading zero, at most 2^63 - 1."""
    if _DECIMAL.fullmatch(text) is None or int(text) > MAX_DECIMAL:
        raise BadInput(f"{what}: expected 0 to {MAX_DECIMAL} without leading zero, got {show(text)}")
    return int(text)


def parse_constant(value: Any, what: str, constant: str | int) -> None:
    if type(value) is not type(constant) or value != constant:
        raise BadInput(f"{what}: expected {show(constant)}, got {show(value)}")


def parse_identifier(value: Any, what: str) -> str:
    """Return the value if it is a valid name of a principal, base, dataset, adapter, unit or served model."""
    text = parse_text(value, what)
    if _IDENTIFIER.fullmatch(text) is None:
        raise BadInput(f"{what}: expected 1 to 63 of a-z, 0-9 and inner hyphens, got {show(text)}")
    return text


def encode_base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def parse_base64(value: Any, what: str, *, size: int | None = None) -> bytes:
    """Decode standard base64 with padding (RFC 4648 section 4).

    Only the canonical spelling is accepted: unused bits in the last character must be zero. With `size`, the result
    must have exactly that many bytes.
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
    """Decode URL-safe base64 without padding (RFC 4648 section 5), in its canonical spelling only."""
    text = parse_text(value, what)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{what}: expected base64url without padding, got {show(text)}") from None
    if encode_base64url(data) != text:
        raise BadInput(f"{what}: expected base64url in its one spelling, got {show(text)}")
    return data
