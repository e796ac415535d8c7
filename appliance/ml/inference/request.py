"""A unit's inference request, with checks of each field, and its conversion to token ids.

The module does without torch, so that a separate process can convert requests (`worker/reader.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.domain.data.tool_calls import (
    TOOL,
    check_json,
    list_names,
    match_results,
    read_calls,
    read_id,
    read_tools,
)
from appliance.errors import BadInput
from appliance.formats.core.canonical import parse_json
from appliance.formats.core.fields import parse_text
from appliance.ml.model.chat import Chat

MAX_STOPS = 4
MAX_LABELS = 1000
# Largest number of characters: of one stop text, of all labels, and of the prompt or all messages.
MAX_STOP = 256
MAX_LABEL_TEXT = 65_536
MAX_TEXT = 200_000
# Largest number of tokens, each label with the end-of-turn token: of one label, which fits one pass, and of all.
MAX_LABEL_TOKENS = 256
MAX_LABELS_TOKENS = 8_192
# Below it a request is greedy, as in vLLM: differing bf16 logits then leave no randomness, and temperatures below 1e-37
# overflow the logits.
LEAST_TEMPERATURE = 1e-5
_ROLES = ("system", "user", "assistant", TOOL)
ANY, REQUIRED = "auto", "required"


@dataclass(frozen=True)
class InferenceRequest:
    """An inference request.

    - `temperature`: 0, or below LEAST_TEMPERATURE, selects the most likely token; `seed` makes sampling reproducible.
    - `prompt`: a text to continue, instead of messages.
    - `labels`: the allowed outputs; any output if empty.
    - `tools`: tools that may be called, several at once if `parallel`. `must_call` requires a call, `must_call_one` a
      call of this tool.
    - `strict`: names of tools whose calls must follow their schemas; with `must_call` all must.
    - `schema`: JSON schema of an output that is not a call.
    - `scope`: set by the service. Requests of a slot with the same scope share cached prompt beginnings; None shares
      none.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    prompt: str | None = None
    labels: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    parallel: bool = True
    must_call: bool = False
    must_call_one: str | None = None
    strict: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    scope: str | None = None

    @property
    def size(self) -> int:
        """Number of characters that become tokens."""
        texts = [self.prompt or "", *self.labels, *(message["content"] for message in self.messages)]
        texts += [json.dumps(message["tool_calls"]) for message in self.messages if "tool_calls" in message]
        return sum(map(len, texts)) + len(json.dumps(self.tools))

    @property
    def is_held(self) -> bool:
        """True if a grammar restricts the output; building it takes some milliseconds."""
        return self.must_call or bool(self.strict) or self.schema is not None

    @property
    def is_greedy(self) -> bool:
        """True if sampling is not random; division by a smaller temperature would overflow."""
        return self.temperature < LEAST_TEMPERATURE


def parse_request(value: Mapping[str, Any]) -> InferenceRequest:
    """Return the request with checked fields.

    Raises:
        BadInput: a field is invalid; the message names it.
    """
    prompt = _read_prompt(value)
    messages = _read_messages(value) if prompt is None else ()
    contents = [message["content"] for message in messages]
    _check_length("prompt" if prompt else "messages", contents or [prompt or ""], MAX_TEXT)
    stop = _read_texts(value, "stop", MAX_STOPS)
    if (longest := max(map(len, stop), default=0)) > MAX_STOP:
        raise BadInput(f"stop: expected at most {MAX_STOP} characters in each, got one of {longest}")
    labels = _read_texts(value, "labels", MAX_LABELS)
    _check_length("labels", labels, MAX_LABEL_TEXT)
    if len(set(labels)) < len(labels):
        raise BadInput("labels: expected each one once, got one twice")
    held, scope = _read_tools(value) | _read_format(value), value.get("scope")
    if scope is not None and not isinstance(scope, str):
        raise BadInput(f"scope: expected a text, got {type(scope).__name__}")
    if labels and held:
        raise BadInput("labels: expected none beside tools or a response_format, got some")
    return InferenceRequest(
        messages=messages,
        max_tokens=int(_read_number(value, "max_tokens", 1, 1 << 20, whole=True)),
        temperature=_read_number(value, "temperature", 0, 2),
        top_p=_read_number(value, "top_p", 0, 1),
        seed=int(_read_number(value, "seed", 0, 2**63 - 1, whole=True)),
        stop=stop,
        prompt=prompt,
        labels=labels,
        scope=scope,
        **held,
    )


def _read_prompt(value: Mapping[str, Any]) -> str | None:
    prompt = value.get("prompt")
    if prompt is None or (isinstance(prompt, str) and prompt and "messages" not in value):
        return prompt
    got = "messages too" if "messages" in value else "an empty text" if prompt == "" else type(prompt).__name__
    raise BadInput(f"prompt: expected a text that is not empty, and no messages with it, got {got}")


