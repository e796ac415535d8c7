"""While one question is waited for, what vLLM gives others in the same step is told them too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from appliance.ml.inference.text import Text
from appliance.ml.model.base import Base
from appliance.ml.serving.engine import Done, Event
from appliance.ml.vllm.engine import Engine, _Row, _salt


class Stepped:
    """A vLLM whose one step ends the question first, and gives another request a token after it."""

    def step(self) -> list[Any]:
        drawn = SimpleNamespace(token_ids=[7])
        return [
            SimpleNamespace(request_id="probe", finished=True, outputs=[]),
            SimpleNamespace(request_id="other#", finished=False, outputs=[drawn]),
        ]


def make_engine(vllm: object, limit: int) -> Engine:
    """... that answers one request, `other`."""
    engine = object.__new__(Engine)
    engine.base = cast(Base, SimpleNamespace(chat=SimpleNamespace(stop_ids=lambda: frozenset({1}))))
    engine._vllm, engine._events, engine._wanted, engine.computed = vllm, [], {}, 0
    question = cast(Any, SimpleNamespace(prompt=[2]))
    row = _Row("other", "s", question, Text(lambda ids: "x" * len(ids), ()), limit, "salt")
    row.asked = ["other#"]
    engine._rows = {"other": row}
    return engine


def test_a_token_that_comes_with_the_answer_that_is_waited_for_is_not_lost() -> None:
    engine = make_engine(Stepped(), limit=9)
    assert engine._wait_for("probe").request_id == "probe"
    assert engine._events == [Event("other", "x")]
    assert engine._rows["other"].completion_tokens == 1


def test_an_answer_that_ends_while_a_question_is_waited_for_does_not_repeat_what_waits() -> None:
    """Text came twice, and two classifications as one: an adapter is loaded while others are answered."""

    class Ending(Stepped):
        def step(self) -> list[Any]:
            return list(reversed(super().step()))

        def abort_request(self, names: list[str]) -> None: ...

    engine = make_engine(Ending(), limit=1)
    engine._events = [Event("earlier", "{}")]
    engine._wait_for("probe")
    assert engine._events == [Event("other", "x"), Event("earlier", "{}"), Event("other", Done("length", 1, 1))]


class Repeating:
    """A vLLM that answers twice, and answers a request that was never asked."""

    def __init__(self) -> None:
        self.aborted: list[list[str]] = []

    def step(self) -> list[Any]:
        names = ("stranger#", "other#", "other#", "stranger")
        return [
            SimpleNamespace(request_id=name, finished=True, outputs=[SimpleNamespace(token_ids=[7])]) for name in names
        ]

    def abort_request(self, names: list[str]) -> None:
        self.aborted.append(names)


def test_what_ended_or_was_never_asked_is_told_to_nobody() -> None:
    vllm = Repeating()
    engine = make_engine(vllm, limit=1)
    assert engine.step() == [Event("other", "x"), Event("other", Done("length", 1, 1))]
    assert vllm.aborted == [["other#"]] and not engine.busy
    assert engine.computed == 1
    assert engine.step() == [] and engine.computed == 1, "nothing was at work"


def test_beginnings_of_prompts_are_shared_within_one_slot_and_epoch_of_a_unit_s_tokens_alone() -> None:
    salts: list[str] = []

    class Taking:
        def add_request(self, name: str, prompt: dict[str, Any], parameters: object, lora_request: object) -> None:
            salts.append(prompt["cache_salt"])

    engine = make_engine(Taking(), limit=1)
    engine._slots = dict.fromkeys("st")
    for number, (slot, scope) in enumerate(
        [("s", "e1"), ("s", "e1"), ("s", "e2"), ("t", "e1"), ("s", None), ("s", None)]
    ):
        row = _Row(f"r{number}", slot, cast(Any, None), cast(Any, None), 1, _salt(slot, scope))
        engine._add(row.name, row.slot, row.salt, [2], None)
    assert salts[0] == salts[1] and len(set(salts)) == 5
