"""Traces for operations, by OpenTelemetry: spans from one durable ledger entry to another, for the site's collector.

A span has names and numbers of its entries, never a text. If the collector does not answer, spans are lost and nothing
else.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from appliance.domain.core.entry import Entry

log = logging.getLogger("appliance.traces")

PATH = "/v1/traces"
TIMEOUT_S = 5.0
QUEUE_SPANS, BATCH_SPANS, PAUSE_MS = 8_192, 512, 2_000
MOST_OPEN = 20_000
"""Stages under way; beyond that new ones are not traced."""
_WARN_S = 60.0
_FAILED = ("failure", "denied", "interrupted")


@dataclass(frozen=True)
class Stage:
    """A span from one of the entries `begins` to one of `ends` about the same subject, such as `run:…`."""

    name: str
    subject: str
    begins: frozenset[str]
    ends: frozenset[str]
    within: str | None = None
    """The stage that it is a part of."""


def _stage(name: str, subject: str, begins: str, ends: str, within: str | None = None) -> Stage:
    return Stage(name, subject, frozenset(begins.split()), frozenset(ends.split()), within)


_OVER = "run.failed run.cancelled run.refused"
STAGES = (
    _stage("answer", "request", "request.admitted", "request.finished"),
    _stage("run", "run", "run.requested", f"adapter.sealed {_OVER}"),
    _stage("wait", "run", "run.requested", f"run.started {_OVER}", within="run"),
    _stage("train", "run", "run.started run.resumed", f"run.finished {_OVER}", within="run"),
    _stage("judge and seal", "run", "run.finished", f"adapter.sealed {_OVER}", within="run"),
    _stage(
        "import",
        "order",
        "import.requested",
        "base.imported dataset.imported validation-set.imported import.failed import.cancelled",
    ),
    _stage("replay", "order", "replay.requested", "replay.finished replay.failed"),
)
SHOWN = (
    *("unit", "task", "adapter", "run", "base", "dataset"),
    *("code", "finish_reason", "prompt_tokens", "completion_tokens"),
)
"""Members of an entry's body that become attributes: names and numbers."""


@dataclass
class _Open:
    began_ns: int
    attributes: dict[str, str | int]
    span: Span | None
    first_ns: int | None = None
    asked: Mapping[str, str] | None = None
    """The W3C headers of the request that an answer belongs to."""


class Traces:
    """Told of each durable entry, in any thread. A stage that is open when the service ends is not sent."""

    def __init__(
        self, exporter: SpanExporter, attributes: Mapping[str, str], clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`attributes`: of the resource, such as `service.name`."""
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], _Open] = {}
        # Every value is given here: what a site sets for other programs does not send our spans elsewhere.
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource(dict(attributes)),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attributes=32, max_events=8, max_attribute_length=256),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=QUEUE_SPANS,
                schedule_delay_millis=PAUSE_MS,
                max_export_batch_size=BATCH_SPANS,
                export_timeout_millis=TIMEOUT_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("appliance")

    def observe(self, entry: Entry, body: Mapping[str, Any]) -> None:
        now = self._clock_ns()
        subjects = dict(subject.partition(":")[::2] for subject in entry.subjects)
        with self._lock:
            # Parts end before the whole, which is listed before them.
            for stage in reversed(STAGES):
                if entry.type in stage.ends and stage.subject in subjects:
                    self._end(stage, subjects[stage.subject], entry, body, now)
            for stage in STAGES:
                if entry.type in stage.begins and stage.subject in subjects:
                    self._begin(stage, subjects[stage.subject], entry, body, now)

    def join(self, request: str, headers: Mapping[str, str]) -> None:
        """The answer to this request belongs to its caller's own trace, if the headers have a `traceparent`."""
        with self._lock:
            opened = self._open.get(("answer", request))
            if opened is not None and "traceparent" in headers:
                opened.asked = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}

    def first(self, request: str) -> None:
        """The answer's first token has come."""
        with self._lock:
            opened = self._open.get(("answer", request))
            if opened is not None:
                opened.first_ns = self._clock_ns()

    def close(self) -> None:
        """Sends what waits, for no longer than one attempt takes."""
        self._provider.force_flush(int(TIMEOUT_S * 1000))
        self._provider.shutdown()

    def _begin(self, stage: Stage, subject: str, entry: Entry, body: Mapping[str, Any], now: int) -> None:
        if len(self._open) >= MOST_OPEN:
            return
        opened = _Open(now, {f"appliance.{stage.subject}": subject, "appliance.entry.begin": entry.index}, None)
        opened.attributes.update(_attributes(body))
        if stage.name != "answer":  # whose trace it joins is known only after its first entry
            opened.span = self._start(stage, subject, opened)
        self._open[stage.name, subject] = opened

    def _end(self, stage: Stage, subject: str, entry: Entry, body: Mapping[str, Any], now: int) -> None:
        opened = self._open.pop((stage.name, subject), None)
        if opened is None:
            return
        span = opened.span or self._start(stage, subject, opened)
        span.set_attributes({**_attributes(body), "appliance.entry.end": entry.index})
        if opened.first_ns is not None:
            span.add_event("first token", timestamp=opened.first_ns)
        if entry.outcome in _FAILED:
            span.set_status(Status(StatusCode.ERROR, str(body.get("code") or entry.outcome)))
        span.end(now)

    def _start(self, stage: Stage, subject: str, opened: _Open) -> Span:
        context = None
        if stage.within is not None:
            whole = self._open.get((stage.within, subject))
            context = None if whole is None or whole.span is None else trace.set_span_in_context(whole.span)
        elif opened.asked is not None:
            context = TraceContextTextMapPropagator().extract(opened.asked)
        return self._tracer.start_span(
            stage.name,
            context=context or trace.set_span_in_context(trace.INVALID_SPAN),
            kind=SpanKind.SERVER if stage.name == "answer" else SpanKind.INTERNAL,
            attributes=opened.attributes,
            start_time=opened.began_ns,
        )


def _attributes(body: Mapping[str, Any]) -> dict[str, str | int]:
    return {f"appliance.{name}": body[name] for name in SHOWN if isinstance(body.get(name), str | int)}


class Collector(SpanExporter):
    """OTLP over HTTP to one address. It follows no redirect, no proxy and no variable of the environment."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`address`: the collector's, such as `http://127.0.0.1:4318`, without a path."""
        self._address = address
        self._clock = clock
        self._warned = -_WARN_S
        self._client = httpx.Client(
            timeout=TIMEOUT_S, trust_env=False, follow_redirects=False, verify=ssl.create_default_context()
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        headers = {"Content-Type": "application/x-protobuf"}
        try:
            answer = self._client.post(
                f"{self._address}{PATH}", content=encode_spans(spans).SerializeToString(), headers=headers
            )
        except httpx.HTTPError as error:
            return self._lost(len(spans), str(error) or type(error).__name__)
        return SpanExportResult.SUCCESS if answer.is_success else self._lost(len(spans), f"HTTP {answer.status_code}")

    def shutdown(self) -> None:
        self._client.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def _lost(self, count: int, reason: str) -> SpanExportResult:
        if self._clock() - self._warned >= _WARN_S:
            self._warned = self._clock()
            log.warning("traces, %s: %d spans could not be sent and are lost: %s", self._address, count, reason)
        return SpanExportResult.FAILURE
