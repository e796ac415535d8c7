"""The units' door: OpenAI's interface, of which a unit sees its own released tasks and nothing else."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from appliance.domain.queries.response import MEMBER
from appliance.errors import ApplianceError
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.errors import Malformed, install
from appliance.web.operations.limits import Quotas
from appliance.web.operations.metrics import Metrics
from appliance.web.units.asking import Asker, Asking, read_shares, text_of
from appliance.web.units.gate import Gate, Threads
from appliance.web.units.issuing import Issuing
from appliance.web.units.refusals import openai_body
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest, CompletionRequest, parse_members
from appliance.web.units.streams import Events, Frames, Post
from appliance.workflows.serving.answering import Answer
from appliance.workflows.serving.serve import Serving

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces

Value = dict[str, Any]
T = TypeVar("T", bound=BaseModel)


def units_app(
    serving: Serving, door: Doorkeeper, quotas: Quotas, metrics: Metrics, traces: Traces | None = None
) -> ASGIApp:
    """Every request passes the gate first; what the app itself refuses unseen is counted like what the gate refuses."""
    threads = Threads()

    def count(request: Request, error: ApplianceError) -> None:
        if isinstance(error, Malformed) or request.method == "GET":
            door.count(request.state.caller.unit, error)

    app = Starlette(routes=_Routes(serving, threads, metrics, traces).listed())
    install(app, openai_body, count)
    return Issuing(Gate(app, door, quotas, threads), serving, door, quotas, threads)


class _Routes:
    """What each route does. The gate has set the asker and the place that the request holds."""

    def __init__(self, serving: Serving, threads: Threads, metrics: Metrics, traces: Traces | None) -> None:
        self._serving, self._threads, self._asking = serving, threads, Asking(serving, metrics, traces)
        self._post = Post()

    def listed(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/classify", self.classify, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        found = await self._threads.run(self._serving.models, request.state.caller)
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        task = request.path_params["model"]
        return JSONResponse(await self._threads.run(self._serving.model, request.state.caller, task))

    async def chat(self, request: Request) -> Response:
        return await self._draw(CHAT, await _parse(ChatRequest, request), request)

    async def complete(self, request: Request) -> Response:
        return await self._draw(COMPLETION, await _parse(CompletionRequest, request), request)

    async def classify(self, request: Request) -> Response:
        body = await _parse(ClassifyRequest, request)
        answer, pieces, done = await self._threads.run(self._asking.gather, "classify", body, _asker(request))
        found = read_shares(text_of(pieces))
        best = max(found, key=lambda label: found[label])
        data = {"index": 0, "label": best, "probabilities": found}
        return JSONResponse({**_head("list", answer, body.model), "data": [data], **_tail(done)})

    async def _draw(self, shape: Shape, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        if body.stream:
            answer = await self._threads.run(self._asking.ask, "generate", body, _asker(request))
            usage = bool((body.stream_options or {}).get("include_usage"))
            frames = Frames(self._threads, self._post, answer, request.state.place.spend_frame)
            request.state.frames = frames
            return Events(_stream(shape, answer, body.model, usage, frames), frames.leave)
        answer, pieces, done = await self._threads.run(self._asking.gather, "generate", body, _asker(request))
        told = shape.whole(text_of(pieces), list(_number_calls(answer, pieces)))
        choice = {"index": 0, **told, "finish_reason": done["finish_reason"], "logprobs": None}
        return JSONResponse({**_head(shape.name, answer, body.model), "choices": [choice], **_tail(done)})


def _asker(request: Request) -> Asker:
    source = f"tcp:{request.client.host}" if request.client else "unix"
    return Asker(request.state.caller, request.state.place, source, request.headers)


async def _parse(kind: type[T], request: Request) -> T:
    try:
        return kind.model_validate(parse_members(await request.body()))
    except ValidationError as error:
        raise Malformed({**item, "loc": ("body", *item["loc"])} for item in error.errors()) from None


@dataclass(frozen=True)
class Shape:
    """How one kind of answer is written: `whole` gives a choice's text and calls, `piece` a piece of its text, `first`
    what comes before any."""

    name: str
    chunk: str
    whole: Callable[[str, list[Value]], Value]
    piece: Callable[[str], Value]
    first: Value | None


def _whole_chat(text: str, calls: list[Value]) -> Value:
    message: Value = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return {"message": message}


def _number_calls(answer: Answer, pieces: Iterable[Value], first: int = 0) -> Iterator[Value]:
    """The calls in these pieces; `first`: the number of the first one in its answer.

    An id is nine letters and digits, which Mistral's templates want, and the same however the answer is read.
    """
    calls = [call for piece in pieces for call in piece.get("calls", ())]
    for number, call in enumerate(calls, start=first):
        digest = hashlib.sha256(f"{answer.request}/call/{number}".encode()).hexdigest()
        yield {"id": digest[:9], "type": "function", "function": call}


CHAT = Shape(
    name="chat.completion",
    chunk="chat.completion.chunk",
    whole=_whole_chat,
    piece=lambda text: {"delta": {"content": text} if text else {}},
    first={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    name="text_completion",
    chunk="text_completion",
    whole=lambda text, calls: {"text": text},
    piece=lambda text: {"text": text},
    first=None,
)
_PLACE = "\0"
_PREFIXES = {"chat.completion": "chatcmpl", "chat.completion.chunk": "chatcmpl", "text_completion": "cmpl"}


def _usage(done: Value) -> Value:
    """`cached_tokens`: of the prompt's, those that were read before in the same task; only where the engine tells."""
    prompt, completion = int(done["prompt_tokens"]), int(done["completion_tokens"])
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    cached = done.get("cached_tokens")
    return counts if cached is None else counts | {"prompt_tokens_details": {"cached_tokens": cached}}


