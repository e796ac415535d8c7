"""What a unit asks for, checked member by member."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.domain.data.tool_calls import (
    TOOL,
    check_json,
    list_names,
    match_results,
    parse_strict,
    read_calls,
    read_id,
    read_tools,
)
from appliance.errors import BadInput

MAX_STOPS = 4
MAX_LABELS = 1000
# Characters: of one stop text, of all labels, and of the prompt or all messages.
MAX_STOP = 256
MAX_LABEL_TEXT = 65_536
MAX_TEXT = 200_000
# Tokens, each label with the end of its turn: of one, so that a pass takes it, and of all.
MAX_LABEL_TOKENS = 256
MAX_LABELS_TOKENS = 8_192
# Below it a request is greedy, as in vLLM: bf16 logits that differ leave nothing to chance, and less than 1e-37
# divides them into what is no number.
LEAST_TEMPERATURE = 1e-5
_ROLES = ("system", "user", "assistant", TOOL)
ANY, REQUIRED = "auto", "required"


@dataclass(frozen=True)
class Request:
    """What to answer and how. `temperature` 0, or next to it, takes the likeliest token; `seed` fixes every draw.

    `prompt`: a text to continue, in place of messages. `labels`: the allowed answers; none allows any. `tools`: what
    the answer may call, in parallel or once; with `must_call` it does, with `must_call_one` this one. `strict`: names
    of tools whose calls are of their schemas; with `must_call` all are. `schema`: what an answer that is no call is
    JSON of. `scope`: the service's own; requests of a slot share the beginnings of prompts where it is the same, and
    nothing where it is None.
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
        """Characters that become tokens."""
        texts = [self.prompt or "", *self.labels, *(message["content"] for message in self.messages)]
        texts += [json.dumps(message["tool_calls"]) for message in self.messages if "tool_calls" in message]
        return sum(map(len, texts)) + len(json.dumps(self.tools))

    @property
    def is_held(self) -> bool:
        """Whether its answer is held to a grammar, which takes some milliseconds to make."""
        return self.must_call or bool(self.strict) or self.schema is not None

    @property
    def is_greedy(self) -> bool:
        """Whether no draw is left to chance. Logits that are divided by less are no numbers any more."""
        return self.temperature < LEAST_TEMPERATURE


def parse_request(value: Mapping[str, Any]) -> Request:
    """A request's members, checked; BadInput names the one that is off."""
    prompt = value.get("prompt")
    if prompt is not None and (not isinstance(prompt, str) or not prompt or "messages" in value):
        got = "messages too" if "messages" in value else "an empty text" if prompt == "" else type(prompt).__name__
        raise BadInput(f"prompt: expected a text that is not empty, and no messages with it, got {got}")
    messages = _messages(value) if prompt is None else ()
    contents = [message["content"] for message in messages]
    _check_length("prompt" if prompt else "messages", contents or [prompt or ""], MAX_TEXT)
    stop = _texts(value, "stop", MAX_STOPS)
    if (longest := max(map(len, stop), default=0)) > MAX_STOP:
        raise BadInput(f"stop: expected at most {MAX_STOP} characters in each, got one of {longest}")
    labels = _texts(value, "labels", MAX_LABELS)
    _check_length("labels", labels, MAX_LABEL_TEXT)
    if len(set(labels)) < len(labels):
        raise BadInput("labels: expected each one once, got one twice")
    held, scope = _read_tools(value) | _read_format(value), value.get("scope")
    if scope is not None and not isinstance(scope, str):
        raise BadInput(f"scope: expected a text, got {type(scope).__name__}")
    if labels and held:
        raise BadInput("labels: expected none beside tools or a response_format, got some")
    return Request(
        messages=messages,
        max_tokens=int(_number(value, "max_tokens", 1, 1 << 20, whole=True)),
        temperature=_number(value, "temperature", 0, 2),
        top_p=_number(value, "top_p", 0, 1),
        seed=int(_number(value, "seed", 0, 2**63 - 1, whole=True)),
        stop=stop,
        prompt=prompt,
        labels=labels,
        scope=scope,
        **held,
    )


def _read_tools(value: Mapping[str, Any]) -> dict[str, Any]:
    if "tools" not in value:
        return {}
    given = _json(value, "tools")
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
    schema = _json(value, "response_format")
    if not isinstance(schema, dict):
        raise BadInput(f"response_format: expected a schema, an object, got {type(schema).__name__}")
    check_json(schema, "response_format")
    return {"schema": schema}


def _json(value: Mapping[str, Any], name: str) -> Any:
    """A member that comes as JSON text, in the order of its members."""
    try:
        return parse_strict(value[name])
    except (ValueError, TypeError):
        raise BadInput(f"{name}: expected JSON text, got something else") from None


def check_labels(labels: Sequence[Sequence[int]]) -> None:
    """BadInput where the labels have too many tokens, one of them or all together; `guided_choice` are labels too."""
    longest, total = max(map(len, labels), default=0), sum(map(len, labels))
    if longest > MAX_LABEL_TOKENS:
        raise BadInput(f"labels: expected at most {MAX_LABEL_TOKENS} tokens in each, got one of {longest}")
    if total > MAX_LABELS_TOKENS:
        raise BadInput(f"labels: expected at most {MAX_LABELS_TOKENS} tokens in all, got {total}")


def _messages(value: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
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
            # The ledger keeps this message, and no text of a request.
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


def _texts(value: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    texts = value.get(name, [])
    if not isinstance(texts, list) or len(texts) > most or not all(isinstance(item, str) and item for item in texts):
        raise BadInput(f"{name}: expected at most {most} texts, got {texts!r:.80}")
    return tuple(texts)


def _number(value: Mapping[str, Any], name: str, least: float, most: float, *, whole: bool = False) -> float:
    defaults = {"max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    number = value.get(name, defaults[name])
    kinds = (int,) if whole else (int, float)
    if type(number) not in kinds or not least <= number <= most:
        raise BadInput(
            f"{name}: expected {'an integer' if whole else 'a number'} from {least} to {most}, got {number!r:.40}"
        )
    return float(number) if not whole else number
