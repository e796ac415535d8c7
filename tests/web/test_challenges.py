"""A challenge is valid once, within its minute, whatever number of others is requested."""

from __future__ import annotations

import pytest

from appliance.errors import NotAuthenticated
from appliance.web.core.auth import CHALLENGE_S, IDENTITY_S, Challenges


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_challenge_is_answered_once() -> None:
    challenges = Challenges(Clock())
    nonce = challenges.make()
    for _ in range(10_000):
        challenges.make()
    challenges.take(nonce)
    with pytest.raises(NotAuthenticated, match="once") as again:
        challenges.take(nonce)
    assert again.value.code == "challenge"


def test_a_challenge_ends_with_its_minute_and_is_not_taken_from_another_process() -> None:
    clock = Clock()
    challenges = Challenges(clock)
    first, second = challenges.make(), challenges.make()
    clock.now += CHALLENGE_S
    challenges.take(first)
    clock.now += 1
    for nonce in (
        first,
        second,
        Challenges(clock).make(),
        "0" * 32,
        f"{second[:-1]}{'0' if second[-1] != '0' else '1'}",
    ):
        with pytest.raises(NotAuthenticated):
            challenges.take(nonce)


def test_what_was_answered_is_forgotten_with_its_minute() -> None:
    clock = Clock()
    challenges = Challenges(clock)
    for _ in range(100):
        challenges.take(challenges.make())
    clock.now += CHALLENGE_S + 1
    challenges.take(challenges.make())
    assert len(challenges._answered) == 1


def test_what_was_answered_is_remembered_until_no_check_accepts_it() -> None:
    clock = Clock()
    challenges = Challenges(clock, longest_s=IDENTITY_S)
    nonce = challenges.make()
    challenges.take(nonce)
    clock.now += IDENTITY_S
    challenges.take(challenges.make())
    with pytest.raises(NotAuthenticated, match="not used"):
        challenges.take(nonce, IDENTITY_S)
    clock.now += 1
    challenges.take(challenges.make())
    assert len(challenges._answered) == 2