def _record(done: Value) -> Value:
    """A member that OpenAI's clients keep without knowing it: `model_extra` of the answer or of the last chunk."""
    return {MEMBER: done["record"].model_dump(mode="json", exclude_none=True)}


def _tail(done: Value) -> Value:
    return {"usage": _usage(done), **_record(done)}


def _head(kind: str, answer: Answer, model: str) -> Value:
    return {
        "id": f"{_PREFIXES.get(kind, 'classify')}-{answer.request}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": answer.manifest,
    }


def _event(value: Value | str) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


async def _stream(shape: Shape, answer: Answer, model: str, usage: bool, frames: Frames) -> AsyncIterator[str]:
    """Server-sent events; an error after the first token is an event of its own and no `[DONE]` follows it.

    The last chunk carries the response record: that of the usage where it was asked for, else that of the reason.
    """
    head = _head(shape.chunk, answer, model)

    def chunk(part: Value, finish: str | None, **more: Value) -> str:
        return _event({**head, "choices": [{"index": 0, **part, "finish_reason": finish, "logprobs": None}], **more})

    # Each of an answer's pieces differs in its text alone.
    before, after = chunk(shape.piece(_PLACE), None).split(json.dumps(_PLACE))
    told = 0
    try:
        if shape.first is not None:
            yield chunk(shape.first, None)
        async for frame in frames.each():
            for call in _number_calls(answer, [frame], told):
                yield chunk({"delta": {"tool_calls": [{"index": told, **call}]}}, None)
                told += 1
            if "calls" in frame:
                continue
            if frame["frame"] != "done":
                yield f"{before}{json.dumps(frame['text'])}{after}"
                continue
            yield chunk(shape.piece(""), frame["finish_reason"], **({} if usage else _record(frame)))
            if usage:
                yield _event({**head, "choices": [], **_tail(frame)})
    except ApplianceError as error:
        yield _event(openai_body(error)[1])
        return
    yield _event("[DONE]")
