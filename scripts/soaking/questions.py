"""The questions of the units. Each question has one answer for each adapter: all randomness is fixed by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LABELS = ["payment", "secrecy", "ending"]


@dataclass(frozen=True)
class Question:
    """`path`: the path it is asked at; `body`: what the unit's client sends beside the model's name."""

    kind: Literal["generate", "classify"]
    path: str
    body: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """The same question as the engine is asked it."""
        return {"labels": [], "stop": [], "temperature": 0.0, "seed": 0, **self.body}


def _chat(text: str, tokens: int, **more: Any) -> Question:
    messages = [{"role": "user", "content": text}]
    return Question("generate", "/v1/chat/completions", {"messages": messages, "max_tokens": tokens, **more})


QUESTIONS = (
    _chat("the fee is due", 12),
    _chat("a secret " * 6, 10, temperature=1.3, seed=11),
    _chat("close", 8, temperature=0.8, seed=5),
    _chat("pay and price and invoice, then end and cancel " * 2, 16),
    Question("generate", "/v1/completions", {"prompt": "the parties", "max_tokens": 12, "temperature": 1.0, "seed": 3}),
    Question("generate", "/v1/completions", {"prompt": "disclose", "max_tokens": 6}),
    Question(
        "classify", "/v1/classify", {"messages": [{"role": "user", "content": "invoice and fee"}], "labels": LABELS}
    ),
    _chat("tell all of it", 80, temperature=2.0, seed=1),
    _chat("go on", 80, temperature=2.0, seed=2),
)
SHORT = tuple(question for question in QUESTIONS if question.body.get("max_tokens", 0) <= 16)
"""For vLLM, a step of which costs several times as much."""
