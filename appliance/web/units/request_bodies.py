"""What is honoured of OpenAI's requests. What would change an answer and is not honoured is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from appliance.web.core.errors import Malformed

MAX_TOKENS = 1_024
MAX_TEXT = 200_000
"""Characters of a prompt, and of all messages together."""
MAX_MESSAGES = 256
MAX_LABELS = 1_000
MAX_LABEL_TEXT = 65_536
"""Characters of all labels together; the worker bounds their tokens."""
MAX_STOPS = 4
MAX_STOP = 256
MAX_MEMBERS = 64
MAX_VALUES = 300_000
"""More than the characters of all texts: a body with so many signs between values has nothing to say."""

T = TypeVar("T")
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


def _within(most: int, length: Callable[[T], int]) -> Callable[[list[T]], list[T]]:
    """Bounds what all of a list's items have together."""

    def check(items: list[T]) -> list[T]:
        if (got := sum(map(length, items))) > most:
            raise ValueError(f"expected at most {most} characters in all, got {got}")
        return items

    return check


class Message(BaseModel):
    """`content` is a text, or a list of parts of type text, which are joined in their order without anything between.

    The joined text is what the model is given and what the ledger commits to.
    """

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT)

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: object) -> object:
        return "".join(map(_text_of, content)) if isinstance(content, list) else content


def _text_of(part: object) -> str:
    """The text of one part; ValueError for a part of another type, whose type it names."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError('expected parts such as {"type": "text", "text": "..."}, got one without a type')
    if part["type"] != "text":
        raise ValueError(f"expected parts of type text, got one of type {part['type'][:64]!r}, which is not supported")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError("expected of a part of type text the members type and text, a text, got others")
    return part["text"]


def _length(message: Message) -> int:
    return len(message.content)


Messages = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(_within(MAX_TEXT, _length))
]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_TEXT)]
Labels = Annotated[
    list[Label], Field(min_length=1, max_length=MAX_LABELS), AfterValidator(_within(MAX_LABEL_TEXT, len))
]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]


class Drawn(BaseModel):
    """How an answer is drawn. `guided_choice`: the answers there are; the name is vLLM's."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    stop: list[Stop] | None = Field(default=None, max_length=MAX_STOPS)
    guided_choice: Labels | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    def drawing(self, max_tokens: int) -> dict[str, Any]:
        return {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed or 0,
            "stop": self.stop or [],
            "labels": self.guided_choice or [],
        }


class ChatRequest(Drawn):
    messages: Messages
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
    labels: Labels
    input: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: Messages | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _one_question(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected one of input and messages, got both or none")
        return self

    def parameters(self) -> dict[str, Any]:
        wanted = self.messages or [Message(role="user", content=self.input or "")]
        return {"messages": [message.model_dump() for message in wanted], "labels": self.labels}


def parse_members(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, parsed once; pydantic's error where it is no JSON.

    Malformed where it is no object, or has more values or members than any request: to make objects of them, or an
    error of each unknown one, would hold the event loop for seconds.
    """
    if (got := sum(body.count(sign) for sign in b",[{")) > MAX_VALUES:
        raise _malformed(f"expected at most {MAX_VALUES} values, got signs of {got}")
    value = _JSON.validate_json(body)
    if not isinstance(value, dict):
        raise _malformed(f"expected an object, got {type(value).__name__}")
    if len(value) > MAX_MEMBERS:
        raise _malformed(f"expected at most {MAX_MEMBERS} members, got {len(value)}")
    return value


def _malformed(message: str) -> Malformed:
    return Malformed([{"type": "value_error", "loc": ("body",), "msg": message}])
