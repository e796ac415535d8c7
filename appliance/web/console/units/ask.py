"""Questions of a unit's person to a released adapter.

They are subject to the same checks, limits and entries as requests of the unit's programs.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.core.names import IDENTIFIER
from appliance.domain.data.kinds import QUESTIONS
from appliance.errors import BadInput, Unavailable
from appliance.web.console.core.desk import COUNTED_FOR, Desk
from appliance.web.console.core.middleware import ASK
from appliance.web.console.core.page import Page, PageValue, Query, Viewer
from appliance.web.core.errors import MalformedRequest
from appliance.web.core.receiving import source_of
from appliance.web.operations.limits import Quotas
from appliance.web.units.middleware import AnyRequest, RequestContext, RequestRunner, Threads, read_shares, text_of
from appliance.web.units.request_bodies import MAX_TOKENS, ChatRequest, ClassifyRequest, CompletionRequest
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.governance import UnitCaller
from appliance.workflows.serving.serve import describe_served_model, list_served_models

TOKENS = 128
"""Default limit of a response's tokens."""


@dataclass(frozen=True)
class Playground:
    """The engine, and the limits that the unit shares with its programs."""

    runner: RequestRunner
    quotas: Quotas


class PlaygroundQuery(Query):
    """The served model that is chosen."""

    served_model: str | None = Field(default=None, pattern=rf"^{IDENTIFIER}$")


class ChosenModel(PageValue):
    """The chosen served model and the form of its prompts.

    `form` describes the text, as in the training data. `system` is the system message of the training data.
    """

    served_model: str
    trained_for: str
    form: str
    system: str | None
    is_added: bool
    labels: tuple[str, ...]


class PlaygroundPage(PageValue):
    """The page for questions."""

    served_models: tuple[str, ...]
    chosen: ChosenModel | None


def ask(context: LedgerContext, viewer: Viewer, query: PlaygroundQuery) -> PlaygroundPage:
    """Return the page for questions.

    Raises: NotFound for a served model that is not released to the unit.
    """
    caller = make_reading_caller(viewer)
    served_models = tuple(sorted(str(one["id"]) for one in list_served_models(context, caller)))
    served_model = query.served_model or (served_models[0] if served_models else None)
    return PlaygroundPage(
        served_models=served_models, chosen=None if served_model is None else _choose(context, caller, served_model)
    )


def make_reading_caller(viewer: Viewer) -> UnitCaller:
    """Return the unit as a caller that only reads."""
    return UnitCaller(viewer.name, "", "", "")


def _choose(context: LedgerContext, caller: UnitCaller, served_model: str) -> ChosenModel:
    description = describe_served_model(context, caller, served_model)
    return ChosenModel(
        served_model=served_model,
        trained_for=str(description["trained_for"]),
        form="\n\n".join(f"<{part}>" for part in QUESTIONS[description["trained_for"]]),
        system=description["instruction"],
        is_added=bool(description["adds_instruction"]),
        labels=tuple(description["labels"]),
    )


class ShownResponse(PageValue):
    """A response. `shares` are the labels' probabilities in descending order.

    `record` and `answer` are files as `data:` addresses, because the service does not store them.
    """

    request: str
    adapter: str
    manifest: str
    entry: int
    finish_reason: str
    tokens_read: int
    tokens_written: int
    text: str
    shares: tuple[tuple[str, float], ...]
    record: str
    answer: str


PAGE = Page(ASK, "Playground", ask, seen_by=("unit",), group="Your unit", symbol="load")


def ask_routes(desk: Desk, playground: Playground | None) -> list[Route]:
    """Return the route that takes questions. They have threads of their own, so that pages do not wait for them."""

    def answer(request: Request, fields: Mapping[str, str]) -> Response:
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        if playground is None:
            raise Unavailable("answer: expected the service's engine, got a console without one")
        caller = desk.authenticator.browser_unit(desk.site.read_cookie(request) or "")
        # As at the units' listener, refusals before the question are counted and appended to the log as a count.
        setattr(request.state, COUNTED_FOR, caller.unit)
        value = ask(desk.context, viewer, _read_query(fields))
        assert value.chosen is not None
        kind, body = _read_body(value.chosen, fields)
        with playground.quotas.enter(caller.unit) as place:
            setattr(request.state, COUNTED_FOR, None)
            answered = _gather(
                playground.runner, kind, body, RequestContext(caller, place, source_of(request.scope), {})
            )
        return desk.render_page(
            request, viewer, "units/answer.html", page=PAGE, value=value, answered=answered, asked=fields
        )

    return [Route(ASK, desk.posted(answer, run=Threads().run), methods=["POST"])]


def _read_query(fields: Mapping[str, str]) -> PlaygroundQuery:
    try:
        return PlaygroundQuery(served_model=_text(fields, "served_model", ""))
    except ValidationError as error:
        raise MalformedRequest.of(error) from None


def _gather(runner: RequestRunner, kind: str, body: AnyRequest, context: RequestContext) -> ShownResponse:
    answer, pieces, done = runner.gather(kind, body, context)
    text = text_of(pieces)
    record = done["record"].model_dump(mode="json", exclude_none=True)
    shares = read_shares(text) if kind == "classify" else {}
    return ShownResponse(
        request=answer.request,
        adapter=answer.loaded.row.adapter,
        manifest=answer.loaded.row.manifest,
        entry=int(json.loads(record["entry"])["index"]),
        finish_reason=str(done["finish_reason"]),
        tokens_read=int(done["prompt_tokens"]),
        tokens_written=int(done["completion_tokens"]),
        text="" if shares else text,
        shares=tuple(sorted(shares.items(), key=lambda item: -item[1])),
        record=_file(json.dumps(record, indent=1) + "\n", "application/json"),
        answer=_file(text, "text/plain"),
    )


def _file(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{b64encode(text.encode('utf-8')).decode('ascii')}"


def _read_body(chosen: ChosenModel, fields: Mapping[str, str]) -> tuple[str, AnyRequest]:
    """Return the request that a program would send, with the same limits."""
    known = {"served_model", "text", "system", "max_tokens"}
    if unknown := sorted(fields.keys() - known):
        raise BadInput(f"form: expected {', '.join(sorted(known))}, got {unknown[0]!r:.60} too")
    text, system = _text(fields, "text", None), _text(fields, "system", "")
    messages = [{"role": "system", "content": system}] if system else []
    given = {"model": chosen.served_model, "messages": [*messages, {"role": "user", "content": text}]}
    try:
        if chosen.labels:
            return "classify", ClassifyRequest.model_validate({**given, "labels": chosen.labels})
        most = {"max_tokens": _tokens(_text(fields, "max_tokens", str(TOKENS)))}
        if chosen.trained_for == "completion":
            return "generate", CompletionRequest.model_validate({"model": chosen.served_model, "prompt": text, **most})
        return "generate", ChatRequest.model_validate({**given, **most})
    except ValidationError as error:
        raise MalformedRequest.of(error) from None


def _text(fields: Mapping[str, str], name: str, default: str | None) -> str:
    """Return the typed text, with the line ends that a program would send."""
    text = fields.get(name, "").replace("\r\n", "\n")
    if not text.strip() and default is None:
        raise BadInput("your text: expected one, got none")
    return text if text.strip() else default or ""


def _tokens(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_TOKENS:
        raise BadInput(f"tokens: expected a whole number from 1 to {MAX_TOKENS}, got {text!r:.20}")
    return int(text)
