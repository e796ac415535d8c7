"""Numbers for operations, in Prometheus' form: counted from the ledger's own entries as they become durable, so that
they cannot say another thing than the ledger. By unit and adapter; never a text."""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.domain.core.entry import Entry
from appliance.errors import ApplianceError, NotAuthenticated
from appliance.web.operations.limits import Quotas
from appliance.workflows.core.context import Context

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Answered(NamedTuple):
    """Answers of one adapter for one task: given whole, and cut off or failed; tokens read and written."""

    task: str
    adapter: str
    whole: int
    broken: int
    tokens_read: int
    tokens_written: int


class Metrics:
    """One registry of its own: nothing of the process is in it that a reader of this file does not see."""

    def __init__(self, context: Context, quotas: Quotas | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self._registry = registry = CollectorRegistry()
        by = ("unit", "task", "adapter")
        self.requests = Counter("appliance_requests", "Answers that ended.", (*by, "outcome"), registry=registry)
        self.tokens = Counter("appliance_tokens", "Tokens read and written.", (*by, "kind"), registry=registry)
        self.not_read_again = Counter(
            "appliance_cached_tokens", "Tokens of prompts that were not read again.", by, registry=registry
        )
        self.seconds = Histogram(
            "appliance_request_seconds", "From admission to the end.", by, buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "appliance_first_token_seconds", "From asking to the first.", by, buckets=_SECONDS, registry=registry
        )
        self.refusals = Counter("appliance_refusals", "Requests refused.", ("unit", "code"), registry=registry)
        self.loads = Counter("appliance_loads", "Loads and unloads.", (*by, "what"), registry=registry)
        self.entries = Counter("appliance_entries", "Entries appended.", ("type", "outcome"), registry=registry)
        registry.register(_Now(context, quotas))

    def observe(self, entry: Entry, body: Mapping[str, Any]) -> float | None:
        """Told of each durable entry; how long the request took that it ends."""
        self.entries.labels(entry.type, entry.outcome).inc()
        match entry.type:
            case "request.admitted":
                with self._lock:
                    self._begun[body["request"]] = self._clock()
            case "request.finished":
                return self._finished(entry.outcome, body)
            case "request.refused" if entry.source != "service":
                # What is appended as a count was counted when it was refused.
                self.refusals.labels(body["unit"], body["code"]).inc(body["count"])
            case "adapter.loaded" | "adapter.unloaded" | "admission.refused":
                self.loads.labels(*_place(body), entry.type.partition(".")[2]).inc()
        return None

    def _finished(self, outcome: str, body: Mapping[str, Any]) -> float | None:
        place = _place(body)
        self.requests.labels(*place, outcome).inc()
        for kind in ("prompt", "completion"):
            self.tokens.labels(*place, kind).inc(body[f"{kind}_tokens"])
        with self._lock:
            begun = self._begun.pop(body["request"], None)
        if begun is None:
            return None
        seconds = self._clock() - begun
        self.seconds.labels(*place).observe(seconds)
        return seconds

    def refused(self, unit: str | None, error: ApplianceError) -> None:
        """What the listener itself refused, at once; of unauthenticated requests only how many."""
        code = NotAuthenticated.code if isinstance(error, NotAuthenticated) else error.code
        self.refusals.labels(unit or "", code).inc()

    def answered(self, unit: str) -> list[Answered]:
        """What this service has answered the unit since its start, by task and adapter."""
        found: dict[tuple[str, str], Tally[str]] = {}
        for counter, name in ((self.requests, "outcome"), (self.tokens, "kind")):
            for sample in (one for metric in counter.collect() for one in metric.samples):
                labels = sample.labels
                if labels["unit"] == unit and sample.name.endswith("_total"):
                    row = found.setdefault((labels["task"], labels["adapter"]), Tally())
                    row[labels[name]] += int(sample.value)
        return [
            Answered(
                task, adapter, row["success"], row["failure"] + row["interrupted"], row["prompt"], row["completion"]
            )
            for (task, adapter), row in sorted(found.items())
        ]

    def encode(self) -> bytes:
        return generate_latest(self._registry)


def _place(body: Mapping[str, Any]) -> tuple[str, str, str]:
    return body["unit"], body["task"], body["adapter"] or ""


class _Now(Collector):
    """What stands at the moment of the question."""

    def __init__(self, context: Context, quotas: Quotas | None) -> None:
        self._context = context
        self._quotas = quotas

    def collect(self) -> Iterator[Metric]:
        state = self._context.ledger.state
        slots = GaugeMetricFamily("appliance_slots", "Adapters that answer.", labels=("unit", "task", "adapter"))
        for slot in state.slots.values():
            slots.add_metric((slot.unit, slot.task, slot.adapter), 0 if slot.loaded is None else 1)
        yield slots
        running = GaugeMetricFamily("appliance_requests_running", "Requests at the units' port.", labels=("unit",))
        for unit, count in ({} if self._quotas is None else self._quotas.running_by_unit()).items():
            running.add_metric((unit,), count)
        yield running
        yield GaugeMetricFamily("appliance_requests_open", "Admitted and not ended.", value=len(state.requests))
        queued = sum(run.status == "queued" for run in state.runs.values())
        yield GaugeMetricFamily("appliance_runs_queued", "Runs that wait.", value=queued)
        yield GaugeMetricFamily("appliance_ledger_size", "Entries in the ledger.", value=state.size)
        yield GaugeMetricFamily(
            "appliance_ledger_lost", "What witnesses saw and is lost.", value=len(self._context.missing_from_log)
        )
