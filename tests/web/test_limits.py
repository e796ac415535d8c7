"""What a unit may ask: at once, in a minute, in a day; and nobody is refused for what another asked."""

from __future__ import annotations

import pytest

from appliance.errors import TooMany
from appliance.web.operations.limits import EVERYBODY, Bucket, Limits, Quotas


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(quotas: Quotas, unit: str = "legal") -> TooMany:
    with pytest.raises(TooMany) as error:
        quotas.enter(unit)
    return error.value


def test_a_bucket_fills_evenly_and_never_over_its_measure() -> None:
    bucket = Bucket(60, 60.0, 0.0)
    bucket.take(60, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(1.0)
    assert bucket.wait_s(1.0) == 0.0
    bucket.take(100, 3600.0)
    assert bucket.wait_s(3600.0) == pytest.approx(41.0)


def test_as_many_at_once_as_are_allowed_and_a_place_is_given_back_whatever_happens() -> None:
    quotas = Quotas({EVERYBODY: Limits(concurrent=2)}, 9, Clock())
    with quotas.enter("legal"), quotas.enter("legal"):
        assert refused(quotas).code == "concurrent-limit"
        with quotas.enter("claims"):
            assert quotas.running == 3
    with pytest.raises(ZeroDivisionError), quotas.enter("legal"):
        raise ZeroDivisionError
    assert quotas.running == 0
    with quotas.enter("legal"), quotas.enter("legal"):
        pass


def test_one_unit_with_all_its_places_leaves_the_others_theirs() -> None:
    quotas = Quotas({"legal": Limits(concurrent=3)}, 4, Clock())
    held = [quotas.enter("legal") for _ in range(3)]
    assert refused(quotas).code == "concurrent-limit"
    held.append(quotas.enter("claims"))
    assert refused(quotas, "other").code == "too-many"
    for place in held:
        place.__exit__()
    quotas.enter("other").__exit__()


def test_requests_come_back_with_time_and_a_refusal_takes_none() -> None:
    clock = Clock()
    quotas = Quotas({EVERYBODY: Limits(requests_per_minute=2)}, 9, clock)
    for _ in range(2):
        quotas.enter("legal").__exit__()
    for _ in range(5):
        error = refused(quotas)
        assert (error.code, error.retry_after_s) == ("rate-limit", 30)
    quotas.enter("claims").__exit__()
    clock.now += 30
    quotas.enter("legal").__exit__()
    refused(quotas)


@pytest.mark.parametrize(
    ("limits", "wait_s"),
    [(Limits(tokens_per_minute=60), 41), (Limits(tokens_per_day=86_400, tokens_per_minute=60), 41)],
)
def test_tokens_are_counted_when_they_are_known_and_a_debt_is_waited_out(limits: Limits, wait_s: int) -> None:
    clock = Clock()
    quotas = Quotas({EVERYBODY: limits}, 9, clock)
    with quotas.enter("legal") as place:
        place.spend_frame({"prompt_tokens": 90, "completion_tokens": 10}, 0)
    error = refused(quotas)
    assert (error.code, error.retry_after_s) == ("token-limit", wait_s)
    clock.now += wait_s
    with quotas.enter("legal") as place:
        place.spend_frame({}, 7)
    assert refused(quotas).code == "token-limit"


def test_nothing_is_limited_where_the_limit_is_0() -> None:
    quotas = Quotas({EVERYBODY: Limits(concurrent=0, requests_per_minute=0)}, 10_000, Clock())
    places = [quotas.enter("legal") for _ in range(5_000)]
    for place in places:
        place.spend_frame({"prompt_tokens": 10**9, "completion_tokens": 0}, 0)
        place.__exit__()
