"""Metrics in the Prometheus format: counts by unit and adapter, the alarms, and the values that they compare.

Counts are of ledger entries as these become durable, so they agree with the ledger. Metrics contain no text. None of
them needs a query to the database, so that they can be read while it does not respond.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.domain.core.entry import Entry
from appliance.domain.core.names import Value
from appliance.domain.queries.alarms import CODES, find_alarms
from appliance.domain.queries.measures import Measures, seconds_between
from appliance.errors import ApplianceError, NotAuthenticated
from appliance.formats.core.timestamp import parse_time
from appliance.web.operations.limits import Quotas
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.measures import measure

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Bounds of the histograms, in seconds."""


class ResponseCounts(Value):
    """Counts for one adapter and served model: complete and incomplete responses, tokens read and written."""

    served_model: str
    adapter: str
    complete: int
    incomplete: int
    tokens_read: int
    tokens_written: int


class Metrics:
    """The metrics of this service and its process, in a registry of their own."""

    def __init__(
        self, context: LedgerContext, quotas: Quotas | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self._registry = registry = CollectorRegistry()
        by = ("unit", "served_model", "adapter")
        self.requests = Counter("appliance_requests", "Responses that ended.", (*by, "outcome"), registry=registry)
        self.tokens = Counter("appliance_tokens", "Tokens read and written.", (*by, "kind"), registry=registry)
        self.cached = Counter(
            "appliance_cached_tokens", "Tokens of prompts that were not read again.", by, registry=registry
        )
        self.seconds = Histogram(
            "appliance_request_seconds", "From admission to the end.", by, buckets=_SECONDS, registry=registry
        )
        self.first = Histogram(
            "appliance_first_token_seconds",
            "From the request to the first token.",
            by,
            buckets=_SECONDS,
            registry=registry,
        )
        self.refusals = Counter("appliance_refusals", "Requests refused.", ("unit", "code"), registry=registry)
        self.loads = Counter("appliance_loads", "Loads and unloads.", (*by, "what"), registry=registry)
        self.entries = Counter("appliance_entries", "Entries appended.", ("type", "outcome"), registry=registry)
        registry.register(_StateCollector(context, quotas))
        registry.register(_MeasureCollector(context))
        ProcessCollector(registry=registry)

    def observe(self, entry: Entry, body: Mapping[str, Any]) -> float | None:
        """Count a durable entry. Return the seconds of the request that it ends, if any."""
        self.entries.labels(entry.type, entry.outcome).inc()
        match entry.type:
            case "request.admitted":
                with self._lock:
                    self._begun[body["request"]] = self._clock()
            case "request.finished":
                return self._finished(entry.outcome, body)
            case "adapter.loaded" | "adapter.unloaded" | "admission.refused":
                self.loads.labels(*_labels_of(body), entry.type.partition(".")[2]).inc()
        return None

    def _finished(self, outcome: str, body: Mapping[str, Any]) -> float | None:
        labels = _labels_of(body)
        self.requests.labels(*labels, outcome).inc()
        for kind in ("prompt", "completion"):
            self.tokens.labels(*labels, kind).inc(body[f"{kind}_tokens"])
        with self._lock:
            began = self._begun.pop(body["request"], None)
        if began is None:
            return None
        seconds = self._clock() - began
        self.seconds.labels(*labels).observe(seconds)
        return seconds

    def refused(self, unit: str | None, error: ApplianceError) -> None:
        """Count a refused request when it is refused. Its entry follows within a minute.

        Unauthenticated requests are counted without a unit.
        """
        code = NotAuthenticated.code if isinstance(error, NotAuthenticated) else error.code
        self.refusals.labels(unit or "", code).inc()

    def count_responses(self, unit: str) -> list[ResponseCounts]:
        """Return the counts of responses to the unit since the service's start, by served model and adapter."""
        counts: dict[tuple[str, str], Tally[str]] = {}
        for counter, name in ((self.requests, "outcome"), (self.tokens, "kind")):
            for sample in (one for metric in counter.collect() for one in metric.samples):
                labels = sample.labels
                if labels["unit"] == unit and sample.name.endswith("_total"):
                    row = counts.setdefault((labels["served_model"], labels["adapter"]), Tally())
                    row[labels[name]] += int(sample.value)
        return [
            ResponseCounts(
                served_model=served_model,
                adapter=adapter,
                complete=row["success"],
                incomplete=row["failure"] + row["interrupted"],
                tokens_read=row["prompt"],
                tokens_written=row["completion"],
            )
            for (served_model, adapter), row in sorted(counts.items())
        ]

    def encode(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self._registry)


def _labels_of(body: Mapping[str, Any]) -> tuple[str, str, str]:
    return body["unit"], body["served_model"], body["adapter"] or ""


class _StateCollector(Collector):
    """The metrics that are computed from the state when they are requested."""

    def __init__(self, context: LedgerContext, quotas: Quotas | None) -> None:
        self._context = context
        self._quotas = quotas

    def collect(self) -> Iterator[Metric]:
        state = self._context.ledger.state
        slots = GaugeMetricFamily("appliance_slots", "Adapters that serve.", labels=("unit", "served_model", "adapter"))
        for slot in state.slots.values():
            slots.add_metric((slot.unit, slot.served_model, slot.adapter), 0 if slot.loaded is None else 1)
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


class _MeasureCollector(Collector):
    """The alarms and the values that they compare, measured when they are requested."""

    def __init__(self, context: LedgerContext) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        context = self._context
        measures = measure(context)
        on = {alarm.code for alarm in find_alarms(measures)}
        alarms = GaugeMetricFamily("appliance_alarm", "1 while the alarm is on.", labels=("code",))
        for code in CODES:
            alarms.add_metric((code,), int(code in on))
        yield alarms
        build = GaugeMetricFamily("appliance_build_info", "The build, as a label.", labels=("version",))
        build.add_metric((context.code.version,), 1)
        yield build
        ends = GaugeMetricFamily(
            "appliance_certificate_end_timestamp_seconds", "End of a certificate in use.", labels=("file",)
        )
        for one in measures.certificates:
            ends.add_metric((one.subject,), parse_time(one.until).timestamp())
        yield ends
        witnesses = GaugeMetricFamily("appliance_witness_age_seconds", "Age of the cosignature.", labels=("witness",))
        for witness in measures.witnesses:
            if witness.age_s is not None:
                witnesses.add_metric((witness.name,), witness.age_s)
        yield witnesses
        for name, meaning, value in self._list_values(measures):
            if value is not None:
                yield GaugeMetricFamily(f"appliance_{name}", meaning, value=value)

    def _list_values(self, measures: Measures) -> Iterator[tuple[str, str, float | None]]:
        """Yield the name, the meaning and the value of each metric without labels; None was not measured."""
        growth, disk = measures.growth, measures.disk
        yield "witnesses_fresh", "Witnesses with a fresh cosignature.", measures.fresh_witnesses
        yield "last_entry_age_seconds", "Since the last entry and checkpoint.", measures.entry_age_s
        yield "snapshot_age_seconds", "Since the last seal of the state.", self._context.ledger.snapshot_age_s
        yield "database_contact_age_seconds", "Since the last read of the database.", measures.contact_age_s
        newest = None if measures.backups is None else measures.backups.newest
        age = None if newest is None else seconds_between(newest, measures.now)
        yield "backup_age_seconds", "Age of the newest valid backup.", age
        yield "database_bytes", "Size of the database.", self._context.database_measures.bytes or None
        yield "log_day_entries", "Entries of the last day.", None if growth is None else growth.entries
        yield "log_day_bytes", "Their bytes in the database.", None if growth is None else growth.bytes
        if disk is not None and not disk.error:
            yield "disk_bytes", "Size of the home's disk.", disk.total
            yield "disk_free_bytes", "Its free bytes.", disk.free
            yield "disk_needed_bytes", "Free bytes that the ledger needs.", disk.needed
