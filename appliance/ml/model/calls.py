"""How a model writes calls of tools: the forms that are known, and which of them a chat template writes.

What a model wrote is data of a stranger: what is no call of the form is text. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from appliance.domain.data.tool_calls import encode_json, parse_strict
from appliance.errors import BadInput

Name = Literal["hermes", "llama", "mistral", "mistral-arguments"]


@dataclass(frozen=True)
class Call:
    """A tool's name and the arguments, an object."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The arguments as JSON text."""
        return encode_json(self.arguments)


@dataclass(frozen=True)
class Found:
    """What begins a text as one or more calls: how many characters it takes; None where it is no call."""

    end: int
    calls: tuple[Call, ...] | None


def _read_hermes(text: str, last: bool) -> Found | None:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes, Qwen 2.5 and 3, SmolLM3 and Granite 4."""
    whole = _HERMES.match(text)
    if whole is None and not last:
        return None
    if whole is not None and (call := _read_object(whole[1], ("arguments",))) is not None:
        return Found(whole.end(), (call,))
    body, end, _ = text.partition("</tool_call>")
    return Found(len(body + end), None)


_HERMES = re.compile(r'<tool_call>((?:[^"<]++|"(?:[^"\\]++|\\.)*+"|<(?!/tool_call>))*+)</tool_call>', re.DOTALL)
"""Up to the first `</tool_call>` outside JSON's strings: an argument may hold one."""


def _read_llama(text: str, last: bool) -> Found | None:
    """`{"name": …, "parameters": {…}}` and nothing else, as Llama 3.1, 3.2 and 3.3; <|python_tag|> may stand before."""
    body = text.removeprefix("<|python_tag|>").lstrip()
    if _OTHER_OBJECT.match(body):
        return Found(len(text), None)
    if not last:
        return None
    call = _read_object(body, ("parameters", "arguments"))
    return Found(len(text), None if call is None else (call,))


_OTHER_OBJECT = re.compile(r'\{\s*(?:"(?!name"|type"|parameters"|function"|arguments")[^"]*"|[^\s"])')
"""The beginning of an object that is no call."""


