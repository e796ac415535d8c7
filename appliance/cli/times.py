"""Times as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from appliance.errors import BadInput
from appliance.formats.timestamp import encode_time, parse_time

_AGO = re.compile(r"([1-9][0-9]{0,5})(m|h|d|w)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MINUTES = {"m": 1, "h": 60, "d": 1440, "w": 10080}


def parse_moment(text: str, what: str, now: datetime, *, end_of_day: bool = False) -> str:
    """`2026-11-24`, a whole time as the log writes it, or `90m`, `2h`, `7d`, `4w` ago.

    A date stands for its first moment, or with `end_of_day` for its last.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return encode_time(now - timedelta(minutes=int(ago[1]) * _MINUTES[ago[2]]))
    if _DATE.fullmatch(text) is None:
        return encode_time(parse_time(text, what))
    try:
        day = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise BadInput(f"{what}: expected a day that exists, got {text}") from None
    return encode_time(day + timedelta(days=1, milliseconds=-1) if end_of_day else day)


def parse_end(text: str, what: str, now: datetime) -> str:
    """`2026-11-24` (its end), a whole time as the log writes it, `90m`, `2h`, `7d`, `4w` from now, or `now`."""
    if text == "now":
        return encode_time(now)
    ahead = _AGO.fullmatch(text)
    if ahead is not None:
        return encode_time(now + timedelta(minutes=int(ahead[1]) * _MINUTES[ahead[2]]))
    return parse_moment(text, what, now, end_of_day=True)
