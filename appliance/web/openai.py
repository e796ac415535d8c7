"""The units' door: OpenAI's interface, of which a unit sees its own released tasks and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from appliance.domain.response import MEMBER
from appliance.errors import ApplianceError
from appliance.web.asked import ChatRequest, ClassifyRequest, CompletionRequest
from appliance.web.auth import Doorkeeper
from appliance.web.errors import install, openai_body
from appliance.workflows.serve import Answer, Serving

Authorization = Annotated[str | None, Header()]
Value = dict[str, Any]


def units_app(serving: Serving, door: Doorkeeper) -> FastAPI:
    app = FastAPI(title="appliance, the units' door", docs_url=None, redoc_url=None, openapi_url=None)
    install(app, openai_body, door.count_refusal)
    app.include_router(_routes(serving, door))
    return app


def _routes(serving: Serving, door: Doorkeeper) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    def models(authorization: Authorization = None) -> Value:
        return {"object": "list", "data": serving.models(door.unit(authorization))}

    @router.get("/v1/models/{model}")
    def model(model: str, authorization: Authorization = None) -> Value:
        return serving.model(door.unit(authorization), model)

    def ask(
        kind: str, body: ChatRequest | CompletionRequest | ClassifyRequest, request: Request, authorization: str | None
    ) -> Answer:
        unit = door.unit(authorization)
        source = f"tcp:{request.client.host}" if request.client else "unix"
        return serving.answer(unit, body.model, kind, body.parameters(), source)

    def drawn(shape: Shape, body: ChatRequest | CompletionRequest, answer: Answer) -> Response:
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            return StreamingResponse(_stream(shape, answer, body.model, usage), media_type="text/event-stream")
        text, done = _gather(answer)
        choice = {"index": 0, **shape.whole(text), "finish_reason": done["finish_reason"], "logprobs": None}
        return JSONResponse({**_head(shape.name, answer, body.model), "choices": [choice], **_tail(done)})

    @router.post("/v1/chat/completions", response_model=None)
    def chat(body: ChatRequest, request: Request, authorization: Authorization = None) -> Response:
        return drawn(CHAT, body, ask("generate", body, request, authorization))

    @router.post("/v1/completions", response_model=None)
    def complete(body: CompletionRequest, request: Request, authorization: Authorization = None) -> Response:
        return drawn(COMPLETION, body, ask("generate", body, request, authorization))

    @router.post("/v1/classify", response_model=None)
    def classify(body: ClassifyRequest, request: Request, authorization: Authorization = None) -> Response:
        answer = ask("classify", body, request, authorization)
        text, done = _gather(answer)
        found = {label: float(share) for label, share in json.loads(text).items()}
        best = max(found, key=lambda label: found[label])
        data = {"index": 0, "label": best, "probabilities": found}
        return JSONResponse({**_head("list", answer, body.model), "data": [data], **_tail(done)})

    return router


@dataclass(frozen=True)
class Shape:
    """How one kind of answer is written: `whole` and `piece` give a choice's text, `first` what comes before any."""

    name: str
    chunk: str
    whole: Callable[[str], Value]
    piece: Callable[[str], Value]
    first: Value | None


CHAT = Shape(
    name="chat.completion",
    chunk="chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    piece=lambda text: {"delta": {"content": text} if text else {}},
    first={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    name="text_completion",
    chunk="text_completion",
    whole=lambda text: {"text": text},
    piece=lambda text: {"text": text},
    first=None,
)
_PREFIXES = {"chat.completion": "chatcmpl", "chat.completion.chunk": "chatcmpl", "text_completion": "cmpl"}


def _usage(done: Value) -> dict[str, int]:
    prompt, completion = int(done["prompt_tokens"]), int(done["completion_tokens"])
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


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


def _gather(answer: Answer) -> tuple[str, Value]:
    """The whole text, and the frame that ended it."""
    text: list[str] = []
    done: Value = {}
    for frame in answer.frames:
        if frame["frame"] == "done":
            done = frame
        else:
            text.append(frame["text"])
    return "".join(text), done


def _event(value: Value | str) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def _stream(shape: Shape, answer: Answer, model: str, usage: bool) -> Iterator[str]:
    """Server-sent events; an error after the first token is an event of its own and no `[DONE]` follows it.

    The last chunk carries the response record: that of the usage where it was asked for, else that of the reason.
    """
    head = _head(shape.chunk, answer, model)

    def chunk(part: Value, finish: str | None, **more: Value) -> str:
        return _event({**head, "choices": [{"index": 0, **part, "finish_reason": finish, "logprobs": None}], **more})

    try:
        if shape.first is not None:
            yield chunk(shape.first, None)
        for frame in answer.frames:
            if frame["frame"] != "done":
                yield chunk(shape.piece(frame["text"]), None)
                continue
            yield chunk(shape.piece(""), frame["finish_reason"], **({} if usage else _record(frame)))
            if usage:
                yield _event({**head, "choices": [], **_tail(frame)})
    except ApplianceError as error:
        yield _event(openai_body(error.code, error.message, (), error.status))
        return
    yield _event("[DONE]")
