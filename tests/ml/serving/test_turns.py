"""The scheduler of prompts: slots take turns, and a long prompt takes at most a third of the time."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.ml.serving.engine import PromptScheduler


@dataclass(frozen=True)
class Row:
    name: str
    slot: str
    is_long: bool = True


A1, A2, B1, SHORT = Row("a1", "a"), Row("a2", "a"), Row("b1", "b"), Row("c1", "c", is_long=False)


def test_slots_take_turns_each_in_its_own_order() -> None:
    turns, unread = PromptScheduler(), [A1, A2, B1]
    assert [turns.choose(unread, []) for _ in range(4)] == [A1, B1, A1, B1]


def test_a_long_prompt_waits_until_the_others_have_drawn_for_twice_as_long() -> None:
    turns, drawing = PromptScheduler(), [B1]
    assert turns.choose([A1], drawing) == A1
    turns.spend_reading(A1, drawing, 1.0)
    turns.spend_drawing(1.9)
    assert turns.choose([A1], drawing) is None
    turns.spend_drawing(0.2)
    assert turns.choose([A1], drawing) == A1


def test_a_short_prompt_waits_for_nothing_and_a_long_one_not_for_its_own_slot() -> None:
    turns, drawing = PromptScheduler(), [B1]
    turns.spend_reading(A1, drawing, 1.0)
    assert turns.choose([A1, SHORT], drawing) == SHORT
    assert turns.choose([A1], [A2]) == A1, "only its own slot draws"
    assert turns.choose([A1], []) == A1, "nobody draws"
