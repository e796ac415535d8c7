"""Templates: every value in them is escaped, and one that is missing is an error."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter

from appliance.formats.core.timestamp import parse_time
from appliance.formats.core.visible import IGNORABLE, is_visible
from appliance.web.console.core.assets import Assets

FOLDER = Path(__file__).resolve().parents[1]
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_JSON = TypeAdapter(object)


def make_environment(assets: Assets) -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_shown,
    )
    made.filters.update(
        when=when,
        age=age,
        size=size,
        number=number,
        words=words,
        decimal=decimal,
        p_value=p_value,
        json=pretty,
        label=label,
        subject=subject,
        is_time=is_time,
        # Of a form's field, which is sent back: escaped, and every character as it is.
        exact=made.filters["escape"],
    )
    made.globals.update(asset=assets.url, link=link)
    return made


def plain(text: str) -> str:
    """A text of somebody's with every character that has no shape of its own written out, but ends of lines and tabs:
    none turns the direction of what follows, or hides a part of it. The signing page's script does the same."""
    if is_visible(text.replace("\n", "").replace("\t", "")):
        return text
    return "".join(_written(c) for c in text)


def _written(character: str) -> str:
    hidden = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" or IGNORABLE.match(character)
    return f"\\u{{{ord(character):04x}}}" if hidden and character not in "\n\t" else character


def _shown(value: object) -> object:
    """What a template puts out; of what it has marked as safe, the texts came by here already."""
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def when(time: str) -> str:
    """2026-11-24T10:30:00.000Z as 2026-11-24 10:30:00."""
    return f"{time[:10]} {time[11:19]}"


def is_time(text: str) -> bool:
    """Whether it is a time as entries and orders have it."""
    return _TIME.fullmatch(text) is not None


def age(seconds: float | None) -> str:
    """In the one unit that says enough: `12 s`, `3 min`, `5 h`, `2 days`."""
    if seconds is None:
        return "never"
    for most, unit, name in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def seconds_since(earlier: str, later: str) -> float:
    return (parse_time(later) - parse_time(earlier)).total_seconds()


def label(name: str) -> str:
    """A member's name as words; durations say their unit themselves."""
    return name.removesuffix("_s").replace("_", " ")


def subject(text: str) -> str:
    """A subject of an entry with its digest cut."""
    kind, digest, rest = text.partition("sha256:")
    return f"{kind}{rest[:12]}…" if digest else text


def size(count: int | None) -> str:
    if count is None:
        return "–"
    shown, unit = float(count), 0
    while shown >= 1024 and unit < len(_UNITS) - 1:
        shown, unit = shown / 1024, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{shown:,.1f} {_UNITS[unit]}"


def number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,}"


def decimal(value: object, places: int = 3) -> str:
    """A decimal fraction, which signed documents hold as text."""
    try:
        return "–" if value is None else f"{float(str(value)):.{places}f}"
    except ValueError:
        return str(value)


def p_value(value: object) -> str:
    """With four places; a smaller one is not shown as nothing."""
    shown = decimal(value, 4)
    return "below 0.0001" if shown == "0.0000" and float(str(value)) > 0 else shown


def pretty(value: object) -> str:
    """JSON to be read; it is escaped where it is put in, as every text is."""
    return _JSON.dump_json(value, indent=1).decode()


def words(value: object) -> str:
    """Any value of a document in a line of text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    return str(value)


def link(path: str, /, **parameters: Any) -> str:
    """A path with those parameters that have a value; a sequence is repeated."""
    given: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            given += [] if value in (None, "", False) else [(name, "true" if value is True else str(value))]
        else:
            given += [(name, str(item)) for item in value]
    return f"{path}?{urlencode(given)}" if given else path
