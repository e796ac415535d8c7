"""Serving without a model: the log's own slot, and an engine that returns what a test sets."""

from __future__ import annotations

import json
from typing import Any, cast

from appliance.domain.core.records.serving import release_key
from appliance.errors import NotFound
from appliance.web.console.pages import make_pages
from appliance.web.console.units.ask import Playground
from appliance.web.console.units.requests import measure
from appliance.web.operations.limits import Quotas, UnitLimits
from appliance.web.operations.metrics import Metrics
from appliance.web.units.middleware import RequestRunner
from appliance.workflows.core.context import Context
from appliance.workflows.serving.answering import LoadedSlot
from appliance.workflows.serving.engine import EngineProcess, TakeFrame
from appliance.workflows.serving.places import SharedPlaces
from appliance.workflows.serving.serve import ServingWorkflow


class SayingEngine:
    """Return `text` a word at a time, or the share of each label; `asked` has the parameters of the requests."""

    def __init__(self) -> None:
        self.text = "The parties agree."
        self.asked: list[dict[str, Any]] = []

    def ask(self, request: str, slot: str, kind: str, parameters: dict[str, Any], take_frame: TakeFrame) -> None:
        self.asked.append({"kind": kind, **parameters})
        words = [self.text] if kind == "classify" else [f"{word} " for word in self.text.split(" ")]
        if kind == "classify":
            labels = parameters["labels"]
            words = [json.dumps({label: f"{1 / 2 ** (place + 1):.6f}" for place, label in enumerate(labels)})]
        for word in words:
            take_frame({"frame": "token", "text": word})
        ends = {"finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": len(words)}
        take_frame({"frame": "done", **ends})

    def leave(self, request: str, *, ended: bool) -> None:
        return

    def cut(self, request: str, why: str) -> None:
        return


class Answers:
    """As wiring puts it together, but for the engine. `engine` and `quotas` are a test's to change."""

    def __init__(self, context: Context, limits: UnitLimits | None = None) -> None:
        self.engine = SayingEngine()
        self.serving = serving = ServingWorkflow(context)
        cast(Any, serving)._slots = self
        self._context = context
        self.quotas = Quotas({} if limits is None else {"": limits}, SharedPlaces("API", 128, lambda: 1), lambda: 0.0)
        metrics = Metrics(context, self.quotas)
        context.appended.connect(lambda entry, body: metrics.observe(entry, vars(body)))
        self.pages = make_pages(lambda unit: measure(self.quotas, metrics, unit), tuple)
        self.asks = Playground(RequestRunner(serving, metrics), self.quotas)

    def find(self, unit: str, served_model: str) -> LoadedSlot:
        row = self._context.ledger.state.slots.get(release_key(unit, served_model))
        if row is None:
            raise NotFound(f"model: expected one released to {unit}, got {served_model!r}", code="model-not-found")
        return LoadedSlot(row, "slot", cast(EngineProcess, self.engine), self._context.clock)
