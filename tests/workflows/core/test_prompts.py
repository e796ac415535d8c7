"""Prompts that wait for the order that binds them: bounded, and those of one person leave room for others."""

from __future__ import annotations

import pytest

from appliance.errors import RateLimited
from appliance.formats.core.commitment import disclose
from appliance.workflows.core.prompts import KEPT_S, MOST_OF_ONE, Prompts


def test_one_person_does_not_fill_the_room_of_all() -> None:
    now = [0.0]
    prompts = Prompts(lambda: now[0])
    many = [disclose(f"prompt {number}", number.to_bytes(32, "big")) for number in range(MOST_OF_ONE)]
    assert prompts.hold("rita", many) == MOST_OF_ONE
    assert prompts.hold("rita", many[:2]) == MOST_OF_ONE, "the same again takes no room"
    one_more = disclose("one more", b"x" * 32)
    with pytest.raises(RateLimited, match=f"expected at most {MOST_OF_ONE} of one person at a time, got"):
        prompts.hold("rita", [one_more])
    assert prompts.hold("raul", [one_more]) == 1
    now[0] = KEPT_S
    assert prompts.hold("rita", [one_more]) == 1
