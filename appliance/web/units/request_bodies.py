"""What is honoured of OpenAI's requests. What would change an answer and is not honoured is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from appliance.domain.data.tool_calls import (
    TOOL,
    check_json,
    encode_json,
    list_names,
    match_results,
    read_calls,
    read_id,
    read_tools,
)
from appliance.errors import BadInput
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
MAX_SCHEMA = 32_768
"""Characters of a response format's schema, as JSON."""
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

    The joined text is what the model is given and what the ledger commits to. A message with calls may have no content.
    A result's `name` is that of its call.
    """

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_TEXT)
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = Field(default=None, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _told(cls, value: object) -> object:
        """Without members that are empty; the first that its role does not have is refused."""
        if not isinstance(value, dict):
            return value
        answered = _without_parsed(value) if value.get("role") == "assistant" else value
        told = {name: member for name, member in answered.items() if member not in _EMPTY or name == "content"}
        if told.get("content") is None and "tool_calls" in told:
            told["content"] = ""
        known = {"role", "content", *_MEMBERS.get(str(told.get("role")), cls.model_fields)}
        if (wrong := next((name for name in told if name not in known), None)) is not None:
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": "extra_forbidden", "loc": (wrong,), "input": told[wrong]}]
            )
        return told

    @model_validator(mode="after")
    def _with_ids(self) -> Message:
        """Calls have their ids; a result names its call."""
        with _as_value_error():
            for number, call in enumerate(self._calls()):
                read_id(call.get("id"), f"call {number}")
            if self.role == TOOL:
                read_id(self.tool_call_id, "tool_call_id")
        return self

    def _calls(self) -> list[dict[str, Any]]:
        return read_calls(self.tool_calls, self.role) if self.tool_calls else []

    def given(self) -> dict[str, Any]:
        """As the worker is given it and the ledger commits to it; a call's arguments are JSON text."""
        given: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            given["tool_calls"] = [_as_text(call) for call in self._calls()]
        return {**given, "tool_call_id": self.tool_call_id} if self.role == TOOL else given

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: object) -> object:
        return "".join(map(_text_of, content)) if isinstance(content, list) else content


_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MEMBERS = {"system": (), "user": (), "assistant": ("tool_calls",), TOOL: ("tool_call_id", "name")}
"""What a message of each role may have beside its role and content."""


def _without_parsed(message: dict[str, Any]) -> dict[str, Any]:
    """An answer that is given back without what OpenAI's client added while it read it: its JSON and that of its calls,
    parsed, and a call's place in the stream."""
    told: dict[str, Any] = _without(message, "parsed")
    calls = told.get("tool_calls")
    if isinstance(calls, list):
        told["tool_calls"] = [_without(call, "index") for call in calls]
        for call in told["tool_calls"]:
            if isinstance(call, dict) and "function" in call:
                call["function"] = _without(call["function"], "parsed_arguments")
    return told


def _without(value: Any, left_out: str) -> Any:
    return {name: one for name, one in value.items() if name != left_out} if isinstance(value, dict) else value


def _text_of(part: object) -> str:
    """The text of one part; ValueError for a part of another type, whose type it names."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError('expected parts such as {"type": "text", "text": "..."}, got one without a type')
    if part["type"] != "text":
        raise ValueError(f"expected parts of type text, got one of type {part['type'][:64]!r}, which is not supported")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError("expected of a part of type text the members type and text, a text, got others")
    return part["text"]


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": encode_json(function["arguments"])}}


@contextmanager
def _as_value_error(member: str = "") -> Iterator[None]:
    """What the rules of tools refuse, as pydantic takes it; what it names itself, the `member`, is not named twice."""
    try:
        yield
    except BadInput as error:
        raise ValueError(error.message.removeprefix(f"{member}: ")) from None


def _length(message: Message) -> int:
    return len(message.content) + len(str(message.tool_calls or ""))


def _check_results(messages: list[Message]) -> list[Message]:
    """Every call has its result before the next turn, and every result its call."""
    if any(message.role == TOOL or message.tool_calls for message in messages):
        with _as_value_error():
            match_results([_with_name(message) for message in messages], None, "messages")
    return messages


def _with_name(message: Message) -> dict[str, Any]:
    return message.given() | ({"name": message.name} if message.name else {})


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=MAX_MESSAGES),
    AfterValidator(_within(MAX_TEXT, _length)),
    AfterValidator(_check_results),
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


class NamedFunction(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)


class NamedTool(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: NamedFunction


class NamedSchema(BaseModel):
    """`strict` changes nothing: an answer is always held to the schema."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    description: str | None = None
    given: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("given")
    @classmethod
    def _bounded(cls, schema: dict[str, Any]) -> dict[str, Any]:
        with _as_value_error():
            check_json(schema, "schema")
        if (got := len(encode_json(schema))) > MAX_SCHEMA:
            raise ValueError(f"expected at most {MAX_SCHEMA} characters as JSON, got {got}")
        return schema


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(f"expected json_schema with the type json_schema and no other, got {self.type}")
        return self

    def schema_text(self) -> str:
        return encode_json({"type": "object"} if self.json_schema is None else self.json_schema.given)


class ChatRequest(Drawn):
    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None

    @field_validator("tools")
    @classmethod
    def _known(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if tools is not None:
            with _as_value_error("tools"):
                read_tools(tools, "tools")
        return tools

    @model_validator(mode="after")
    def _fitting(self) -> ChatRequest:
        names = list_names(self.tools or ())
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: expected one of the tools, got a function that is none of them")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: expected tools to choose from, got none")
        if self.guided_choice and (names or self.response_format):
            raise ValueError("guided_choice: expected no tools and no response_format beside it, got some")
        return self

    def parameters(self) -> dict[str, Any]:
        messages = [message.given() for message in self.messages]
        drawing = self.drawing(self.max_completion_tokens or self.max_tokens or 256)
        return {"messages": messages, **drawing, **self._tools(), **self._format()}

    def _tools(self) -> dict[str, Any]:
        """As JSON text, whose members keep their order: a template writes them as they stand. With the choice `none`
        the model is given no tools."""
        if self.tools is None or self.tool_choice == "none":
            return {}
        choice = self.tool_choice
        named = {"name": choice.function.name} if isinstance(choice, NamedTool) else choice or "auto"
        once = {} if self.parallel_tool_calls else {"parallel_tool_calls": False}
        return {"tools": encode_json(self.tools), "tool_choice": named, **once}

    def _format(self) -> dict[str, Any]:
        given = self.response_format
        return {} if given is None or given.type == "text" else {"response_format": given.schema_text()}


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
        return {"messages": [message.given() for message in wanted], "labels": self.labels}


def parse_members(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, parsed once; pydantic's error where it is no JSON. A member that is null is left out.

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
    return {name: member for name, member in value.items() if member is not None}


def _malformed(message: str) -> Malformed:
    return Malformed([{"type": "value_error", "loc": ("body",), "msg": message}])
