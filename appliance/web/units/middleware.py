"""Checks before the units' app, before any of a body is read: token, limits, size and speed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.errors import MalformedRequest, refusal
from appliance.web.core.receiving import Body, authorization_of, make_shutdown_error
from appliance.web.operations.limits import Quotas, RequestPlace
from appliance.web.operations.metrics import Metrics
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest, CompletionRequest
from appliance.workflows.governance import UnitCaller
from appliance.workflows.serving.answering import AnswerStream
from appliance.workflows.serving.serve import ServingWorkflow

if TYPE_CHECKING:
    from appliance.web.operations.traces import Traces


Piece = dict[str, Any]
"""A frame of a response's text, or of the calls in it."""
AnyRequest = ChatRequest | CompletionRequest | ClassifyRequest


@dataclass(frozen=True)
class RequestContext:
    """The authenticated caller and its slot in the unit's limits. `headers` may name a trace."""

    caller: UnitCaller
    place: RequestPlace
    source: str
    headers: Mapping[str, str]


class RequestRunner:
    """Runs requests on the serving workflow. Its methods are called in threads."""

    def __init__(self, serving: ServingWorkflow, metrics: Metrics, traces: Traces | None = None) -> None:
        self._serving, self._metrics, self._traces = serving, metrics, traces

    def ask(self, kind: str, body: AnyRequest, context: RequestContext) -> AnswerStream:
        """Start a response, with its metrics and its trace."""
        caller, began = context.caller, time.monotonic()
        answer = self._serving.answer(caller, body.model, kind, body.parameters(), context.source)
        seconds, traces = self._metrics.first.labels(caller.unit, body.model, answer.loaded.row.adapter), self._traces

        def first() -> None:
            seconds.observe(time.monotonic() - began)
            if traces is not None:
                traces.first(answer.request)

        answer.when_first(first)
        reused = self._metrics.cached.labels(caller.unit, body.model, answer.loaded.row.adapter)
        answer.when_done(lambda last: reused.inc(last.get("cached_tokens") or 0))
        if traces is not None:
            traces.join(answer.request, context.headers)
        return answer

    def gather(
        self, kind: str, body: AnyRequest, context: RequestContext
    ) -> tuple[AnswerStream, list[Piece], dict[str, Any]]:
        """Run a request to its end. Return the response, its pieces, and its last frame.

        One thread does all of it, so that no other thread has to wake in between.
        """
        answer = self.ask(kind, body, context)
        pieces: list[Piece] = []
        done: dict[str, Any] = {}
        try:
            for frame in answer:
                if frame["frame"] == "done":
                    done = frame
                else:
                    pieces.append(frame)
        finally:
            context.place.spend_frame(done, len(pieces))
        return answer, pieces, done


def text_of(pieces: Iterable[Piece]) -> str:
    """Return the text of a response, without its tool calls."""
    return "".join(piece["text"] for piece in pieces if "calls" not in piece)


def read_shares(text: str) -> dict[str, float]:
    """Return the probability of each label, from the text to which a classification commits."""
    return {label: float(share) for label, share in json.loads(text).items()}


_CODES = {
    "model-not-found": "model_not_found",
    "context-length": "context_length_exceeded",
    "concurrent-limit": "rate_limit_exceeded",
    "rate-limit": "rate_limit_exceeded",
    "token-limit": "rate_limit_exceeded",
    "rate-limited": "rate_limit_exceeded",
    "answers-a-day": "rate_limit_exceeded",
}
"""OpenAI's code for each of the project's codes that have one."""
_ERROR_CODES = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
"""OpenAI's code by pydantic's error type. Types that end in `_type` or `_parsing` mean a value of another type."""
_PARAMS = {"model-not-found": "model", "context-length": "messages"}
"""OpenAI's `param` by error code."""


def openai_body(error: ApplianceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error.

    A prompt over the model's context is a bad request (400), as at OpenAI.
    """
    status = 400 if error.code == "context-length" else error.status
    code, param = _CODES.get(error.code, error.code), _PARAMS.get(error.code)
    if status == 401:
        code = "invalid_api_key"
    if isinstance(error, MalformedRequest):
        code, param = _locate_error(error)
    details = {"message": error.message, "type": _type_of(error), "param": param, "code": code}
    return status, {"error": {**details, "appliance_code": error.code}}


def _type_of(error: ApplianceError) -> str:
    """Return OpenAI's error type. For rate limits it is what the limit counts: requests or tokens."""
    if error.status == 429:
        return "tokens" if error.code == "token-limit" else "requests"
    return "invalid_request_error" if error.status < 500 else "server_error"


def _locate_error(error: MalformedRequest) -> tuple[str, str | None]:
    """Return the code and location of the first invalid field, such as `messages[0].content`."""
    kind, place = error.first
    code = _ERROR_CODES.get(kind, "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value")
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    return code, param[:128] or None


MOST = 128
"""Number of requests of all units that are accepted at once. A unit with less than its share is accepted beyond
this."""

T = TypeVar("T")


class Threads:
    """The threads for requests of units, separate from those for people. Each request uses at most one."""

    def __init__(self, most: int = 2 * MOST) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="unit")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function in one of the threads and return its result.

        Raises: Unavailable if the service ends first, for example while an engine starts.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))
        except asyncio.CancelledError:
            raise make_shutdown_error() from None

    def start(self, function: Callable[[], None]) -> None:
        """Run a function to its end, without waiting for it."""
        self._pool.submit(function)


class UnitLimitsMiddleware:
    """The middleware that sets `caller` and `place` in the scope's state. It counts the requests that it refuses."""

    def __init__(self, app: ASGIApp, authenticator: CallerAuthenticator, quotas: Quotas, threads: Threads) -> None:
        self._app = app
        self._authenticator = authenticator
        self._quotas = quotas
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body(receive)
        caller: UnitCaller | None = None
        try:
            caller = await self._threads.run(self._authenticator.unit, authorization_of(scope))
            place = self._quotas.enter(caller.unit)
            with place:
                await body.read(scope)
                scope["state"].update(caller=caller, place=place)
                await self._app(scope, body.replay, send)
                await _wait_for_end(scope)
                return
        except ApplianceError as error:
            unit, application = (None, None) if caller is None else (caller.unit, caller.application)
            self._authenticator.count(unit, error, application)
            response = refusal(openai_body, error)
        await body.drain()
        await response(scope, receive, send)


async def _wait_for_end(scope: Scope) -> None:
    """Keep the place until no part of the request is running, even after its client has left."""
    frames = scope["state"].get("frames")
    if frames is not None:
        frames.leave()
        await frames.ended.wait()
