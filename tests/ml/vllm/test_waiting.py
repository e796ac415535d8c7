"""While one question is waited for, other requests receive their tokens of the same step."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from appliance.errors import Conflict, Tampered
from appliance.ml.inference.sampling import TextStream
from appliance.ml.model.base import LoadedBase
from appliance.ml.serving.engine import Done, RequestEvent
from appliance.ml.vllm.engine import VllmEngine, _make_salt, _RunningRequest


class Stepped:
    """A vLLM whose one step ends the question first, and gives another request a token after it."""

    def step(self) -> list[Any]:
        drawn = SimpleNamespace(token_ids=[7])
        return [
            SimpleNamespace(request_id="logit_fingerprint", finished=True, outputs=[]),
            SimpleNamespace(request_id="other#", finished=False, outputs=[drawn]),
        ]


def make_engine(vllm: object, limit: int) -> VllmEngine:
    """... that answers one request, `other`."""
    engine = object.__new__(VllmEngine)
    engine.base = cast(LoadedBase, SimpleNamespace(chat=SimpleNamespace(stop_ids=lambda: frozenset({1}))))
    engine._vllm, engine._events, engine._wanted, engine.computed = vllm, [], {}, 0
    question = cast(Any, SimpleNamespace(prompt=[2]))
    row = _RunningRequest("other", "s", question, TextStream(lambda ids: "x" * len(ids), ()), limit, "salt")
    row.asked = ["other#"]
    engine._rows = {"other": row}
    return engine


def test_a_token_that_comes_with_the_answer_that_is_waited_for_is_not_lost() -> None:
    engine = make_engine(Stepped(), limit=9)
    assert engine._wait_for("logit_fingerprint").request_id == "logit_fingerprint"
    assert engine._events == [RequestEvent("other", "x")]
    assert engine._rows["other"].completion_tokens == 1


def test_an_answer_that_ends_while_a_question_is_waited_for_does_not_repeat_what_waits() -> None:
    """Text came twice, and two classifications as one: an adapter is loaded while others are answered."""

    class Ending(Stepped):
        def step(self) -> list[Any]:
            return list(reversed(super().step()))

        def abort_request(self, names: list[str]) -> None: ...

    engine = make_engine(Ending(), limit=1)
    engine._events = [RequestEvent("earlier", "{}")]
    engine._wait_for("logit_fingerprint")
    assert engine._events == [
        RequestEvent("other", "x"),
        RequestEvent("earlier", "{}"),
        RequestEvent("other", Done("length", 1, 1)),
    ]


class Repeating:
    """A vLLM that answers twice, and answers a request that was never sent."""

    def __init__(self) -> None:
        self.aborted: list[list[str]] = []

    def step(self) -> list[Any]:
        names = ("outsider#", "other#", "other#", "outsider")
        return [
            SimpleNamespace(request_id=name, finished=True, outputs=[SimpleNamespace(token_ids=[7])]) for name in names
        ]

    def abort_request(self, names: list[str]) -> None:
        self.aborted.append(names)


def test_what_ended_or_was_never_asked_is_told_to_nobody() -> None:
    vllm = Repeating()
    engine = make_engine(vllm, limit=1)
    assert engine.step() == [RequestEvent("other", "x"), RequestEvent("other", Done("length", 1, 1))]
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
        row = _RunningRequest(f"r{number}", slot, cast(Any, None), cast(Any, None), 1, _make_salt(slot, scope))
        engine._add(row.name, row.slot, row.salt, [2], None)
    assert salts[0] == salts[1] and len(set(salts)) == 5


CONFIG = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}'


class Refusing:
    """A vLLM that raises at weights that it does not expect, or takes them."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error
        self.removed: list[int] = []

    def add_lora(self, adapter: Any) -> bool:
        if self._error is not None:
            raise self._error
        return True

    def remove_lora(self, number: int) -> None:
        self.removed.append(number)


def make_loader(vllm: Refusing, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    module = ModuleType("vllm.lora.request")
    module.LoRARequest = lambda name, number, path: SimpleNamespace(lora_int_id=number)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.lora.request", module)
    engine = make_engine(vllm, limit=1)
    engine._slots, engine._rows, engine._numbers, engine.deviations = {}, {}, 0, {}
    engine._fingerprint_prompt = ([1], [1, 2], [0, 1])
    return engine


@pytest.mark.parametrize("error", [RuntimeError("size"), ValueError("evil"), StopIteration(), KeyError("x")])
def test_weights_at_which_vllm_raises_are_refused_and_end_no_engine(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has the adapters of other units."""
    engine = make_loader(Refusing(error), monkeypatch)
    with pytest.raises(Conflict, match=f"got one that it refuses: {type(error).__name__}"):
        engine.load("s", CONFIG, b"", {})
    assert engine._slots == {}


@pytest.mark.parametrize("logits", [["0", "0"], ["x", "1"], ["1"], ["inf", "1"], None, 7])
def test_a_sealed_fingerprint_of_no_numbers_is_tampered_and_leaves_the_slot_empty(
    logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = Refusing(None)
    engine = make_loader(vllm, monkeypatch)
    sealed = {"prompt": [1], "tokens": [1, 2], "indices": [0, 1], "base_logits": logits, "adapter_logits": logits}
    with pytest.raises(Tampered, match="base_logits: expected 2 finite numbers"):
        engine.load("s", CONFIG, b"", sealed)
    assert (engine._slots, vllm.removed) == ({}, [1])
