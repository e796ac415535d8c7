"""The cache of prompt beginnings through the units' API: answers do not change, and other units cannot detect hits."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.serving.tokens import RevokeTokens
from scripts.kit.appliance import Appliance

pytestmark = pytest.mark.thorough

INSTRUCTIONS = "Name the kind of each clause, and say who pays, what is secret and when it ends. " * 3
"""More than a piece of 128 tokens of the tiny model, and less than two."""


def _chat(site: Appliance, *turns: str, unit: str = "legal", **more: Any) -> tuple[str, int]:
    """Return the answer to a chat of so many turns, and the number of cached tokens."""
    roles = ["system", *(("user", "assistant")[place % 2] for place in range(len(turns)))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, (INSTRUCTIONS, *turns), strict=True)]
    answer = site.chat(unit, "labels", messages=messages, temperature=1.0, **more)
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 128 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens_details"]["cached_tokens"]


def test_the_next_turn_of_a_chat_does_not_read_its_beginning_again_and_says_the_same(released: Appliance) -> None:
    """The same requests to an engine that was started anew read all of it, and give the same answers."""
    first = _chat(released, "the fee", seed=1)
    turns = ("the fee", first[0], "and due")
    found = [first, _chat(released, *turns, seed=2), _chat(released, *turns, seed=2), _chat(released, "end", seed=3)]
    assert [cached for _, cached in found] == [0, 128, 128, 128]
    released.stop()
    released.start()
    again = [_chat(released, *turns, seed=2), _chat(released, "the fee", seed=1), _chat(released, "end", seed=3)]
    assert [cached for _, cached in again] == [0, 128, 128]
    assert [text for text, _ in again] == [found[1][0], found[0][0], found[3][0]]
    finished = released.entries(type="request.finished")
    assert all(entry["body"]["prompt_tokens"] > 128 for entry in finished), "the record counts every token"
    assert released.verify()["verdict"] == "verified"


def test_another_unit_with_the_same_adapter_and_prompt_learns_nothing(released: Appliance) -> None:
    released.approve(unit="claims")
    released.activate(unit="claims")
    assert _chat(released, "the secret of legal", seed=1)[1] in (0, 128)
    assert _chat(released, "the secret of legal", seed=1)[1] == 128
    theirs, cached = _chat(released, "the secret of legal", seed=1, unit="claims")
    assert cached == 0
    assert theirs == _chat(released, "the secret of legal", seed=1)[0], "the same adapter answers both"


def test_revoking_a_units_tokens_ends_what_was_kept_for_it(released: Appliance) -> None:
    _chat(released, "pay", seed=1)
    assert _chat(released, "pay", seed=1)[1] == 128
    terms = {"unit": "legal", "token": None, "application": None}
    now = add_seconds(released.now(), 0)
    released.order(RevokeTokens(**terms, issued_before=now, **released.terms("lou")))
    assert _chat(released, "pay", seed=1)[1] == 0
    assert _chat(released, "pay", seed=1)[1] == 128
