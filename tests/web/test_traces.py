"""Traces: spans from one entry to another, names alone, and a collector that costs nothing but spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from appliance.config.settings import load_settings
from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import Entry
from appliance.errors import BadInput
from appliance.web.operations import traces
from appliance.web.operations.traces import MOST_OPEN, PATH, STAGES, Collector, Traces
from tests.kit.collector import Collected, collecting

NOTHING = "sha256:" + "0" * 64
CALLER = "0af7651916cd43dd8448eb211c80319c"


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class Log:
    """Entries passed to traces, a second apart."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self.now, self.index, self.kept = 0, 0, Kept()
        self.traces = Traces(exporter or self.kept, {"service.name": "appliance"}, lambda: self.now * 1_000_000_000)

    def tell(self, kind: str, *subjects: str, outcome: str = "success", **body: Any) -> None:
        self.now += 1
        self.index += 1
        entry = Entry.model_construct(
            actor="service", body=body, documents={}, index=self.index, outcome=outcome, prev=NOTHING, source="service",
            subjects=subjects, time="2026-11-26T00:00:00Z", type=kind, v=1,
        )  # fmt: skip
        self.traces.observe(entry, body)

    def spans(self) -> dict[str, ReadableSpan]:
        self.traces.close()
        return {span.name: span for span in self.kept.spans}


@pytest.fixture
def log() -> Log:
    return Log()


def test_every_stage_names_entries_that_exist() -> None:
    assert {name for stage in STAGES for name in stage.begins | stage.ends} <= set(EVENTS)


def test_an_answer_is_a_span_of_names_and_numbers_and_joins_its_callers_trace(log: Log) -> None:
    place = {"unit": "legal", "served_model": "labels", "adapter": "clauses@1"}
    log.tell("request.admitted", "request:r1", "unit:legal", request="r1", prompt="sealed", **place)
    headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01", "tracestate": "a=jane", "authorization": "Bearer x"}
    log.traces.join("r1", headers)
    log.now += 1
    log.traces.first("r1")
    log.tell(
        "request.finished", "request:r1", request="r1", prompt_tokens=7, completion_tokens=3, answer="text", **place
    )
    span = log.spans()["answer"]
    assert (span.start_time, span.end_time) == (1_000_000_000, 3_000_000_000)
    assert span.attributes == {
        "appliance.request": "r1",
        "appliance.unit": "legal",
        "appliance.served_model": "labels",
        "appliance.adapter": "clauses@1",
        "appliance.prompt_tokens": 7,
        "appliance.completion_tokens": 3,
        "appliance.entry.begin": 1,
        "appliance.entry.end": 2,
    }
    assert [(event.name, event.timestamp) for event in span.events] == [("first token", 2_000_000_000)]
    assert span.parent is not None and f"{span.parent.trace_id:032x}" == CALLER
    assert not span.parent.trace_state and not span.context.trace_state, "it is the caller's text"


def test_an_answer_without_a_caller_trace_begins_its_own(log: Log) -> None:
    for request, header in (("r1", None), ("r2", "00-zz-zz-01")):
        log.tell("request.admitted", f"request:{request}")
        log.traces.join(request, {} if header is None else {"traceparent": header})
        log.tell("request.finished", f"request:{request}")
    log.spans()
    assert [span.parent for span in log.kept.spans] == [None, None]


def test_a_callers_decision_not_to_trace_is_kept(log: Log) -> None:
    log.tell("request.admitted", "request:r1")
    log.traces.join("r1", {"traceparent": f"00-{CALLER}-b7ad6b7169203331-00"})
    log.tell("request.finished", "request:r1")
    assert log.spans() == {}


