"""Times: `2026-11-24T15:15:35.123Z`, UTC, milliseconds, always this width, so that they sort as text."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.fields import parse_text, show

_SHAPE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_CLOCK = re.compile(r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z")


def encode_time(moment: datetime) -> str:
    """An aware time; what is below a millisecond is cut off, never rounded up into the future."""
    if moment.tzinfo is None:
        raise BadInput("time: expected one with a time zone, got a naive one")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        raise BadInput("time: expected one in the years 1 to 9999, got one outside") from None
    return f"{utc.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


def parse_time(value: Any, what: str = "time") -> datetime:
    """The time in UTC. There are no leap seconds here."""
    return datetime.fromisoformat(check_time(value, what))


def check_time(value: Any, what: str = "time") -> str:
    """The text itself, checked to be a time; for callers that compare times as text."""
    text = parse_text(value, what)
    if _CLOCK.fullmatch(text, 10) is not None and _is_day(text[:10]):
        return text
    expected = "YYYY-MM-DDTHH:MM:SS.mmmZ" if _SHAPE.fullmatch(text) is None else "a time that exists"
    raise BadInput(f"{what}: expected {expected}, got {show(text)}")


@lru_cache(maxsize=256)
def _is_day(text: str) -> bool:
    """Whether the calendar has it; a log has thousands of entries a day."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
