"""A unit's person asks a released adapter: through the same admission, limits and entries as the unit's programs."""

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
from appliance.domain.data.tasks import QUESTIONS
from appliance.errors import BadInput, Unavailable
from appliance.web.console.core.desk import COUNTED_FOR, Desk
from appliance.web.console.core.gate import ASK, ASKS
from appliance.web.console.core.page import Page, Query, Value, Viewer
from appliance.web.console.core.security import source_of
from appliance.web.console.core.shell import make_shell
from appliance.web.core.errors import Malformed
from appliance.web.operations.limits import Quotas
from appliance.web.units.asking import AnyRequest, Asker, Asking, read_shares, text_of
from appliance.web.units.gate import Threads
from appliance.web.units.request_bodies import MAX_TOKENS, ChatRequest, ClassifyRequest, CompletionRequest
from appliance.workflows.core.context import Context
from appliance.workflows.governance.callers import Caller
from appliance.workflows.serving.tasks import describe_task, list_tasks

TOKENS = 128
"""Of an answer, unless the person asks for more."""


@dataclass(frozen=True)
class Asks:
    """What answers, and the limits that the unit shares with its programs."""

    asking: Asking
    quotas: Quotas


class AskQuery(Query):
    task: str | None = Field(default=None, pattern=rf"^{IDENTIFIER}$")


class Chosen(Value):
    """How the task wants to be asked. `form`: a text of the form of its training data, in words; `system`: what stands
    before it there."""

    task: str
    trained_for: str
    form: str
    system: str | None
    is_added: bool
    labels: tuple[str, ...]


class AskPage(Value):
    tasks: tuple[str, ...]
    chosen: Chosen | None


def ask(context: Context, viewer: Viewer, query: AskQuery) -> AskPage:
    """NotFound for a task that is not released to the unit."""
    caller = _looking(viewer)
    tasks = tuple(sorted(str(one["id"]) for one in list_tasks(context, caller)))
    task = query.task or (tasks[0] if tasks else None)
    return AskPage(tasks=tasks, chosen=None if task is None else _choose(context, caller, task))


def _looking(viewer: Viewer) -> Caller:
    """The unit as the one who reads what is released to it; nothing is asked with it."""
    return Caller(viewer.name, "", "", "")


def _choose(context: Context, caller: Caller, task: str) -> Chosen:
    told = describe_task(context, caller, task)
    return Chosen(
        task=task,
        trained_for=str(told["trained_for"]),
        form="\n\n".join(f"<{part}>" for part in QUESTIONS[told["trained_for"]]),
        system=told["instruction"],
        is_added=bool(told["adds_instruction"]),
        labels=tuple(told["labels"]),
    )


class Answered(Value):
    """`shares`: the probability of each label, the greatest first. `record` and `answer`: files as `data:` addresses,
    since nothing of them is kept here."""

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


PAGE = Page(ASK, "Ask", ("unit",), AskQuery, ask, "units/ask.html", group="Your unit", symbol="load")


def ask_routes(desk: Desk, asks: Asks | None) -> list[Route]:
    return [Route(ASK, _Ask(desk, asks).take, methods=["POST"])]


class _Ask:
    def __init__(self, desk: Desk, asks: Asks | None) -> None:
        self._desk, self._asks = desk, asks
        self._threads = Threads(ASKS)

    async def take(self, request: Request) -> Response:
        """In threads of its own: an answer takes long, and pages wait for none."""
        fields = await self._desk.form(request)
        return await self._threads.run(self._answer, request, fields)

    def _answer(self, request: Request, fields: Mapping[str, str]) -> Response:
        desk = self._desk
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        if self._asks is None:
            raise Unavailable("answer: expected the service's engine, got a console without one")
        caller = desk.door.browser_unit(desk.site.read_cookie(request) or "")
        # As at the units' door: what is refused before it is asked is counted, and stands in the log as a count.
        setattr(request.state, COUNTED_FOR, caller.unit)
        value = ask(desk.context, viewer, AskQuery(task=_text(fields, "task", "")))
        assert value.chosen is not None
        kind, body = _read_body(value.chosen, fields)
        with self._asks.quotas.enter(caller.unit) as place:
            setattr(request.state, COUNTED_FOR, None)
            answered = _gather(self._asks.asking, kind, body, Asker(caller, place, source_of(request), {}))
        return desk.render(
            "units/answer.html",
            page=PAGE,
            shell=make_shell(desk.context, viewer, desk.pages),
            path=ASK,
            value=value,
            answered=answered,
            asked=fields,
        )


def _gather(asking: Asking, kind: str, body: AnyRequest, asker: Asker) -> Answered:
    answer, pieces, done = asking.gather(kind, body, asker)
    text = text_of(pieces)
    record = done["record"].model_dump(mode="json", exclude_none=True)
    shares = read_shares(text) if kind == "classify" else {}
    return Answered(
        request=answer.request,
        adapter=answer.adapter,
        manifest=answer.manifest,
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


def _read_body(chosen: Chosen, fields: Mapping[str, str]) -> tuple[str, AnyRequest]:
    """The request that a program would send: its limits are the same."""
    known = {"task", "text", "system", "max_tokens"}
    if unknown := sorted(fields.keys() - known):
        raise BadInput(f"form: expected {', '.join(sorted(known))}, got {unknown[0]!r:.60} too")
    text, system = _text(fields, "text", None), _text(fields, "system", "")
    messages = [{"role": "system", "content": system}] if system else []
    given = {"model": chosen.task, "messages": [*messages, {"role": "user", "content": text}]}
    try:
        if chosen.labels:
            return "classify", ClassifyRequest.model_validate({**given, "labels": chosen.labels})
        most = {"max_tokens": _tokens(_text(fields, "max_tokens", str(TOKENS)))}
        if chosen.trained_for == "completion":
            return "generate", CompletionRequest.model_validate({"model": chosen.task, "prompt": text, **most})
        return "generate", ChatRequest.model_validate({**given, **most})
    except ValidationError as error:
        raise Malformed({**item, "loc": ("body", *item["loc"])} for item in error.errors()) from None


def _text(fields: Mapping[str, str], name: str, default: str | None) -> str:
    """As the person typed it, with the line ends that a program would send."""
    text = fields.get(name, "").replace("\r\n", "\n")
    if not text.strip() and default is None:
        raise BadInput("your text: expected one, got none")
    return text if text.strip() else default or ""


def _tokens(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_TOKENS:
        raise BadInput(f"tokens: expected a whole number from 1 to {MAX_TOKENS}, got {text!r:.20}")
    return int(text)
