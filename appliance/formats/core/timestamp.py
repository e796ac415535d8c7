"""Times such as `2026-11-24T15:15:35.123Z`: UTC, in milliseconds, of fixed width so that they sort as text (RFC
3339)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.fields import parse_text, show

_SHAPE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_CLOCK = re.compile(r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z")


def encode_time(moment: datetime) -> str:
    """Encode an aware time; digits below a millisecond are cut off, so that the result is never later than the time.

    Raises:
        BadInput: the time has no zone, or its year in UTC is outside 1 to 9999.
    """
    if moment.tzinfo is None:
        raise BadInput("time: expected one with a time zone, got a naive one")
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        raise BadInput("time: expected one in the years 1 to 9999, got one outside") from None
    return f"{utc.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


def parse_time(value: Any, what: str = "time") -> datetime:
    """Parse a time of this format; leap seconds are refused."""
    return datetime.fromisoformat(check_time(value, what))


def check_time(value: Any, what: str = "time") -> str:
    """Return the text if it is a time of this format, for callers that compare times as text."""
    text = parse_text(value, what)
    if _CLOCK.fullmatch(text, 10) is not None and _is_day(text[:10]):
        return text
    expected = "YYYY-MM-DDTHH:MM:SS.mmmZ" if _SHAPE.fullmatch(text) is None else "a time that exists"
    raise BadInput(f"{what}: expected {expected}, got {show(text)}")


@lru_cache(maxsize=256)
def _is_day(text: str) -> bool:
    """Return True if the calendar has this date; cached, since a log has thousands of entries per day."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


_LENGTH = re.compile(r"([1-9][0-9]{0,5})(m|h|d|w)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_MINUTES = {"m": 1, "h": 60, "d": 1440, "w": 10080}


def parse_moment(text: str, what: str, now: datetime, *, end_of_day: bool = False) -> str:
    """Parse a time as people write it and return it in the format of this module.

    Accepted are a date (`2026-11-24`), a time with its zone (`2026-11-24T10:30Z`), `now`, and a time ago (`90m`, `2h`,
    `7d`, `4w`). A date means its first moment in UTC, or its last with `end_of_day`. A time without a zone is refused
    as ambiguous.

    Raises:
        BadInput: the text has none of these forms.
    """
    return _parse(text, what, now, -1, end_of_day=end_of_day)


def parse_point(text: str | None, what: str, now: datetime, *, end_of_day: bool) -> str | None:
    """Parse a point of a log: an entry's number, or a time as in `parse_moment`."""
    return text if text is None or text.isdecimal() else parse_moment(text, what, now, end_of_day=end_of_day)


def parse_end(text: str, what: str, now: datetime) -> str:
    """Parse a future time in the forms of `parse_moment`: a date means its last moment, `7d` seven days from now."""
    return _parse(text, what, now, 1, end_of_day=True)


def _parse(text: str, what: str, now: datetime, direction: int, *, end_of_day: bool) -> str:
    if text == "now":
        return encode_time(now)
    length = _LENGTH.fullmatch(text)
    if length is not None:
        return _shifted(now, direction * int(length[1]) * _MINUTES[length[2]], what, text)
    day = _DATE.fullmatch(text) is not None
    if not day and _TIME.fullmatch(text) is None:
        forms = "a day such as 2026-11-24, a time with its zone such as 2026-11-24T10:30Z, now, or 2h"
        raise BadInput(f"{what}: expected {forms}, got {text!r:.60}")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{what}: expected a {'day' if day else 'time'} that exists, got {text}") from None
    if not day:
        return encode_time(moment)
    moment = moment.replace(tzinfo=UTC)
    return encode_time(moment + timedelta(days=1, milliseconds=-1) if end_of_day else moment)


def _shifted(now: datetime, minutes: int, what: str, text: str) -> str:
    try:
        return encode_time(now + timedelta(minutes=minutes))
    except OverflowError:
        raise BadInput(f"{what}: expected a length within the calendar, got {text}") from None
