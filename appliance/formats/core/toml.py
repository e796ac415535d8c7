"""TOML files that people write: settings and profiles."""

from __future__ import annotations

import tomllib
from typing import Any

from appliance.errors import BadInput

MAX_LINE_BYTES = 8_192
"""Maximum bytes of a line, since the time for a name of many parts grows with the square of its length."""


def parse_toml(data: bytes, what: str) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        BadInput: the bytes are no TOML in UTF-8, a line is too long, or brackets are nested too deeply.
    """
    for number, line in enumerate(data.split(b"\n"), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise BadInput(f"{what}, line {number}: expected at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise BadInput(f"{what}: expected TOML of a few levels, got hundreds of nested brackets") from None
    except ValueError as error:  # also what is no TOML, no UTF-8, or a number of too many digits
        raise BadInput(f"{what}: expected TOML, got {error}") from None
