"""Times as people type them are converted to the log's one form."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from appliance.errors import BadInput
from appliance.formats.core.timestamp import parse_end, parse_moment

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("typed", "moment"),
    [
        ("2026-11-24", "2026-11-24T00:00:00.000Z"),
        ("2026-11-24T10:30Z", "2026-11-24T10:30:00.000Z"),
        ("2026-11-24 10:30:05+02:00", "2026-11-24T08:30:05.000Z"),
        ("2026-11-24T10:30:05.123Z", "2026-11-24T10:30:05.123Z"),
        ("90m", "2026-11-25T10:30:00.000Z"),
        ("7d", "2026-11-18T12:00:00.000Z"),
        ("now", "2026-11-25T12:00:00.000Z"),
    ],
)
def test_a_moment_is_typed_in_any_of_the_usual_ways(typed: str, moment: str) -> None:
    assert parse_moment(typed, "at", NOW) == moment


def test_a_day_that_ends_something_is_its_last_moment() -> None:
    assert parse_moment("2026-11-24", "until", NOW, end_of_day=True) == "2026-11-24T23:59:59.999Z"
    assert parse_end("2h", "until", NOW) == "2026-11-25T14:00:00.000Z"
    assert parse_end("now", "until", NOW) == "2026-11-25T12:00:00.000Z"


@pytest.mark.parametrize(
    "typed", ["2026-11-24T10:30", "yesterday", "10:30", "2026-11-24T25:00Z", "2026-02-30", "", "1y"]
)
def test_what_could_be_two_moments_or_none_is_refused_by_name(typed: str) -> None:
    with pytest.raises(BadInput, match=r"^at: expected .* got"):
        parse_moment(typed, "at", NOW)
