"""Times: `2026-11-24T15:15:35.123Z`, UTC, milliseconds, always this width, so that they sort as text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from appliance.errors import BadInput
from appliance.formats.fields import parse_text, show

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


def encode_time(moment: datetime) -> str:
    """An aware time; what is below a millisecond is cut off, never rounded up into the future."""
    if moment.tzinfo is None:
        raise BadInput("time: expected one with a time zone, got a naive one")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        raise BadInput("time: expected one in the years 1 to 9999, got one outside") from None
    return f"{utc.year:04d}-{utc:%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"


def parse_time(value: Any, what: str = "time") -> datetime:
    """The time in UTC. There are no leap seconds here."""
    text = parse_text(value, what)
    if _TIME.fullmatch(text) is None:
        raise BadInput(f"{what}: expected YYYY-MM-DDTHH:MM:SS.mmmZ, got {show(text)}")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{what}: expected a time that exists, got {show(text)}") from None
    # Later versions of Python take 24:00:00 as the next day's first moment.
    if encode_time(moment) != text:
        raise BadInput(f"{what}: expected {encode_time(moment)}, got {show(text)}")
    return moment
