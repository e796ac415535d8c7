"""Requests to vLLM token by token: a label that is drawn, and the probability of each label."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.ml.inference.reading import PreparedPrompt
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.score import Choices, find_branches
from appliance.ml.model.base import LoadedBase
from appliance.ml.serving.engine import Done, RequestEvent
from appliance.ml.vllm.engine import VllmEngine

END = 1


class Asked(VllmEngine):
    """An engine whose vLLM gives these log-probabilities to every question, a question in each step."""

    def __init__(self, scores: dict[int, float]) -> None:
        chat = SimpleNamespace(stop_ids=lambda: frozenset({END}), decode=lambda ids: "".join(map(chr, ids)))
        self.base = cast(LoadedBase, SimpleNamespace(chat=chat, context_length=64))
        self._slots, self._rows, self._events, self._wanted = {"s": None}, {}, [], {}
        self._vllm = self
        self._told, self.asked = scores, list[str]()

    def _ask(self, name: str, slot: str | None, salt: str, tokens: Any, ids: Any) -> None:
        self._wanted[name] = list(ids)
        self.asked.append(name)

    def abort_request(self, names: list[str]) -> None: ...

    def step(self) -> list[Any]:
        """Of vLLM where it is called by the engine, else the engine's own."""
        events, self._events = self._events, []
        waiting, self.asked = self.asked, []
        logprobs = [{token: SimpleNamespace(logprob=score) for token, score in self._told.items()}]
        for name in waiting:
            output = SimpleNamespace(request_id=name, outputs=[SimpleNamespace(logprobs=logprobs)])
            events += self._handle_output(output)
        return events


def answer(engine: Asked, question: PreparedPrompt) -> list[RequestEvent]:
    engine.take("r", "s", question)
    events: list[RequestEvent] = []
    for _ in range(20):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError("it never ends")


def test_a_classification_with_one_label_is_sure_of_it_and_ends() -> None:
    """Nothing is asked about a label without another one, so nothing came to end the request."""
    question = PreparedPrompt(InferenceRequest((), 1, labels=("yes",)), [2], branches=find_branches([[65, END]]))
    events = answer(Asked({}), question)
    assert events == [RequestEvent("r", '{"yes": "1.000000000"}'), RequestEvent("r", Done("classified", 1, 0))]


@pytest.mark.parametrize("top_p, drawn", [(1.0, {"A", "B"}), (0.5, {"A"}), (0.0, {"A"})])
def test_a_label_is_drawn_from_the_smallest_set_that_reaches_top_p(top_p: float, drawn: set[str]) -> None:
    found = set()
    for seed in range(30):
        request = InferenceRequest((), 5, temperature=1.0, top_p=top_p, seed=seed, labels=("A", "B"))
        question = PreparedPrompt(request, [2], choices=Choices([[65, END], [66, END]]))
        events = answer(Asked({65: -0.5, 66: -0.9}), question)
        found.add("".join(event.content for event in events if isinstance(event.content, str)))
    assert found == drawn
