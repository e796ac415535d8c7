"""Canonical JSON: RFC 8785 (JCS) without fractions, for everything that is hashed or signed.

The profile is narrower than the RFC, never different from it: numbers are integers that a double holds exactly (a
fraction or an exponent is refused), strings are whole Unicode (a lone surrogate is refused), and values nest at most
`MAX_DEPTH` deep. What this module encodes, any RFC 8785 implementation encodes to the same bytes.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from appliance.errors import BadInput

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 64


def encode_canonical(value: Any) -> bytes:
    """The one encoding of a value of dict, list, tuple, str, int, bool and None; keys sort by UTF-16 units."""
    try:
        return _ENCODER.encode(ordered(value)).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"canonical JSON, string: expected Unicode, got a lone surrogate ({error.reason})") from None


def parse_canonical(data: bytes) -> Any:
    """The value of canonical bytes: bytes that do not re-encode to exactly the same bytes are refused."""
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
    again = encode_canonical(value)
    if again != data:
        at = next((i for i, (x, y) in enumerate(zip(again, data, strict=False)) if x != y), min(len(again), len(data)))
        raise BadInput(f"canonical JSON, byte {at}: expected {again[at : at + 16]!r}, got {data[at : at + 16]!r}")
    return value


def ordered(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value with every object's keys in canonical order, and nothing in it that has no canonical form.

    `depth`: how many levels it may have. Strings are looked at when they are encoded.
    """
    if isinstance(value, dict):
        if not value:  # as most entries' documents
            return {}
        below = _below(depth)
        return {
            # Most members are strings, and the call is what costs.
            key: member if type(member := value[key]) is str else ordered(member, below)
            for key in _sorted_keys(value)
        }
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise BadInput("canonical JSON, number: expected an integer within ±(2^53 - 1), got a larger one")
        return value
    if isinstance(value, list | tuple):
        below = _below(depth)
        return [ordered(item, below) for item in value]
    raise BadInput(f"canonical JSON, value: expected object, array, string, integer, got {type(value).__name__}")


def _below(depth: int) -> int:
    if depth == 0:
        raise BadInput(f"canonical JSON, nesting: expected at most {MAX_DEPTH} levels, got more")
    return depth - 1


def _sorted_keys(value: dict[Any, Any]) -> list[str]:
    try:
        # Code points and UTF-16 units order alike below the surrogates; above, U+10000 sorts before U+E000.
        if "".join(value).isascii():
            return sorted(value)
    except TypeError:
        name = next(type(key).__name__ for key in value if not isinstance(key, str))
        raise BadInput(f"canonical JSON, key: expected a string, got {name}") from None
    return sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"canonical JSON, key {twice[:60]!r}: expected it once, got it twice")
    return value


def _integer(text: str) -> int:
    if len(text) > len(str(-MAX_INTEGER)):
        raise BadInput("canonical JSON, number: expected an integer within ±(2^53 - 1), got a larger one")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise BadInput(f"canonical JSON, number: expected an integer, got {text[:40]}")


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_refuse_number, parse_constant=_refuse_number
)
