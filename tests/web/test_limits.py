"""Limits of a unit's requests: concurrent, per minute and per day, independent of other units."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from appliance.errors import NotAuthenticated, RateLimited
from appliance.web.operations.limits import EVERYBODY, Bucket, Quotas, UnitLimits
from appliance.web.units.middleware import Threads
from appliance.web.units.openai import CHALLENGE, MOST, TOKENS, TokenEndpoint
from appliance.workflows.serving.places import SharedPlaces


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(quotas: Quotas, unit: str = "legal") -> RateLimited:
    with pytest.raises(RateLimited) as error:
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
    quotas = Quotas({EVERYBODY: UnitLimits(concurrent=2)}, SharedPlaces("API", 9, lambda: 1), Clock())
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
    quotas = Quotas({"legal": UnitLimits(concurrent=3)}, SharedPlaces("API", 4, lambda: 3), Clock())
    held = [quotas.enter("legal") for _ in range(3)]
    assert refused(quotas).code == "concurrent-limit"
    held.append(quotas.enter("claims"))
    held.append(quotas.enter("other"))
    for place in held:
        place.__exit__()
    quotas.enter("other").__exit__()


def test_units_that_hold_all_places_leave_each_other_unit_its_share() -> None:
    """Only who holds its share or more is refused, and no unit is refused for the requests of others."""
    places = SharedPlaces("engine", 32, lambda: 4)
    for unit in ("legal", "claims"):
        for _ in range(16):
            places.enter(unit)
    for unit in ("other", "sales"):
        for _ in range(8):
            places.enter(unit)
    for unit in ("legal", "claims", "other", "sales"):
        with pytest.raises(RateLimited) as full:
            places.enter(unit)
        assert full.value.code == "rate-limited"
    for _ in range(9):
        places.leave("legal")
    places.enter("legal")
    with pytest.raises(RateLimited):
        places.enter("legal")
    assert places.taken == 40


def test_with_more_units_than_places_each_has_one() -> None:
    places = SharedPlaces("engine", 2, lambda: 5)
    for unit in "abcde":
        places.enter(unit)
    for unit in "abcde":
        with pytest.raises(RateLimited):
            places.enter(unit)


def test_requests_come_back_with_time_and_a_refusal_takes_none() -> None:
    clock = Clock()
    quotas = Quotas({EVERYBODY: UnitLimits(requests_per_minute=2)}, SharedPlaces("API", 9, lambda: 1), clock)
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
    [(UnitLimits(tokens_per_minute=60), 41), (UnitLimits(tokens_per_day=86_400, tokens_per_minute=60), 41)],
)
def test_tokens_are_counted_when_they_are_known_and_a_debt_is_waited_out(limits: UnitLimits, wait_s: int) -> None:
    clock = Clock()
    quotas = Quotas({EVERYBODY: limits}, SharedPlaces("API", 9, lambda: 1), clock)
    with quotas.enter("legal") as place:
        place.spend_frame({"prompt_tokens": 90, "completion_tokens": 10}, 0)
    error = refused(quotas)
    assert (error.code, error.retry_after_s) == ("token-limit", wait_s)
    clock.now += wait_s
    with quotas.enter("legal") as place:
        place.spend_frame({}, 7)
    assert refused(quotas).code == "token-limit"


def test_nothing_is_limited_where_the_limit_is_0() -> None:
    quotas = Quotas(
        {EVERYBODY: UnitLimits(concurrent=0, requests_per_minute=0)}, SharedPlaces("API", 10_000, lambda: 1), Clock()
    )
    places = [quotas.enter("legal") for _ in range(5_000)]
    for place in places:
        place.spend_frame({"prompt_tokens": 10**9, "completion_tokens": 0}, 0)
        place.__exit__()


class TokenAuthenticator:
    """Verifies a request whose body is its nonce. Until `verified`, it does not finish those without a signature."""

    def __init__(self) -> None:
        self.verified = threading.Event()
        self.checking = threading.Semaphore(0)

    def token_request(self, data: bytes) -> Any:
        if data.startswith(b"junk"):
            self.checking.release()
            self.verified.wait(60)
            raise NotAuthenticated("token request: expected one that an application signed, got another")
        return SimpleNamespace(nonce=data.decode(), signer="legal", application="indexer")

    def count(self, *_: object) -> None:
        """Count nothing."""


def test_requests_for_a_token_without_a_signature_take_no_place_of_an_application() -> None:
    authenticator: Any = TokenAuthenticator()
    serving: Any = SimpleNamespace(
        issue_token=lambda request, data, source: SimpleNamespace(token="at_x", id="i", expires_at="t")
    )
    quotas = Quotas({EVERYBODY: UnitLimits()}, SharedPlaces("API", 9, lambda: 1), Clock())
    no_app: Any = None
    issuing = TokenEndpoint(no_app, serving, authenticator, quotas, Threads())

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(issuing), base_url="http://units") as client:
            junk = [asyncio.create_task(client.post(TOKENS, content=b"junk")) for _ in range(MOST)]
            for _ in junk:
                await asyncio.to_thread(authenticator.checking.acquire)
            nonce = (await client.post(CHALLENGE)).json()["nonce"]
            answer = await client.post(TOKENS, content=nonce.encode())
            authenticator.verified.set()
            return [answer.status_code, *(one.status_code for one in await asyncio.gather(*junk))]

    assert asyncio.run(ask()) == [200] + [401] * MOST
