"""What answers a unit, without a model: the log's own slot, and an engine that says what a test wants."""

from __future__ import annotations

import json
from typing import Any, cast

from appliance.domain.core.records.serving import release_key
from appliance.errors import NotFound
from appliance.web.console.units.ask import Asks
from appliance.web.operations.limits import Limits, Quotas
from appliance.web.operations.metrics import Metrics
from appliance.web.units.asking import Asking
from appliance.workflows.core.context import Context
from appliance.workflows.serving.answering import Loaded
from appliance.workflows.serving.engine import Engine, Hear
from appliance.workflows.serving.serve import Serving


class SayingEngine:
    """Says `text` a word at a time, or the share of each label; `asked` are the parameters that it was given."""

    def __init__(self) -> None:
        self.text = "The parties agree."
        self.asked: list[dict[str, Any]] = []

    def ask(self, request: str, slot: str, kind: str, parameters: dict[str, Any], hear: Hear) -> None:
        self.asked.append({"kind": kind, **parameters})
        words = [self.text] if kind == "classify" else [f"{word} " for word in self.text.split(" ")]
        if kind == "classify":
            labels = parameters["labels"]
            words = [json.dumps({label: f"{1 / 2 ** (place + 1):.6f}" for place, label in enumerate(labels)})]
        for word in words:
            hear({"frame": "token", "text": word})
        ends = {"finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": len(words)}
        hear({"frame": "done", **ends})

    def leave(self, request: str, *, ended: bool) -> None:
        return

    def cut(self, request: str, why: str) -> None:
        return


class Answers:
    """As wiring puts it together, but for the engine. `engine` and `quotas` are a test's to change."""

    def __init__(self, context: Context, limits: Limits | None = None) -> None:
        self.engine = SayingEngine()
        serving = Serving(context)
        cast(Any, serving)._slots = self
        self._context = context
        self.quotas = Quotas({} if limits is None else {"": limits}, 128, lambda: 0.0)
        metrics = Metrics(context, self.quotas)
        told = context.appended
        context.appended = lambda entry, body: (told(entry, body), metrics.observe(entry, vars(body)))[0]
        context.usage = lambda unit: (self.quotas.usage(unit), metrics.answered(unit))
        self.asks = Asks(Asking(serving, metrics), self.quotas)

    def find(self, unit: str, task: str) -> Loaded:
        row = self._context.ledger.state.slots.get(release_key(unit, task))
        if row is None:
            raise NotFound(f"model: expected one released to {unit}, got {task!r}", code="model-not-found")
        return Loaded(row, "slot", cast(Engine, self.engine), self._context.clock)
