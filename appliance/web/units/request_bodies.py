"""The supported part of OpenAI's requests. Fields that would change a response and are not supported are refused."""

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
    WithJsonSchema,
    field_validator,
    model_validator,
)

from appliance.domain.data.tool_calls import (
    MAX_CALLS,
    MAX_TOOLS,
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
from appliance.formats.core.canonical import check_values
from appliance.web.core.errors import MalformedRequest

MAX_TOKENS = 1_024
MAX_TEXT = 200_000
"""Maximum characters of a prompt, and of all messages together."""
MAX_MESSAGES = 256
MAX_LABELS = 1_000
MAX_LABEL_TEXT = 65_536
"""Maximum characters of all labels together. The worker limits their tokens."""
MAX_STOPS = 4
MAX_STOP = 256
MAX_MEMBERS = 64
MAX_SCHEMA = 32_768
"""Maximum characters of a response format's schema, as JSON."""
MAX_VALUES = 50_000
"""Maximum number of JSON values in a request. A part of a message's content has three."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


def _limit_sum(most: int, length: Callable[[T], int]) -> Callable[[list[T]], list[T]]:
    """Return a validator that limits the sum of a list's lengths."""

    def check(items: list[T]) -> list[T]:
        if (got := sum(map(length, items))) > most:
            raise ValueError(f"expected at most {most} characters in all, got {got}")
        return items

    return check


_CONTENT = {
    "anyOf": [
        {"type": "string", "maxLength": MAX_TEXT},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}
"""Schema of a message's content, which is a text for the model."""
_STOPS = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP},
        {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP}, "maxItems": MAX_STOPS},
        {"type": "null"},
    ]
}
"""Schema of texts that end a response."""


class Message(BaseModel):
    """A message of a conversation.

    `content` is a text, or a list of parts of type text, which are joined in order without a separator. The model gets
    the joined text, and the ledger commits to it. A message with calls may have no content. A result's `name` is that
    of its call.
    """

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_TEXT), WithJsonSchema(_CONTENT)]
    tool_calls: list[dict[str, Any]] | None = Field(default=None, max_length=MAX_CALLS)
    tool_call_id: str | None = None
    name: str | None = Field(default=None, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        """Return the message without empty fields. Refuse the first field that its role does not have."""
        if not isinstance(value, dict):
            return value
        answered = _drop_parsed(value) if value.get("role") == "assistant" else value
        fields = {name: member for name, member in answered.items() if member not in _EMPTY or name == "content"}
        if fields.get("content") is None and "tool_calls" in fields:
            fields["content"] = ""
        known = {"role", "content", *_ROLE_FIELDS.get(str(fields.get("role")), cls.model_fields)}
        if (wrong := next((name for name in fields if name not in known), None)) is not None:
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": "extra_forbidden", "loc": (wrong,), "input": fields[wrong]}]
            )
        return fields

    @model_validator(mode="after")
    def _check_ids(self) -> Message:
        """Check that calls have ids and that a result names its call."""
        with _as_value_error():
            for number, call in enumerate(self._calls()):
                read_id(call.get("id"), f"call {number}")
            if self.role == TOOL:
                read_id(self.tool_call_id, "tool_call_id")
        return self

    def _calls(self) -> list[dict[str, Any]]:
        return read_calls(self.tool_calls, self.role) if self.tool_calls else []

    def to_worker_message(self) -> dict[str, Any]:
        """Return the message as the worker gets it and the ledger commits to it. A call's arguments are JSON text."""
        given: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            given["tool_calls"] = [_encode_arguments(call) for call in self._calls()]
        return {**given, "tool_call_id": self.tool_call_id} if self.role == TOOL else given

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: object) -> object:
        return "".join(map(_read_part, content)) if isinstance(content, list) else content


_EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that count as an absent field."""
_ROLE_FIELDS = {"system": (), "user": (), "assistant": ("tool_calls",), TOOL: ("tool_call_id", "name")}
"""Fields that a message of each role may have beside role and content."""


def _drop_parsed(message: dict[str, Any]) -> dict[str, Any]:
    """Return a previous response without the fields that OpenAI's client adds when it reads one.

    These are its parsed JSON, that of its calls, and a call's index in the stream.
    """
    reply: dict[str, Any] = _drop_field(message, "parsed")
    calls = reply.get("tool_calls")
    if isinstance(calls, list):
        reply["tool_calls"] = [_drop_field(call, "index") for call in calls]
        for call in reply["tool_calls"]:
            if isinstance(call, dict) and "function" in call:
                call["function"] = _drop_field(call["function"], "parsed_arguments")
    return reply


def _drop_field(value: Any, left_out: str) -> Any:
    return {name: one for name, one in value.items() if name != left_out} if isinstance(value, dict) else value


def _read_part(part: object) -> str:
    """Return the text of one part.

    Raises: ValueError for a part of another type.
    """
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError('expected parts such as {"type": "text", "text": "..."}, got one without a type')
    if part["type"] != "text":
        raise ValueError(f"expected parts of type text, got one of type {part['type'][:64]!r}, which is not supported")
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError("expected of a part of type text the fields type and text, a text, got others")
    return part["text"]


def _encode_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": encode_json(function["arguments"])}}


@contextmanager
def _as_value_error(member: str = "") -> Iterator[None]:
    """Turn a BadInput of the tools' rules into a ValueError for pydantic.

    The prefix `member` is removed from the message.
    """
    try:
        yield
    except BadInput as error:
        raise ValueError(error.message.removeprefix(f"{member}: ")) from None


def _length(message: Message) -> int:
    return len(message.content) + len(str(message.tool_calls or ""))


def _check_results(messages: list[Message]) -> list[Message]:
    """Check that every call has its result before the next turn, and every result its call."""
    if any(message.role == TOOL or message.tool_calls for message in messages):
        with _as_value_error():
            match_results([_with_name(message) for message in messages], None, "messages")
    return messages


def _with_name(message: Message) -> dict[str, Any]:
    return message.to_worker_message() | ({"name": message.name} if message.name else {})


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=MAX_MESSAGES),
    AfterValidator(_limit_sum(MAX_TEXT, _length)),
    AfterValidator(_check_results),
]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_TEXT)]
Labels = Annotated[
    list[Label], Field(min_length=1, max_length=MAX_LABELS), AfterValidator(_limit_sum(MAX_LABEL_TEXT, len))
]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
}
"""Values of OpenAI's other fields that change nothing and that some clients always send."""


