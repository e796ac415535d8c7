"""Free text that somebody sends to any listener is found only in the fields that ledger.md lists as clear."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.testclient import TestClient

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.credentials import UnitToken, encode_credential, encode_token
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import Order, encode_order
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope, sign_envelope
from appliance.web.operations.health import MAX_LINES, OperationsTokens, Readiness, operations_app, read_feed
from appliance.web.operations.metrics import Metrics
from appliance.web.operations.traces import Traces
from appliance.web.people.api import people_app
from appliance.web.units.openai import units_app
from appliance.wiring.serving import observe
from appliance.workflows.core import context as workflow_context
from appliance.workflows.governance import beat
from appliance.workflows.queries.log import export
from scripts.kit.log_builder import ORIGIN
from tests.domain.actions.test_pages import CLEAR
from tests.kit.console import Console, console

MARKER = "Jane Doe, HIV positive 4f1c"
PEOPLE = ("anna", "rita", "olga", "otto", "legal")
DIGEST = digest_bytes(b"nothing")
CLEAR_IN_ORDERS = {field for where, field in CLEAR if where == "orders"}


class Spans(SpanExporter):
    """Keeps the text of all spans."""

    def __init__(self) -> None:
        self.text = ""

    def export(self, spans: Any) -> SpanExportResult:
        self.text += "".join(span.to_json() for span in spans)
        return SpanExportResult.SUCCESS


class Listeners:
    """All apps of a service in this process, and everything that they write."""

    def __init__(self, desk: Console) -> None:
        context, self.desk, self.spans = desk.context, desk, Spans()
        quotas, self.metrics = desk.answers.quotas, Metrics(desk.context, desk.answers.quotas)
        self.traces = Traces(self.spans, {"service.name": "appliance"})
        context.appended.connect(partial(observe, self.metrics, desk.changes, self.traces))
        desk.authenticator.refused.connect(self.metrics.refused)
        app = units_app(desk.answers.serving, desk.authenticator, quotas, self.metrics, self.traces)
        self.people_app = people_app(context, desk.authenticator)
        self.units = TestClient(app, raise_server_exceptions=False)
        self.people = TestClient(self.people_app, raise_server_exceptions=False)
        self.operations = TestClient(
            operations_app(
                Readiness(context), self.metrics, partial(read_feed, context), OperationsTokens(b"token", b"feed")
            )
        )

    def record(self) -> None:
        """Append the counts, as the service does each minute."""
        with self.desk.authenticator.counted() as refusals:
            beat(self.desk.context, refusals)


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Listeners]:
    with console("serving", tmp_path / "home") as desk:
        yield Listeners(desk)


def find_text(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names of the fields around each text that has the marker, from the outermost."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from find_text(name, path)
            yield from find_text(one, (*path, name))
    elif isinstance(value, list):
        for one in value:
            yield from find_text(one, path)
    elif isinstance(value, str) and MARKER in value:
        yield path


def find_in_orders(desk: Console) -> set[tuple[str, ...]]:
    """Return where orders have the marker, after a check that nothing else in log, export and database has it."""
    found, context = set[tuple[str, ...]](), desk.context
    for index in range(context.ledger.state.size):
        assert not list(find_text(json.loads(context.ledger.entry_bytes(index)))), index
        for role, data in context.ledger.documents_of(index).items():
            if role in ("order", "countersigned"):
                found |= set(find_text(json.loads(parse_envelope(data).payload)))
            else:
                assert MARKER.encode() not in data, (index, role)
    databases = list(desk.site.home.glob("ledger.db*"))
    assert databases
    for whole in (b"".join(export(context)), *(path.read_bytes() for path in databases)):
        assert MARKER.encode() not in whole
    return found


def send_to_people(listeners: Listeners) -> int:
    sent = 0
    for name in PEOPLE:
        head = {"Authorization": f"Bearer {listeners.desk.token(name)}", "User-Agent": MARKER, "X-More": MARKER}
        for route in _find_routes(listeners.people_app.router):
            if route.path.endswith(("own", "links")):
                continue
            path = re.sub(r"\{[^}]*\}", quote(MARKER), route.path)
            query = {one.alias: MARKER for one in route.dependant.query_params}
            body = None if route.body_field is None else dict.fromkeys(_names(route), MARKER)
            more = {**(body or {}), MARKER: MARKER}
            for method in route.methods or ():
                listeners.people.request(method, path, params=query, json=body, headers=head)
                listeners.people.request(method, path, params=query, json=more, headers=head)
                listeners.people.request(method, path, content=MARKER.encode(), headers=head)
                sent += 3
    return sent


def _find_routes(router: Any) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _find_routes(route.original_router)


def _names(route: APIRoute) -> list[str]:
    annotation = route.body_field.field_info.annotation if route.body_field else None
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def sample(annotation: Any, metadata: tuple[Any, ...], now: str) -> Any:
    """Return a value of this type."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return sample(inner, (*metadata, *more), now)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {
            name: sample(info.annotation, tuple(info.metadata), now) for name, info in annotation.model_fields.items()
        }
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation)
    texts = (
        "labels",
        "clauses@1",
        DIGEST,
        f"hmac-{DIGEST}",
        now,
        "r-000001",
        "0" * 32,
        "AAAA",
        "1.0",
        "auditor",
        "0.5",
        "https://login.bank.example",
    )
    singles = (*texts, "adapter:clauses@1", "mit", 1, 20, 100, True, None)
    inner = [one for one in get_args(annotation) if one is not Ellipsis]
    lists = [[sample(one, (), now)] for one in inner[:1]] + [{"text": sample(inner[-1], (), now)}] if inner else []
    for candidate in (*singles, *lists, [], {}):
        with suppress(ValidationError):
            adapter.validate_json(json.dumps(candidate), strict=True)
            return candidate
    return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each text, number and null in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def put(value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy of the value with the marker at this place."""
    copied = json.loads(json.dumps(value))
    inner = copied
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = MARKER
    return copied


def send_orders(listeners: Listeners) -> int:
    """Send each order with the marker in each of its fields, and beside it. Some of them are recorded."""
    desk, sent = listeners.desk, 0
    text = {"commitment": f"hmac-{DIGEST}", "salt": base64.b64encode(bytes(32)).decode(), "text": MARKER}
    document = base64.b64encode(MARKER.encode()).decode()
    beside: tuple[dict[str, Any], ...] = (
        {"disclosures": [text]},
        {"documents": {"policy": document, "gates": document, "possession": document, MARKER: document}},
    )
    for row in ACTIONS.values():
        statement = _statement(row.order, desk)
        for path, more in [*((path, {}) for path in places(statement)), *(((), one) for one in beside)]:
            sent += 1
            changed = put(statement, path) if path else json.loads(json.dumps(statement))
            if path[-1:] != ("nonce",):
                changed["predicate"]["nonce"] = f"{sent:032x}"
            envelope = sign_envelope(encode_canonical(changed), desk.site.keys["anna"])
            listeners.people.post("/v1/orders", json={"envelope": json.loads(encode_envelope(envelope)), **more})
    return sent


def _statement(model: type[Order], desk: Console) -> dict[str, Any]:
    now = desk.context.now(desk.context.ledger.state)
    fields = {name: sample(info.annotation, tuple(info.metadata), now) for name, info in model.model_fields.items()}
    fields |= {"origin": ORIGIN, "signer": "anna", "nonce": "0" * 32}
    if not model.model_fields["reason"].is_required():
        fields["reason"] = None
    fields |= {"issued_at": now, "expires_at": add_seconds(now, 600)}
    return dict(json.loads(encode_order(model.model_validate_json(json.dumps(fields)))))


def _token(desk: Console) -> str:
    now = desk.context.now(desk.context.ledger.state)
    token = UnitToken(origin=ORIGIN, signer="legal", nonce="0" * 32, issued_at=now, expires_at=add_seconds(now, 600))
    return encode_token(sign_envelope(encode_credential(token), desk.site.keys["legal"]))


def send_to_units(listeners: Listeners) -> int:
    sent, message = 0, {"role": "user", "content": MARKER}
    whole = {"model": "labels", "messages": [message], "max_tokens": 3, "temperature": 1, "stop": ["x"], "user": "u"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {**whole, "tools": [tool], "metadata": {"a": "b"}, "response_format": {"type": "text"}},
        "/v1/completions": {"model": "labels", "prompt": MARKER, "max_tokens": 3, "seed": 1},
        "/v1/classify": {"model": "labels", "input": MARKER, "labels": ["a", "b"]},
    }
    heads: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": f"Bearer {MARKER}"},
        {"Authorization": f"Bearer {_token(listeners.desk)}"},
    )
    for path, body in bodies.items():
        variants = [body, {**body, MARKER: MARKER}, *(put(body, place) for place in places(body))]
        for head in heads:
            traced = {
                **head,
                "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
                "tracestate": f"a={MARKER}",
                "User-Agent": MARKER,
            }
            for one in variants:
                listeners.units.post(path, json=one, headers=traced)
                listeners.units.post(f"{path}/{quote(MARKER)}", content=MARKER.encode(), headers=head)
                sent += 2
            listeners.units.get(f"/v1/models/{quote(MARKER)}", headers=head)
            listeners.units.post("/v1/tokens", content=MARKER.encode(), headers=head)
    return sent


def send_to_console(listeners: Listeners) -> int:
    """Send the marker as each parameter of each page, and in each field of each form."""
    sent, fields, paths = 0, set[str](), {"/home"}
    for name in PEOPLE:
        browser = listeners.desk.signed_in(name)
        for path in sorted(paths | set(re.findall(r'href="(/[a-z/-]+)"', browser.get("/home").text)))[:40]:
            page = browser.get(path).text
            fields |= set(re.findall(r'name="([a-z_]+)"', page)) - {"csrf"}
            posted = dict.fromkeys(fields, MARKER)
            browser.get(f"{path}?{'&'.join(f'{one}={quote(MARKER)}' for one in fields)}")
            browser.get(f"{path}/{quote(MARKER)}")
            for action in {path, *re.findall(r'action="(/[a-z/-]+)"', page)} - {"/sign-out"}:
                browser.post(action, {**posted, "csrf": browser.csrf})
                sent += 1
    return sent


@pytest.mark.thorough
def test_free_text_is_found_only_in_the_fields_that_the_page_lists(
    listeners: Listeners,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workflow_context, "_MINUTE_S", 0.0)  # so that each refused order is an entry
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx2")  # the test's own client
    size = listeners.desk.context.ledger.state.size
    assert send_to_people(listeners) > 100
    assert send_orders(listeners) > 200
    assert send_to_units(listeners) > 100
    assert send_to_console(listeners) > 20
    for path in ("/metrics", "/feed", f"/{quote(MARKER)}"):
        listeners.operations.get(path, params={MARKER: MARKER}, headers={"Authorization": f"Bearer {MARKER}"})
    listeners.record()
    listeners.traces.close()
    found = find_in_orders(listeners.desk)
    assert all(CLEAR_IN_ORDERS & set(path) for path in found), found
    assert ("predicate", "labels") in found, "the marker is found where it may be"
    ledger = listeners.desk.context.ledger
    kinds = {json.loads(ledger.entry_bytes(index))["type"] for index in range(size, ledger.state.size)}
    assert {"order.refused", "request.refused", "auth.refused", "request.finished"} <= kinds
    out, err = capfd.readouterr()
    feed = listeners.operations.get("/feed", headers={"Authorization": "Bearer feed"}).text
    assert feed.count("\n") == min(MAX_LINES, ledger.state.size)
    for text in (caplog.text, out, err, listeners.metrics.encode().decode(), listeners.spans.text, feed):
        assert MARKER not in text and "Jane" not in text
