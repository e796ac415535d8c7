"""OpenTelemetry traces: spans between durable ledger entries, for the site's collector.

A span has names and numbers of its entries, and no text. If the collector does not respond, only spans are lost.
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
"""Maximum open stages. Beyond that, new ones are not traced."""
_WARN_S = 60.0
"""Seconds between two warnings about lost spans."""
_FAILED = ("failure", "denied", "interrupted")
"""Outcomes of an entry that mark its span as failed."""


@dataclass(frozen=True)
class Stage:
    """A kind of span: from an entry of type `begins` to one of type `ends` about the same subject, such as `run:…`."""

    name: str
    subject: str
    begins: frozenset[str]
    ends: frozenset[str]
    within: str | None = None
    """Name of the stage that this one is a part of."""


def _stage(name: str, subject: str, begins: str, ends: str, within: str | None = None) -> Stage:
    return Stage(name, subject, frozenset(begins.split()), frozenset(ends.split()), within)


_OVER = "run.failed run.cancelled run.refused"
STAGES = (
    _stage("answer", "request", "request.admitted", "request.finished"),
    _stage("run", "run", "run.requested", f"adapter.sealed {_OVER}"),
    _stage("wait", "run", "run.requested", f"run.started {_OVER}", within="run"),
    _stage("train", "run", "run.started run.resumed", f"run.finished {_OVER}", within="run"),
    _stage("evaluate and seal", "run", "run.finished", f"adapter.sealed {_OVER}", within="run"),
    _stage(
        "import",
        "order",
        "import.requested",
        "base.imported dataset.imported validation-set.imported import.failed import.cancelled",
    ),
    _stage("replay", "order", "replay.requested", "replay.finished replay.failed"),
)
SHOWN = (
    *("unit", "served_model", "adapter", "run", "base", "dataset"),
    *("code", "finish_reason", "prompt_tokens", "completion_tokens"),
)
"""Fields of an entry's body that become attributes: names and numbers."""


@dataclass
class _Open:
    """A stage that has begun."""

    began_ns: int
    attributes: dict[str, str | int]
    span: Span | None
    first_ns: int | None = None
    asked: Mapping[str, str] | None = None
    """The request's `traceparent` header, for the stage of a response."""


class Traces:
    """The tracer, called with each durable entry from any thread.

    Stages that are open when the service ends are not sent.
    """

    def __init__(
        self, exporter: SpanExporter, attributes: Mapping[str, str], clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Create a tracer. `attributes` describe the resource, such as `service.name`."""
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], _Open] = {}
        # All values are explicit, so that environment variables for other programs do not redirect the spans.
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
        """End and begin the stages of a durable entry."""
        now = self._clock_ns()
        subjects = dict(subject.partition(":")[::2] for subject in entry.subjects)
        with self._lock:
            # Parts end before the stage that contains them, which is listed first.
            for stage in reversed(STAGES):
                if entry.type in stage.ends and stage.subject in subjects:
                    self._end(stage, subjects[stage.subject], entry, body, now)
            for stage in STAGES:
                if entry.type in stage.begins and stage.subject in subjects:
                    self._begin(stage, subjects[stage.subject], entry, body, now)

    def join(self, request: str, headers: Mapping[str, str]) -> None:
        """Make the response to this request part of its caller's trace, if the headers have a `traceparent`.

        Other headers, such as `tracestate`, may contain free text and are ignored.
        """
        with self._lock:
            opened = self._open.get(("answer", request))
            if opened is not None and "traceparent" in headers:
                opened.asked = {"traceparent": headers["traceparent"]}

    def first(self, request: str) -> None:
        """Note the time of the response's first token."""
        with self._lock:
            opened = self._open.get(("answer", request))
            if opened is not None:
                opened.first_ns = self._clock_ns()

    def close(self) -> None:
        """Send the waiting spans, for at most the duration of one attempt."""
        self._provider.force_flush(int(TIMEOUT_S * 1000))
        self._provider.shutdown()

    def _begin(self, stage: Stage, subject: str, entry: Entry, body: Mapping[str, Any], now: int) -> None:
        if len(self._open) >= MOST_OPEN:
            return
        opened = _Open(now, {f"appliance.{stage.subject}": subject, "appliance.entry.begin": entry.index}, None)
        opened.attributes.update(_attributes(body))
        if stage.name != "answer":  # the caller's trace is known only after the first entry
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
    """An exporter of OTLP over HTTP to one address.

    It does not follow redirects, and it ignores proxies and environment variables.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an exporter. `address` is the collector's, such as `http://127.0.0.1:4318`, without a path."""
        self._address = address
        self._clock = clock
        self._warned = -_WARN_S
        self._client = httpx.Client(
            timeout=TIMEOUT_S, trust_env=False, follow_redirects=False, verify=ssl.create_default_context()
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans to the collector. Spans that it does not accept are lost, with a warning in the log."""
        headers = {"Content-Type": "application/x-protobuf"}
        try:
            answer = self._client.post(
                f"{self._address}{PATH}", content=encode_spans(spans).SerializeToString(), headers=headers
            )
        except httpx.HTTPError as error:
            return self._lost(len(spans), str(error) or type(error).__name__)
        return SpanExportResult.SUCCESS if answer.is_success else self._lost(len(spans), f"HTTP {answer.status_code}")

    def shutdown(self) -> None:
        """Close the connection."""
        self._client.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True, because spans are sent by `export` without a queue."""
        return True

    def _lost(self, count: int, reason: str) -> SpanExportResult:
        if self._clock() - self._warned >= _WARN_S:
            self._warned = self._clock()
            log.warning("traces, %s: %d spans could not be sent and are lost: %s", self._address, count, reason)
        return SpanExportResult.FAILURE
