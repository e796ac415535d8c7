"""Times as people type them, on every command line: the appliance's and the verifier's."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time

_LENGTH = re.compile(r"([1-9][0-9]{0,5})(m|h|d|w)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_MINUTES = {"m": 1, "h": 60, "d": 1440, "w": 10080}


def parse_moment(text: str, what: str, now: datetime, *, end_of_day: bool = False) -> str:
    """`2026-11-24`, a time with its zone such as `2026-11-24T10:30Z`, `now`, or `90m`, `2h`, `7d`, `4w` ago.

    A date means its first moment in UTC, or its last with `end_of_day`. A time without a zone is refused: two
    readers could understand it as two different times.
    """
    return _parse(text, what, now, -1, end_of_day=end_of_day)


def parse_point(text: str | None, what: str, now: datetime) -> str | None:
    """A point of a log: an entry's number as it is, or any spelling of a time, where a date counts to its end."""
    return text if text is None or text.isdecimal() else parse_moment(text, what, now, end_of_day=True)


def parse_end(text: str, what: str, now: datetime) -> str:
    """The same forms for a future time: a date means its last moment, `7d` seven days from now."""
    return _parse(text, what, now, 1, end_of_day=True)


def _parse(text: str, what: str, now: datetime, direction: int, *, end_of_day: bool) -> str:
    if text == "now":
        return encode_time(now)
    length = _LENGTH.fullmatch(text)
    if length is not None:
        return _shifted(now, direction * int(length[1]) * _MINUTES[length[2]], what, text)
    day = _DATE.fullmatch(text) is not None
    if not day and _TIME.fullmatch(text) is None:
        raise BadInput(f"{what}: expected 2026-11-24, 2026-11-24T10:30Z (a zone is needed), now or 2h, got {text!r}")
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
