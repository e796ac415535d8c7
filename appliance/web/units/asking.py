"""An answer is asked for and gathered: for the units' door, and for a unit's person at the console."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.web.operations.limits import Place
from appliance.web.operations.metrics import Metrics
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest, CompletionRequest
from appliance.workflows.governance.callers import Caller
from appliance.workflows.serving.answering import Answer
from appliance.workflows.serving.serve import Serving

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces

Piece = dict[str, Any]
"""A frame of an answer's text, or of the calls in it."""
AnyRequest = ChatRequest | CompletionRequest | ClassifyRequest


@dataclass(frozen=True)
class Asker:
    """Who asks, and the place that the request holds among those of the unit. `headers`: they may name a trace."""

    caller: Caller
    place: Place
    source: str
    headers: Mapping[str, str]


class Asking:
    """Its methods are called in threads."""

    def __init__(self, serving: Serving, metrics: Metrics, traces: Traces | None = None) -> None:
        self._serving, self._metrics, self._traces = serving, metrics, traces

    def ask(self, kind: str, body: AnyRequest, asker: Asker) -> Answer:
        caller, begun = asker.caller, time.monotonic()
        answer = self._serving.answer(caller, body.model, kind, body.parameters(), asker.source)
        seconds, traces = self._metrics.first.labels(caller.unit, body.model, answer.adapter), self._traces

        def first() -> None:
            seconds.observe(time.monotonic() - begun)
            if traces is not None:
                traces.first(answer.request)

        answer.when_first(first)
        reused = self._metrics.not_read_again.labels(caller.unit, body.model, answer.adapter)
        answer.when_done(lambda last: reused.inc(last.get("cached_tokens") or 0))
        if traces is not None:
            traces.join(answer.request, asker.headers)
        return answer

    def gather(self, kind: str, body: AnyRequest, asker: Asker) -> tuple[Answer, list[Piece], dict[str, Any]]:
        """One thread from the admission to the end, so that no other thread has to wake between them; the answer, its
        pieces, and the frame that ended it."""
        answer = self.ask(kind, body, asker)
        pieces: list[Piece] = []
        done: dict[str, Any] = {}
        try:
            for frame in answer:
                if frame["frame"] == "done":
                    done = frame
                else:
                    pieces.append(frame)
        finally:
            asker.place.spend_frame(done, len(pieces))
        return answer, pieces, done


def text_of(pieces: Iterable[Piece]) -> str:
    """What an answer says; calls of tools are no text."""
    return "".join(piece["text"] for piece in pieces if "calls" not in piece)


def read_shares(text: str) -> dict[str, float]:
    """The probability of each label, of the text that a classification commits to."""
    return {label: float(share) for label, share in json.loads(text).items()}
