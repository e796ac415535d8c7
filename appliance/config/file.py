"""`<home>/appliance.toml`: texts by key, and the limits. An unknown key is refused."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path

from appliance.config.keys import LIMITS, VARIABLES
from appliance.errors import BadInput

_MOST = 10**12


def read_file(path: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """The texts, and the limits."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"settings, {path}: expected TOML, got {error}") from None
    limits = _parse_limits(content.pop("limits", {}), f"settings, {path}")
    for key, value in content.items():
        _check_known(key, (*VARIABLES, "limits"), f"settings, {path}")
        if not isinstance(value, str):
            raise BadInput(f"settings, {path}, {key}: expected text, got {value!r}")
    return content, limits


def _check_known(key: str, known: Collection[str], what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"{what}, key {key!r}: expected one of {', '.join(known)}{hint}")


def _parse_limits(table: object, what: str) -> dict[str, dict[str, int]]:
    """Unit to limits. A unit's own table begins with what every unit has."""
    if not isinstance(table, dict):
        raise BadInput(f"{what}, limits: expected a table, got {table!r}")
    common: dict[str, int] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            common[key] = _parse_limit(key, value, f"{what}, limits")
    own = {unit: value for unit, value in table.items() if isinstance(value, dict)}
    found = {
        unit: common | {key: _parse_limit(key, value, f"{what}, limits.{unit}") for key, value in values.items()}
        for unit, values in own.items()
    }
    return {"": common, **found} if table else {}


def _parse_limit(key: str, value: object, what: str) -> int:
    _check_known(key, LIMITS, what)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise BadInput(f"{what}, {key}: expected a whole number from 0 to {_MOST}, got {value!r}")
    return value