def test_a_runs_stages_are_parts_of_the_run(log: Log) -> None:
    log.tell("run.requested", "order:o", "run:x")
    log.tell("run.started", "run:x", run="x")
    log.tell("run.finished", "run:x", run="x")
    log.tell("adapter.sealed", "run:x", "adapter:clauses@1", adapter="clauses@1")
    spans = log.spans()
    whole = spans.pop("run")
    assert (whole.start_time, whole.end_time, whole.status.is_ok) == (1_000_000_000, 4_000_000_000, True)
    assert [(name, span.end_time - span.start_time) for name, span in spans.items()] == [
        ("wait", 1_000_000_000),
        ("train", 1_000_000_000),
        ("evaluate and seal", 1_000_000_000),
    ]
    assert all(span.parent == whole.context for span in spans.values())


def test_what_fails_has_its_code_and_no_message(log: Log) -> None:
    log.tell("run.requested", "run:x")
    log.tell("run.started", "run:x")
    log.tell("run.failed", "run:x", outcome="failure", code="out-of-memory", message="row 7: Alice owes")
    spans = log.spans()
    assert set(spans) == {"run", "wait", "train"}
    assert all(span.status.description == "out-of-memory" for name, span in spans.items() if name != "wait")
    assert "Alice" not in "".join(span.to_json() for span in spans.values())


def test_beyond_the_bound_new_stages_are_not_traced_and_the_old_ones_are(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_OPEN > 1
    monkeypatch.setattr(traces, "MOST_OPEN", 1)
    log.tell("request.admitted", "request:r1")
    log.tell("request.admitted", "request:r2")
    log.tell("request.finished", "request:r2")
    log.tell("request.finished", "request:r1")
    assert log.spans()["answer"].attributes == {
        "appliance.request": "r1",
        "appliance.entry.begin": 1,
        "appliance.entry.end": 4,
    }


@pytest.fixture
def collector() -> Iterator[Collected]:
    with collecting() as found:
        yield found


def test_spans_reach_the_named_collector_and_no_proxy(collector: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    log = Log(Collector(collector.address))
    log.tell("request.admitted", "request:r1", unit="legal")
    log.tell("request.finished", "request:r1", unit="legal")
    log.traces.close()
    ((path, data),) = collector.sent
    assert path == PATH
    (resource,) = ExportTraceServiceRequest.FromString(data).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["answer"]
    assert [(item.key, item.value.string_value) for item in resource.resource.attributes] == [
        ("service.name", "appliance")
    ]


@pytest.mark.parametrize("code", [302, 503])
def test_a_collector_that_refuses_loses_spans_and_is_told_of_once_a_minute(
    collector: Collected, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    collector.codes += [code] * 3
    times = iter([0.0, 0.0, 30.0, 61.0, 61.0])
    sender = Collector(collector.address, lambda: next(times))
    results = [sender.export([]) for _ in range(3)]
    assert set(results) == {SpanExportResult.FAILURE}
    assert [path for path, _ in collector.sent] == [PATH] * 3, "no redirect is followed"
    assert [f"HTTP {code}" in message for message in caplog.messages if "could not be sent" in message] == [True, True]


def test_a_collector_that_is_gone_loses_spans_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Collector("http://127.0.0.1:1"))
    log.tell("request.admitted", "request:r1")
    log.tell("request.finished", "request:r1")
    log.traces.close()
    assert " spans could not be sent and are lost" in caplog.text


Load = Callable[[str], str | None]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda value: load_settings(tmp_path, {"APPLIANCE_TRACES": value}).traces


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:4318", "http://localhost:4318", "http://[::1]:4318", "https://otel.bank.example:4318/"]
)
def test_a_collector_is_on_this_machine_or_behind_tls(load: Load, value: str) -> None:
    assert load(value) == value.removesuffix("/")


@pytest.mark.parametrize(
    "value",
    ["http://otel.bank.example:4318", "https://h/v1/traces", "127.0.0.1:4318", "https://u:p@h", "http://10.0.0.7:4318"],
)
def test_any_other_address_of_a_collector_is_refused(load: Load, value: str) -> None:
    with pytest.raises(BadInput, match="settings, APPLIANCE_TRACES: expected https://HOST:PORT"):
        load(value)
