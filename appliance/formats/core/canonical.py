"""Canonical JSON (RFC 8785, JCS) without fractions, for everything that is hashed or signed.

The profile is a subset of the RFC. Numbers are integers that a double represents exactly; fractions and exponents are
refused. Strings are valid Unicode; lone surrogates are refused. Values are nested at most `MAX_DEPTH` deep. Any RFC
8785 implementation encodes a value to the same bytes as this module.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from typing import Any, NoReturn

from appliance.errors import BadInput

MAX_VALUES = 100_000
"""Maximum number of values in one document, since a validator may report one error for each value."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A JSON string, or the rest of the text after an unterminated string; possessive, so that each byte is read once."""
_VALUE_PREFIXES = b",[{"


def check_values(data: bytes, what: str, most: int = MAX_VALUES) -> None:
    """Check that the JSON text has at most `most` values; characters inside strings do not count."""
    if len(data) <= 2 * most or _count(data) < most:
        return
    if (got := _count(_STRING.sub(b"", data)) + 1) > most:
        raise BadInput(f"{what}: expected at most {most} values, got {got}")


def _count(data: bytes) -> int:
    return sum(data.count(character) for character in _VALUE_PREFIXES)


def parse_json(data: bytes, what: str, most: int = MAX_VALUES) -> Any:
    """Parse JSON in any layout: in UTF-8, with at most `most` values, each key once, and no NaN or infinity."""
    check_values(data, what, most)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=partial(_plain_object, what=what),
            parse_float=_finite,
            parse_constant=_refuse,
        )
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}, byte {error.start}: expected UTF-8, got {error.reason}") from None
    except (ValueError, RecursionError) as error:  # a ValueError is also an integer of too many digits
        raise BadInput(f"{what}: expected JSON, got: {error}") from None


def find_twice(names: list[str]) -> str:
    """Return the first name that occurs a second time."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _plain_object(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        duplicate = find_twice([name for name, _ in pairs])
        raise BadInput(f"{what}: expected every key once, got {duplicate[:60]!r} twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]}, which is too large")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which JSON does not have")


MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 64


def encode_canonical(value: Any) -> bytes:
    """Encode a value of dict, list, tuple, str, int, bool and None as canonical JSON.

    Keys are sorted by UTF-16 code units (RFC 8785 section 3.2.3).

    Raises:
        BadInput: the value has no canonical form.
    """
    try:
        return _ENCODER.encode(ordered(value)).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"canonical JSON, string: expected Unicode, got a lone surrogate ({error.reason})") from None


def parse_canonical(data: bytes) -> Any:
    """Parse canonical JSON. Another encoding of the same value is invalid."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"canonical JSON, byte {error.start}: expected UTF-8, got {error.reason}") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"canonical JSON, character {error.pos}: expected JSON, got {error.msg}") from None
    except RecursionError:
        raise BadInput(f"canonical JSON, nesting: expected at most {MAX_DEPTH} levels, got more") from None
    encoded = encode_canonical(value)
    if encoded != data:
        at = next(
            (i for i, (x, y) in enumerate(zip(encoded, data, strict=False)) if x != y), min(len(encoded), len(data))
        )
        raise BadInput(f"canonical JSON, byte {at}: expected {encoded[at : at + 16]!r}, got {data[at : at + 16]!r}")
    return value


def ordered(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return the value with the keys of every object in canonical order.

    `depth` is the number of levels that the value may have. Strings are checked later, when they are encoded.

    Raises:
        BadInput: a part of the value has no canonical form.
    """
    if isinstance(value, dict):
        if not value:  # the most frequent case: an entry without documents
            return {}
        remaining = _descend(depth)
        return {
            # Most fields are strings; skipping the recursive call for them saves time.
            key: member if type(member := value[key]) is str else ordered(member, remaining)
            for key in _sorted_keys(value)
        }
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise BadInput("canonical JSON, number: expected an integer within ±(2^53 - 1), got a larger one")
        return value
    if isinstance(value, list | tuple):
        remaining = _descend(depth)
        return [ordered(item, remaining) for item in value]
    raise BadInput(f"canonical JSON, value: expected object, array, string, integer, got {type(value).__name__}")


def _descend(depth: int) -> int:
    if depth == 0:
        raise BadInput(f"canonical JSON, nesting: expected at most {MAX_DEPTH} levels, got more")
    return depth - 1


def _sorted_keys(value: dict[Any, Any]) -> list[str]:
    try:
        # ASCII keys sort alike by code points and by UTF-16 units; in general U+10000 sorts before U+E000.
        if "".join(value).isascii():
            return sorted(value)
    except TypeError:
        name = next(type(key).__name__ for key in value if not isinstance(key, str))
        raise BadInput(f"canonical JSON, key: expected a string, got {name}") from None
    return sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))


def _integer(text: str) -> int:
    if len(text) > len(str(-MAX_INTEGER)):
        raise BadInput("canonical JSON, number: expected an integer within ±(2^53 - 1), got a larger one")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise BadInput(f"canonical JSON, number: expected an integer, got {text[:40]}")


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(
    object_pairs_hook=partial(_plain_object, what="canonical JSON"),
    parse_int=_integer,
    parse_float=_refuse_number,
    parse_constant=_refuse_number,
)
