"""Times have one width and sort as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput
from appliance.formats.core.timestamp import check_time, encode_time, parse_time

MOMENTS = st.datetimes(timezones=st.just(UTC))


def test_a_time_is_written_in_utc_with_milliseconds_cut_off() -> None:
    moment = datetime(2026, 11, 24, 17, 15, 35, 123_999, timezone(timedelta(hours=2)))
    assert encode_time(moment) == "2026-11-24T15:15:35.123Z"


@settings(deadline=None)
@given(MOMENTS, MOMENTS)
def test_times_come_back_and_sort_as_text(first: datetime, second: datetime) -> None:
    texts = [encode_time(first), encode_time(second)]
    assert [encode_time(parse_time(text)) for text in texts] == texts
    assert {len(text) for text in texts} == {24}
    assert (texts[0] < texts[1]) == (parse_time(texts[0]) < parse_time(texts[1]))


def test_a_naive_time_and_one_beyond_the_calendar_are_refused() -> None:
    with pytest.raises(BadInput):
        encode_time(datetime(2026, 1, 1))
    with pytest.raises(BadInput):
        encode_time(datetime.min.replace(tzinfo=timezone(timedelta(hours=1))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-24",
        "2026-11-24T15:15:35Z",
        "2026-11-24T15:15:35.12Z",
        "2026-11-24T15:15:35.123456Z",
        "2026-11-24T15:15:35.123",
        "2026-11-24T15:15:35.123z",
        "2026-11-24T15:15:35.123+00:00",
        "2026-11-24 15:15:35.123Z",
        "2026-11-24T15:15:35,123Z",
        "2026-11-24T15:15:35.123Z\n",
        "2026-02-29T00:00:00.000Z",
        "2026-13-01T00:00:00.000Z",
        "2026-01-01T24:00:00.000Z",
        "2026-06-30T23:59:60.000Z",
        "2026-06-30T23:60:00.000Z",
        "2026-11-31T15:15:35.123Z",
        "2100-02-29T15:15:35.123Z",
        "2026-W48-2T15:15:35.123Z",
        "0000-01-01T00:00:00.000Z",
        "\u0662026-11-24T15:15:35.123Z"[:24],
        5,
        None,
    ],
)
def test_other_spellings_are_refused(text: object) -> None:
    for parse in (parse_time, check_time):
        with pytest.raises(BadInput):
            parse(text)


@settings(deadline=None)
@given(st.from_regex(r"[0-2][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", fullmatch=True))
def test_a_time_is_one_that_the_calendar_and_the_clock_have(text: str) -> None:
    try:
        expected = encode_time(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")) == text
    except ValueError:
        expected = False
    try:
        assert check_time(text) == text
    except BadInput:
        assert not expected
    else:
        assert expected