def is_neutral(name: str, value: object) -> bool:
    """Return True if this value of a field that is not supported changes nothing."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL.get(name, ()))


class GenerationRequest(BaseModel):
    """The sampling parameters of a request. `guided_choice`, as in vLLM, lists the allowed responses."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    stop: Annotated[list[Stop] | None, Field(max_length=MAX_STOPS), WithJsonSchema(_STOPS)] = None
    guided_choice: Labels | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: member for name, member in value.items() if not is_neutral(name, member)}

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    def sampling_parameters(self, max_tokens: int) -> dict[str, Any]:
        """Return the sampling parameters for the worker."""
        return {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed or 0,
            "stop": self.stop or [],
            "labels": self.guided_choice or [],
        }


class NamedFunction(BaseModel):
    """The function that a `tool_choice` names."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)


class NamedTool(BaseModel):
    """A `tool_choice` that requires one function."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: NamedFunction


class NamedSchema(BaseModel):
    """A JSON schema for the response. `strict` changes nothing, because a response always follows the schema."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    description: str | None = None
    given: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("given")
    @classmethod
    def _check_size(cls, schema: dict[str, Any]) -> dict[str, Any]:
        with _as_value_error():
            check_json(schema, "schema")
        if (got := len(encode_json(schema))) > MAX_SCHEMA:
            raise ValueError(f"expected at most {MAX_SCHEMA} characters as JSON, got {got}")
        return schema


class ResponseFormat(BaseModel):
    """A `response_format`: text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(f"expected json_schema with the type json_schema and no other, got {self.type}")
        return self

    def schema_text(self) -> str:
        """Return the schema as JSON text."""
        return encode_json({"type": "object"} if self.json_schema is None else self.json_schema.given)


class ChatRequest(GenerationRequest):
    """A request for a chat completion."""

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None

    @field_validator("tools")
    @classmethod
    def _check_tools(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if tools is not None:
            with _as_value_error("tools"):
                read_tools(tools, "tools")
        return tools

    @model_validator(mode="after")
    def _check_choices(self) -> ChatRequest:
        names = list_names(self.tools or ())
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice: expected one of the tools, got a function that is none of them")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: expected tools to choose from, got none")
        if self.guided_choice and (names or self.response_format):
            raise ValueError("guided_choice: expected no tools and no response_format beside it, got some")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the request as the worker gets it."""
        messages = [message.to_worker_message() for message in self.messages]
        drawing = self.sampling_parameters(self.max_completion_tokens or self.max_tokens or 256)
        return {"messages": messages, **drawing, **self._give_tools(), **self._give_format()}

    def _give_tools(self) -> dict[str, Any]:
        """Return the tools as JSON text, whose fields keep their order in a template.

        With the choice `none` there are no tools.
        """
        if self.tools is None or self.tool_choice == "none":
            return {}
        choice = self.tool_choice
        named = {"name": choice.function.name} if isinstance(choice, NamedTool) else choice or "auto"
        once = {} if self.parallel_tool_calls else {"parallel_tool_calls": False}
        return {"tools": encode_json(self.tools), "tool_choice": named, **once}

    def _give_format(self) -> dict[str, Any]:
        given = self.response_format
        return {} if given is None or given.type == "text" else {"response_format": given.schema_text()}


class CompletionRequest(GenerationRequest):
    """A request for a completion of a prompt."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)

    def parameters(self) -> dict[str, Any]:
        """Return the request as the worker gets it."""
        return {"prompt": self.prompt, **self.sampling_parameters(self.max_tokens or 16)}


class ClassifyRequest(BaseModel):
    """A request for the probability of each label. `input` is a short form for one user message."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=128)
    labels: Labels
    input: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: Messages | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_question(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected one of input and messages, got both or none")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the request as the worker gets it."""
        wanted = self.messages or [Message(role="user", content=self.input or "")]
        return {"messages": [message.to_worker_message() for message in wanted], "labels": self.labels}


def parse_request(kind: type[M], body: bytes) -> M:
    """Return the request of a JSON body. Fields that are null count as absent.

    Raises: MalformedRequest if it does not have the expected form. Too many values or fields are refused before
    objects are created for them.
    """
    try:
        check_values(body, "body", MAX_VALUES)
    except BadInput as error:
        raise MalformedRequest.because(error.message.removeprefix("body: ")) from None
    try:
        value = _JSON.validate_json(body)
        if not isinstance(value, dict):
            raise MalformedRequest.because(f"expected an object, got {type(value).__name__}")
        if len(value) > MAX_MEMBERS:
            raise MalformedRequest.because(f"expected at most {MAX_MEMBERS} fields, got {len(value)}")
        return kind.model_validate({name: member for name, member in value.items() if member is not None})
    except ValidationError as error:
        raise MalformedRequest.of(error) from None