def _read_mistral(text: str, last: bool) -> Found | None:
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}]`, as Mistral 7B v0.3 and Nemo."""
    body = text.removeprefix("[TOOL_CALLS]")
    found = _decode(body) if last or "]" in body else None
    if found is None:
        return Found(len(text), None) if last else None
    values, end = found
    calls = [_as_call(value, ("arguments",)) for value in values] if isinstance(values, list) and values else [None]
    whole = tuple(call for call in calls if call is not None)
    return Found(len(text) - len(body) + end, whole if len(whole) == len(calls) else None)


def _read_mistral_arguments(text: str, last: bool) -> Found | None:
    """`[TOOL_CALLS]name[ARGS]{…}`, as Ministral 3 and Mistral Small 3.2; [CALL_ID] and an id may stand between."""
    head = _NAMED.match(text)
    found = _decode(text[head.end() :]) if head and (last or "}" in text) else None
    if head is None or found is None:
        return Found(len(text), None) if last or (head is None and len(text) > 512) else None
    arguments, end = found
    call = _as_call({"name": head[1], "arguments": arguments}, ("arguments",))
    return Found(head.end() + end, None if call is None else (call,))


_NAMED = re.compile(r"\[TOOL_CALLS\]\s*([^\[\]\s{}]{1,64})\s*(?:\[CALL_ID\][^\[\]]{0,64})?\[ARGS\]")


def _decode(text: str) -> tuple[Any, int] | None:
    """The JSON value that the text begins with, white space aside, and where it ends."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = _DECODER.raw_decode(text, start)
        return parse_strict(text[start:end]), end
    except (ValueError, RecursionError):
        return None


_DECODER = json.JSONDecoder()


def _read_object(text: str, members: Sequence[str]) -> Call | None:
    found = _decode(text)
    return None if found is None or text[found[1] :].strip() else _as_call(found[0], members)


def _as_call(value: Any, members: Sequence[str]) -> Call | None:
    """`members`: under which the arguments may stand."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    arguments = next((value[name] for name in members if name in value), None)
    name = value.get("name")
    if not isinstance(name, str) or not isinstance(arguments, dict) or value.keys() - {"name", "id", "type", *members}:
        return None
    call = Call(name, arguments)
    try:
        call.text.encode("utf-8")
    except (ValueError, RecursionError):
        return None  # half of a surrogate pair has no UTF-8
    return call


@dataclass(frozen=True)
class _Kind:
    """`marker`: what calls begin with; where there is none, an answer that begins with `{` may be one. `reserved`: what
    only the template may write."""

    name: Name
    marker: str
    read: Callable[[str, bool], Found | None]
    reserved: tuple[str, ...]


_KINDS = (
    _Kind(
        "hermes", "<tool_call>", _read_hermes, ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    ),
    _Kind(
        "mistral-arguments",
        "[TOOL_CALLS]",
        _read_mistral_arguments,
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[TOOL_RESULTS]"),
    ),
    _Kind("mistral", "[TOOL_CALLS]", _read_mistral, ("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")),
    _Kind("llama", "", _read_llama, ("<|python_tag|>",)),
)


@dataclass(frozen=True)
class CallForm:
    """The form in which a template writes calls.

    `before`, `between` and `after`: what it writes around the calls' bodies, `between` being None where it takes one
    call a turn. `members`: of a body, in the template's order; empty where a body is a name and its arguments, with
    `inner` between them.
    """

    kind: _Kind
    before: str
    between: str | None
    after: str
    members: tuple[str, ...]
    inner: str = ""

    @property
    def name(self) -> Name:
        return self.kind.name

    @property
    def marker(self) -> str:
        return self.kind.marker

    @property
    def reserved(self) -> tuple[str, ...]:
        return self.kind.reserved

    def read(self, text: str, *, last: bool) -> Found | None:
        """What a text that may begin with calls begins with; None while that is open. `last`: no more follows."""
        return self.kind.read(text, last)

    def read_answer(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """A whole answer as what it says and what it calls."""
        said, calls = "", list[Call]()
        while text:
            start = self.find(text, begun=bool(said.strip() or calls))
            if start is None:
                break
            found = self.read(text[start:], last=True)
            assert found is not None
            calls += found.calls or ()
            said += text[: start if found.calls is not None else start + found.end]
            text = text[start + found.end :]
        return (said + text).strip() if calls else said + text, tuple(calls)

    def find(self, text: str, *, begun: bool) -> int | None:
        """Where calls may begin. `begun`: whether the answer has said something."""
        if self.marker:
            place = text.find(self.marker)
            return None if place < 0 else place
        bare = text.lstrip()
        return None if begun or not bare.startswith(("{", "<|python_tag|>")) else len(text) - len(bare)


PROBE = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "Looks for a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
PROBE_ID = "probe0000"
_RESULT = "the result stands here"
Render = Callable[[list[dict[str, Any]], bool], str]
"""Renders messages with the probe's tool; and whether for the next answer."""


def find_form(render: Render, end_of_turn: str) -> CallForm:
    """The form in which a template writes calls. BadInput says what it lacks."""
    name, question = PROBE["function"]["name"], {"role": "user", "content": "a question"}  # type: ignore[index]
    prompt = render([question], True)
    if name not in prompt:
        raise BadInput("expected a template that takes tools, got one that does not write them into the prompt")
    one = _answer(render, question, prompt, end_of_turn, 1)
    read = [(kind, spans) for kind in _KINDS if (spans := _read_probe(kind, one, 1))]
    if not read:
        raise BadInput(
            "expected calls in the form of Hermes, Llama 3 or Mistral, got a template that writes none of these: "
            f"{one[:80]!r}"
        )
    kind, ((start, end),) = read[0]
    called = {**_calls(1), "role": "assistant"}
    result = {"role": "tool", "content": _RESULT, "tool_call_id": called["tool_calls"][0]["id"], "name": name}
    if _RESULT not in render([question, called, result], True):
        raise BadInput("expected a template that takes results of tools, got one that does not write them")
    try:
        two = _answer(render, question, prompt, end_of_turn, 2)
    except BadInput:
        two = ""  # such as Llama's, which takes one call a turn
    both = _read_probe(kind, two, 2)
    between = None if both is None else two[both[0][1] : both[1][0]]
    body = one[start:end]
    members = tuple(json.loads(body)) if body.startswith("{") else ()
    inner = "" if members else body[len(str(name)) : body.index("{")]
    return CallForm(kind, one[:start], between, one[end:], members, inner)


def _calls(count: int) -> dict[str, Any]:
    """A message's calls of the probe."""
    function = {"name": PROBE["function"]["name"], "arguments": {"word": "found"}}  # type: ignore[index]
    return {
        "content": "",
        "tool_calls": [{"id": PROBE_ID[:-1] + str(n), "type": "function", "function": function} for n in range(count)],
    }


def _answer(render: Render, question: dict[str, Any], prompt: str, end_of_turn: str, count: int) -> str:
    whole = render([question, {**_calls(count), "role": "assistant"}], False)
    if not whole.startswith(prompt) or end_of_turn not in whole[len(prompt) :]:
        raise BadInput("expected calls behind the prompt that asks for them, got a template that writes another prompt")
    return whole[len(prompt) :].split(end_of_turn)[0]


def _read_probe(kind: _Kind, answer: str, count: int) -> list[tuple[int, int]] | None:
    """Where the bodies of the probe's calls stand in a template's answer; None where it has not this form."""
    name = str(PROBE["function"]["name"])  # type: ignore[index]
    if not answer.lstrip().startswith(kind.marker):
        return None
    form = CallForm(kind, "", None, "", ())
    said, calls = form.read_answer(answer)
    if said or [(call.name, call.arguments) for call in calls] != [(name, {"word": "found"})] * count:
        return None
    spans, place = list[tuple[int, int]](), 0
    for _ in range(count):
        span = _find_body(kind, answer, name, place)
        if span is None:
            return None
        spans.append(span)
        place = span[1]
    return spans


def _find_body(kind: _Kind, answer: str, name: str, place: int) -> tuple[int, int] | None:
    if kind.name == "mistral-arguments":
        start = answer.index(name, place)
        found = _decode(answer[answer.index("{", start) :])
        return None if found is None else (start, answer.index("{", start) + found[1])
    for match in re.compile(r"\{").finditer(answer, place):
        found = _decode(answer[match.start() :])
        if found is not None and isinstance(found[0], dict) and found[0].get("name") == name:
            return match.start(), match.start() + found[1]
    return None
