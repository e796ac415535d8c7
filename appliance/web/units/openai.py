"""The units' listener: OpenAI's interface, in which a unit sees only the adapters that are released to it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.api.wire import Envelope
from appliance.domain.core.credentials import TokenRequest
from appliance.domain.queries.proofs import MEMBER
from appliance.errors import ApplianceError
from appliance.web.core.auth import CallerAuthenticator, Challenges
from appliance.web.core.errors import FrameworkError, MalformedRequest, install, refusal
from appliance.web.core.openapi import Operation, describe_operations
from appliance.web.core.receiving import Body, RequestLimit, source_of
from appliance.web.operations.limits import Quotas
from appliance.web.operations.metrics import Metrics
from appliance.web.units.middleware import (
    RequestContext,
    RequestRunner,
    Threads,
    UnitLimitsMiddleware,
    openai_body,
    read_shares,
    text_of,
)
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest, CompletionRequest, parse_request
from appliance.web.units.streams import CallQueue, Events, Frames
from appliance.workflows.serving.answering import AnswerStream
from appliance.workflows.serving.serve import ServingWorkflow

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces


Value = dict[str, Any]
CHALLENGE, TOKENS = "/v1/tokens/challenge", "/v1/tokens"
MOST = 8
"""Maximum concurrent requests for a token that applications signed. Requests without a valid signature do not
count."""
_BODY_BYTES = 16_384
"""Maximum bytes of a request for a token."""
OPERATIONS: Mapping[str, Operation] = {
    "GET /v1/models": Operation(),
    "GET /v1/models/{model}": Operation(),
    "POST /v1/chat/completions": Operation(body=ChatRequest),
    "POST /v1/completions": Operation(body=CompletionRequest),
    "POST /v1/classify": Operation(body=ClassifyRequest),
    f"POST {CHALLENGE}": Operation(needs_session=False),
    f"POST {TOKENS}": Operation(body=Envelope, needs_session=False),
}
"""The operations of the listener. Tests compare them with the routes."""


def describe() -> Value:
    """Return the OpenAPI document of the listener."""
    return describe_operations("appliance, the units' API", OPERATIONS, {"type": "http", "scheme": "bearer"})


class TokenEndpoint:
    """The middleware that issues tokens. It passes all other paths to `UnitLimitsMiddleware`."""

    def __init__(
        self,
        app: ASGIApp,
        serving: ServingWorkflow,
        authenticator: CallerAuthenticator,
        quotas: Quotas,
        threads: Threads,
    ) -> None:
        self._app = app
        self._serving = serving
        self._authenticator = authenticator
        self._quotas = quotas
        self._threads = threads
        self._challenges = Challenges()
        self._places = RequestLimit(MOST, "requests for a token")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (CHALLENGE, TOKENS):
            await self._app(scope, receive, send)
            return
        body = Body(receive, _BODY_BYTES)
        try:
            response = await self._answer(scope, body)
        except ApplianceError as error:
            self._authenticator.count(None, error)
            response = refusal(openai_body, error)
            await body.drain()
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, body: Body) -> Response:
        if scope["method"] != "POST":
            message = f"{scope['method']} {scope['path']}: Method Not Allowed"
            return refusal(openai_body, FrameworkError(message, "http", 405), {"Allow": "POST"})
        if scope["path"] == CHALLENGE:
            return JSONResponse({"nonce": self._challenges.make()})
        # The body is read and its signature verified before the request counts, so that only applications use places.
        await body.read(scope)
        data = (await body.replay())["body"]
        request = await self._threads.run(self._authenticator.token_request, data)
        with self._places.take():
            return await self._threads.run(self._issue, request, data, source_of(scope))

    def _issue(self, request: TokenRequest, data: bytes, source: str) -> Response:
        """Issue a token for a verified request. This runs in a thread.

        The challenge is used up after the signature was checked, so only an enrolled application can use one up.
        """
        self._challenges.take(request.nonce)
        try:
            with self._quotas.enter(request.signer):
                granted = self._serving.issue_token(request, data, source)
        except ApplianceError as error:
            self._authenticator.count(request.signer, error, request.application)
            return refusal(openai_body, error)
        return JSONResponse({"token": granted.token, "id": granted.id, "expires_at": granted.expires_at})


T = TypeVar("T", bound=BaseModel)
AT_ONCE_BYTES = 4_096
"""Maximum bytes of a body that is parsed in the event loop."""


def units_app(
    serving: ServingWorkflow,
    authenticator: CallerAuthenticator,
    quotas: Quotas,
    metrics: Metrics,
    traces: Traces | None = None,
) -> ASGIApp:
    """Return the app of the units' listener, in which every request passes the limits first.

    `serving` counts the requests that it refuses. All others are counted here or in the middleware of the limits.
    """
    threads = Threads()

    def count(request: Request, error: ApplianceError) -> None:
        if isinstance(error, MalformedRequest) or request.method == "GET":
            caller = request.state.caller
            authenticator.count(caller.unit, error, caller.application)

    app = Starlette(routes=_Routes(serving, threads, metrics, traces).listed())
    install(app, openai_body, count)
    return TokenEndpoint(
        UnitLimitsMiddleware(app, authenticator, quotas, threads), serving, authenticator, quotas, threads
    )


class _Routes:
    """The handlers of the routes. The middleware has set the request's caller and place."""

    def __init__(self, serving: ServingWorkflow, threads: Threads, metrics: Metrics, traces: Traces | None) -> None:
        self._serving, self._threads, self._runner = serving, threads, RequestRunner(serving, metrics, traces)
        self._post = CallQueue()

    def listed(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/classify", self.classify, methods=["POST"]),
            Route("/v1/openapi.json", self.document),
        ]

    async def document(self, request: Request) -> Response:
        return JSONResponse(describe())

    async def models(self, request: Request) -> Response:
        found = await self._threads.run(self._serving.models, request.state.caller)
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        served_model = request.path_params["model"]
        return JSONResponse(await self._threads.run(self._serving.model, request.state.caller, served_model))

    async def chat(self, request: Request) -> Response:
        return await self._draw(CHAT, await _parse(ChatRequest, request, self._threads), request)

    async def complete(self, request: Request) -> Response:
        return await self._draw(COMPLETION, await _parse(CompletionRequest, request, self._threads), request)

    async def classify(self, request: Request) -> Response:
        body = await _parse(ClassifyRequest, request, self._threads)
        answer, pieces, done = await self._threads.run(self._runner.gather, "classify", body, _make_context(request))
        shares = read_shares(text_of(pieces))
        best = max(shares, key=lambda label: shares[label])
        data = {"index": 0, "label": best, "probabilities": shares}
        return JSONResponse({**_head("list", answer, body.model), "data": [data], **_tail(done)})

    async def _draw(self, shape: ResponseShape, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        if body.stream:
            answer = await self._threads.run(self._runner.ask, "generate", body, _make_context(request))
            has_usage = bool((body.stream_options or {}).get("include_usage"))
            frames = Frames(self._threads, self._post, answer, request.state.place.spend_frame)
            request.state.frames = frames
            return Events(_stream(shape, answer, body.model, has_usage, frames), frames.leave)
        answer, pieces, done = await self._threads.run(self._runner.gather, "generate", body, _make_context(request))
        result = shape.whole(text_of(pieces), list(_number_calls(answer, pieces)))
        choice = {"index": 0, **result, "finish_reason": done["finish_reason"], "logprobs": None}
        return JSONResponse({**_head(shape.name, answer, body.model), "choices": [choice], **_tail(done)})


def _make_context(request: Request) -> RequestContext:
    return RequestContext(request.state.caller, request.state.place, source_of(request.scope), request.headers)


async def _parse(kind: type[T], request: Request, threads: Threads) -> T:
    """Parse a body: a small one directly, because a thread costs more than that."""
    body = await request.body()
    if len(body) <= AT_ONCE_BYTES:
        return parse_request(kind, body)
    return await threads.run(parse_request, kind, body)


@dataclass(frozen=True)
class ResponseShape:
    """The format of one kind of response.

    `whole` makes a choice from text and calls, `piece` makes the part of one chunk, and `first` is sent before all
    chunks.
    """

    name: str
    chunk: str
    whole: Callable[[str, list[Value]], Value]
    piece: Callable[[str], Value]
    first: Value | None


def _make_chat(text: str, calls: list[Value]) -> Value:
    message: Value = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return {"message": message}


def _number_calls(answer: AnswerStream, pieces: Iterable[Value], first: int = 0) -> Iterator[Value]:
    """Yield the calls in these pieces with their ids. `first` is the number of the first one in its response.

    An id has nine letters and digits, as Mistral's templates require. It is the same in a stream and in a whole
    response.
    """
    calls = [call for piece in pieces for call in piece.get("calls", ())]
    for number, call in enumerate(calls, start=first):
        digest = hashlib.sha256(f"{answer.request}/call/{number}".encode()).hexdigest()
        yield {"id": digest[:9], "type": "function", "function": call}


CHAT = ResponseShape(
    name="chat.completion",
    chunk="chat.completion.chunk",
    whole=_make_chat,
    piece=lambda text: {"delta": {"content": text} if text else {}},
    first={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = ResponseShape(
    name="text_completion",
    chunk="text_completion",
    whole=lambda text, calls: {"text": text},
    piece=lambda text: {"text": text},
    first=None,
)
_PLACE = "\0"
_PREFIXES = {"chat.completion": "chatcmpl", "chat.completion.chunk": "chatcmpl", "text_completion": "cmpl"}


def _usage(done: Value) -> Value:
    """Return the token counts of a response.

    `cached_tokens` counts the prompt's tokens that were reused from the served model's cache, if the engine reports
    them.
    """
    prompt, completion = int(done["prompt_tokens"]), int(done["completion_tokens"])
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    cached = done.get("cached_tokens")
    return counts if cached is None else counts | {"prompt_tokens_details": {"cached_tokens": cached}}


def _record(done: Value) -> Value:
    """Return the response record as a field that OpenAI's clients keep as `model_extra`."""
    return {MEMBER: done["record"].model_dump(mode="json", exclude_none=True)}


def _tail(done: Value) -> Value:
    return {"usage": _usage(done), **_record(done)}


def _head(kind: str, answer: AnswerStream, model: str) -> Value:
    return {
        "id": f"{_PREFIXES.get(kind, 'classify')}-{answer.request}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": answer.loaded.row.manifest,
    }


def _event(value: Value | str) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


async def _stream(
    shape: ResponseShape, answer: AnswerStream, model: str, usage: bool, frames: Frames
) -> AsyncIterator[str]:
    """Yield server-sent events. An error after the first token is an event of its own, without a `[DONE]` after it.

    The response record is in the chunk with the usage, if that was requested, otherwise in the chunk with the finish
    reason.
    """
    head = _head(shape.chunk, answer, model)

    def chunk(part: Value, finish: str | None, **more: Value) -> str:
        return _event({**head, "choices": [{"index": 0, **part, "finish_reason": finish, "logprobs": None}], **more})

    # The pieces of a response differ only in their text.
    before, after = chunk(shape.piece(_PLACE), None).split(json.dumps(_PLACE))
    call_count = 0
    try:
        if shape.first is not None:
            yield chunk(shape.first, None)
        async for frame in frames.each():
            for call in _number_calls(answer, [frame], call_count):
                yield chunk({"delta": {"tool_calls": [{"index": call_count, **call}]}}, None)
                call_count += 1
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
