"""The units' door: OpenAI's interface, of which a unit sees its own released tasks and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from appliance.errors import ApplianceError
from appliance.web.auth import Doorkeeper
from appliance.web.errors import install, openai_body
from appliance.workflows.serve import Answer, Serving

MAX_TOKENS = 1_024

Authorization = Annotated[str | None, Header()]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=200_000)


class ChatRequest(BaseModel):
    """What is honoured of OpenAI's request. What would change an answer and is not honoured is refused."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    messages: list[Message] = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    stop: str | list[str] | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def parameters(self) -> dict[str, Any]:
        stop = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        return {
            "messages": [message.model_dump() for message in self.messages],
            "max_tokens": self.max_completion_tokens or self.max_tokens or 256,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed or 0,
            "stop": stop[:4],
        }


def units_app(serving: Serving, door: Doorkeeper) -> FastAPI:
    app = FastAPI(title="appliance, the units' door", docs_url=None, redoc_url=None, openapi_url=None)
    install(app, openai_body, door.count_refusal)
    app.include_router(_routes(serving, door))
    return app


def _routes(serving: Serving, door: Doorkeeper) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    def models(authorization: Authorization = None) -> dict[str, Any]:
        return {"object": "list", "data": serving.models(door.unit(authorization))}

    @router.post("/v1/chat/completions", response_model=None)
    def chat(body: ChatRequest, request: Request, authorization: Authorization = None) -> Response:
        unit = door.unit(authorization)
        source = f"tcp:{request.client.host}" if request.client else "unix"
        answer = serving.chat(unit, body.model, body.parameters(), source)
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            return StreamingResponse(_stream(answer, body.model, usage), media_type="text/event-stream")
        return JSONResponse(_whole(answer, body.model))

    return router


def _usage(done: dict[str, Any]) -> dict[str, int]:
    prompt, completion = int(done["prompt_tokens"]), int(done["completion_tokens"])
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _envelope(answer: Answer, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer.request}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": answer.manifest,
    }


def _whole(answer: Answer, model: str) -> dict[str, Any]:
    text: list[str] = []
    done: dict[str, Any] = {}
    for frame in answer.frames:
        if frame["frame"] == "done":
            done = frame
        else:
            text.append(frame["text"])
    message = {"role": "assistant", "content": "".join(text), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": done["finish_reason"], "logprobs": None}
    return {**_envelope(answer, model, "chat.completion"), "choices": [choice], "usage": _usage(done)}


def _event(value: dict[str, Any] | str) -> str:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def _stream(answer: Answer, model: str, usage: bool) -> Iterator[str]:
    """Server-sent events; an error after the first token is an event of its own and no `[DONE]` follows it."""
    head = _envelope(answer, model, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**head, "choices": [choice]})

    try:
        yield chunk({"role": "assistant", "content": ""}, None)
        for frame in answer.frames:
            if frame["frame"] != "done":
                yield chunk({"content": frame["text"]}, None)
                continue
            yield chunk({}, frame["finish_reason"])
            if usage:
                yield _event({**head, "choices": [], "usage": _usage(frame)})
    except ApplianceError as error:
        yield _event(openai_body(error.code, error.message, (), error.status))
        return
    yield _event("[DONE]")
