"""What is honoured of OpenAI's requests. What would change an answer and is not honoured is refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_TOKENS = 1_024
MAX_TEXT = 200_000
MAX_MESSAGES = 256
MAX_LABELS = 1_000


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT)


class Drawn(BaseModel):
    """How an answer is drawn. `guided_choice`: the answers there are; the name is vLLM's."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    stop: str | list[str] | None = None
    guided_choice: list[str] | None = Field(default=None, min_length=1, max_length=MAX_LABELS)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def drawing(self, max_tokens: int) -> dict[str, Any]:
        stop = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        return {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed or 0,
            "stop": stop[:4],
            "labels": self.guided_choice or [],
        }


class ChatRequest(Drawn):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)

    def parameters(self) -> dict[str, Any]:
        messages = [message.model_dump() for message in self.messages]
        return {"messages": messages, **self.drawing(self.max_completion_tokens or self.max_tokens or 256)}


class CompletionRequest(Drawn):
    prompt: str = Field(min_length=1, max_length=MAX_TEXT)

    def parameters(self) -> dict[str, Any]:
        return {"prompt": self.prompt, **self.drawing(self.max_tokens or 16)}


class ClassifyRequest(BaseModel):
    """`input` is short for one message of the user."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    labels: list[str] = Field(min_length=1, max_length=MAX_LABELS)
    input: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    user: str | None = None

    @model_validator(mode="after")
    def _one_question(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected one of input and messages, got both or none")
        return self

    def parameters(self) -> dict[str, Any]:
        asked = self.messages or [Message(role="user", content=self.input or "")]
        return {"messages": [message.model_dump() for message in asked], "labels": self.labels}
