"""While one question is waited for, what vLLM gives others in the same step is told them too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from appliance.ml.inference.text import Text
from appliance.ml.model.base import Base
from appliance.ml.serving.engine import Event
from appliance.ml.vllm.engine import Engine, _Row


class Stepped:
    """A vLLM whose one step ends the question first, and gives another request a token after it."""

    def step(self) -> list[Any]:
        drawn = SimpleNamespace(token_ids=[7])
        return [
            SimpleNamespace(request_id="probe", finished=True, outputs=[]),
            SimpleNamespace(request_id="other#", finished=False, outputs=[drawn]),
        ]


def test_a_token_that_comes_with_the_answer_that_is_waited_for_is_not_lost() -> None:
    engine = object.__new__(Engine)
    engine.base = cast(Base, SimpleNamespace(chat=SimpleNamespace(stop_ids=lambda: frozenset({1}))))
    engine._vllm, engine._events, engine._wanted = Stepped(), [], {}
    question = cast(Any, SimpleNamespace(prompt=[2]))
    engine._rows = {"other": _Row("other", "s", question, Text(lambda ids: "x" * len(ids), ()), limit=9)}
    assert engine._wait_for("probe").request_id == "probe"
    assert engine._events == [Event("other", "x")]
    assert engine._rows["other"].completion_tokens == 1