def _read_tools(value: Mapping[str, Any]) -> dict[str, Any]:
    if "tools" not in value:
        return {}
    given = _read_json(value, "tools")
    tools, choice = read_tools(given, "tools"), value.get("tool_choice", ANY)
    named = choice.get("name") if isinstance(choice, dict) else None
    if choice not in (ANY, REQUIRED) and named not in list_names(tools):
        raise BadInput(f"tool_choice: expected {ANY}, {REQUIRED} or one of the tools, got another")
    return {
        "tools": tools,
        "parallel": named is None and value.get("parallel_tool_calls", True) is True,
        "must_call": choice != ANY,
        "must_call_one": named,
        "strict": list_names([tool for tool in given if tool["function"].get("strict")]),
    }


def _read_format(value: Mapping[str, Any]) -> dict[str, Any]:
    if "response_format" not in value:
        return {}
    schema = _read_json(value, "response_format")
    if not isinstance(schema, dict):
        raise BadInput(f"response_format: expected a schema, an object, got {type(schema).__name__}")
    check_json(schema, "response_format")
    return {"schema": schema}


def _read_json(value: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field that is JSON text, with the order of its fields."""
    return parse_json(parse_text(value[name], name).encode("utf-8", "surrogatepass"), name)


def check_labels(labels: Sequence[Sequence[int]]) -> None:
    """Check the number of tokens of labels (`guided_choice` too).

    Raises:
        BadInput: one label, or all together, has too many tokens.
    """
    longest, total = max(map(len, labels), default=0), sum(map(len, labels))
    if longest > MAX_LABEL_TOKENS:
        raise BadInput(f"labels: expected at most {MAX_LABEL_TOKENS} tokens in each, got one of {longest}")
    if total > MAX_LABELS_TOKENS:
        raise BadInput(f"labels: expected at most {MAX_LABELS_TOKENS} tokens in all, got {total}")


def _read_messages(value: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"messages: expected a list with at least one, got {type(messages).__name__}")
    for place, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.get("role") not in _ROLES
            or not isinstance(message.get("content"), str)
        ):
            expected = f"an object with a role of {', '.join(_ROLES)} and text content"
            # The ledger records this message, so it must not contain text of the request.
            raise BadInput(f"message {place}: expected {expected}, got one without them")
    read = [_read_message(message, f"message {place}") for place, message in enumerate(messages)]
    if any(message["role"] == TOOL or "tool_calls" in message for message in read):
        match_results(read, None, "messages")
    return tuple(read)


def _read_message(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    read = {"role": message["role"], "content": message["content"]}
    if "tool_calls" in message and read["role"] == "assistant":
        read["tool_calls"] = read_calls(message["tool_calls"], place)
    if read["role"] == TOOL:
        read["tool_call_id"] = read_id(message.get("tool_call_id"), f"{place}, tool_call_id")
    return read


def _check_length(name: str, texts: Sequence[str], most: int) -> None:
    if (got := sum(map(len, texts))) > most:
        raise BadInput(f"{name}: expected at most {most} characters in all, got {got}")


def _read_texts(value: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    texts = value.get(name, [])
    if not isinstance(texts, list) or len(texts) > most or not all(isinstance(item, str) and item for item in texts):
        raise BadInput(f"{name}: expected at most {most} texts, got {texts!r:.80}")
    return tuple(texts)


def _read_number(value: Mapping[str, Any], name: str, least: float, most: float, *, whole: bool = False) -> float:
    defaults = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    number = value.get(name, defaults[name])
    kinds = (int,) if whole else (int, float)
    if type(number) not in kinds or not least <= number <= most:
        raise BadInput(
            f"{name}: expected {'an integer' if whole else 'a number'} from {least} to {most}, got {number!r:.40}"
        )
    return float(number) if not whole else number


@dataclass(frozen=True)
class Encoded:
    """The token ids of a request's prompt, and of each label with the end-of-turn token."""

    prompt: list[int]
    labels: list[list[int]]


Encode = Callable[[InferenceRequest], Encoded]


def encode_request(chat: Chat, request: InferenceRequest) -> Encoded:
    """Render and tokenize a request.

    Raises:
        BadInput: a text contains a control token, or the template refuses the messages.
    """
    if request.prompt is None:
        text = chat.render(request.messages, request.tools)
    else:
        chat.check_plain(request.prompt, "prompt")
        text = request.prompt
    for label in request.labels:
        chat.check_plain(label, "labels")
    prompt, *labels = chat.encode_all([text, *(chat.answer(label) for label in request.labels)])
    check_labels(labels)
    return Encoded(prompt, labels)
