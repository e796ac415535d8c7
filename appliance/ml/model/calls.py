"""Text forms of tool calls: the supported forms, and detection of the form that a chat template writes.

The model's output is untrusted. Output that does not parse as a call is treated as text. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from appliance.domain.data.tool_calls import MAX_CALLS, encode_json
from appliance.errors import BadInput
from appliance.formats.core.canonical import parse_json

Name = Literal["hermes", "llama", "mistral", "mistral-arguments"]


@dataclass(frozen=True)
class Call:
    """A tool call: the tool's name and its arguments, a JSON object."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The arguments as JSON text."""
        return encode_json(self.arguments)


@dataclass(frozen=True)
class ParsedCalls:
    """The result of parsing the start of a text.

    `end` is the number of characters parsed. `calls` are the calls found; None if those characters are not a call.
    """

    end: int
    calls: tuple[Call, ...] | None


def _read_hermes(text: str, last: bool) -> ParsedCalls | None:
    """Parse `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4)."""
    whole = _HERMES.match(text)
    if whole is None and not last:
        return None
    if whole is not None and (call := _read_object(whole[1], ("arguments",))) is not None:
        return ParsedCalls(whole.end(), (call,))
    body, end, _ = text.partition("</tool_call>")
    return ParsedCalls(len(body + end), None)


_HERMES = re.compile(r'<tool_call>((?:[^"<]++|"(?:[^"\\]++|\\.)*+"|<(?!/tool_call>))*+)</tool_call>', re.DOTALL)
"""Pattern of a call up to the first `</tool_call>` outside JSON strings; an argument may contain that text."""


def _read_llama(text: str, last: bool) -> ParsedCalls | None:
    """Parse a text that is only `{"name": …, "parameters": {…}}` (Llama 3), optionally after <|python_tag|>."""
    body = text.removeprefix("<|python_tag|>").lstrip()
    if _OTHER_OBJECT.match(body):
        return ParsedCalls(len(text), None)
    if not last:
        return None
    call = _read_object(body, ("parameters", "arguments"))
    return ParsedCalls(len(text), None if call is None else (call,))


_OTHER_OBJECT = re.compile(r'\{\s*(?:"(?!name"|type"|parameters"|function"|arguments")[^"]*"|[^\s"])')
"""Pattern of the beginning of a JSON object that is not a call."""


def _read_mistral(text: str, last: bool) -> ParsedCalls | None:
    """Parse `[TOOL_CALLS][{"name": …, "arguments": {…}}]` (Mistral 7B v0.3, Nemo)."""
    body = text.removeprefix("[TOOL_CALLS]")
    found = _decode(body) if last or "]" in body else None
    if found is None:
        return ParsedCalls(len(text), None) if last else None
    values, end = found
    calls = [_as_call(value, ("arguments",)) for value in values] if isinstance(values, list) and values else [None]
    whole = tuple(call for call in calls if call is not None)
    return ParsedCalls(len(text) - len(body) + end, whole if len(whole) == len(calls) else None)


def _read_mistral_arguments(text: str, last: bool) -> ParsedCalls | None:
    """Parse `[TOOL_CALLS]name[ARGS]{…}` (Ministral 3, Mistral Small 3.2), optionally with [CALL_ID] and an id."""
    head = _NAMED.match(text)
    found = _decode(text[head.end() :]) if head and (last or "}" in text) else None
    if head is None or found is None:
        return ParsedCalls(len(text), None) if last or (head is None and len(text) > 512) else None
    arguments, end = found
    call = _as_call({"name": head[1], "arguments": arguments}, ("arguments",))
    return ParsedCalls(head.end() + end, None if call is None else (call,))


_NAMED = re.compile(r"\[TOOL_CALLS\]\s*([^\[\]\s{}]{1,64})\s*(?:\[CALL_ID\][^\[\]]{0,64})?\[ARGS\]")


def _decode(text: str) -> tuple[Any, int] | None:
    """Return the JSON value at the start of a text, after white space, and its end index; None if there is none."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = _DECODER.raw_decode(text, start)
        return parse_json(text[start:end].encode(), "call"), end
    except (BadInput, ValueError, RecursionError):
        return None


_DECODER = json.JSONDecoder()


def _read_object(text: str, members: Sequence[str]) -> Call | None:
    found = _decode(text)
    return None if found is None or text[found[1] :].strip() else _as_call(found[0], members)


def _as_call(value: Any, members: Sequence[str]) -> Call | None:
    """Return the call that a JSON value represents; None if it is not a call.

    `members` are the names under which the arguments may be stored.
    """
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
    """A form of tool calls.

    `marker` is the text at the start of calls; if empty, an output that begins with `{` may be a call. `reserved` are
    texts that only the template may write.
    """

    name: Name
    marker: str
    read: Callable[[str, bool], ParsedCalls | None]
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

    `before`, `between` and `after` are the texts around the bodies of calls; `between` is None if the template writes
    one call per turn. `members` are the names in a body, in the template's order. It is empty if a body is a name and
    its arguments, separated by `inner`.
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

    def read(self, text: str, *, last: bool) -> ParsedCalls | None:
        """Parse the start of a text that may begin with calls; return None if more text is needed.

        `last` is True if the text is complete.
        """
        return self.kind.read(text, last)

    def read_answer(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """Split a complete output into its text and its calls."""
        text_part, calls = "", list[Call]()
        while text:
            start = self.find(text, begun=bool(text_part.strip() or calls))
            if start is None:
                break
            found = self.read(text[start:], last=True)
            assert found is not None
            calls += found.calls or ()
            text_part += text[: start if found.calls is not None else start + found.end]
            text = text[start + found.end :]
        return (text_part + text).strip() if calls else text_part + text, tuple(calls)

    def find(self, text: str, *, begun: bool) -> int | None:
        """Return the index at which calls may begin; None if there is none.

        `begun` is True if the output has text or calls already.
        """
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
"""Function that renders messages with the probe tool; the flag asks for the next assistant turn."""


def find_form(render: Render, end_of_turn: str) -> CallForm:
    """Return the form in which a template writes calls.

    Raises:
        BadInput: the template does not support tools; the message says which part is missing.
    """
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
    """Return an assistant message's fields with `count` calls of the probe tool."""
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
    """Return the spans of the probe's calls in a template's output; None if they do not have this form."""
    name = str(PROBE["function"]["name"])  # type: ignore[index]
    if not answer.lstrip().startswith(kind.marker):
        return None
    form = CallForm(kind, "", None, "", ())
    text_part, calls = form.read_answer(answer)
    if text_part or [(call.name, call.arguments) for call in calls] != [(name, {"word": "found"})] * count:
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


@dataclass(frozen=True)
class CallOutput:
    """Output that is not shown as text: `text` as the model wrote it, and the calls in it, if any."""

    text: str
    calls: tuple[Call, ...]


class CallStream:
    """Separator of text and calls in a streamed output.

    `names` are the tools that may be called; a call of another tool is text. `most` is the largest number of calls.
    """

    def __init__(self, form: CallForm, names: Collection[str], most: int = MAX_CALLS) -> None:
        self._form, self._names, self._most = form, names, most
        self._buffer = ""
        self._begun = False
        self.calls = 0

    @property
    def full(self) -> bool:
        """True if the output has the largest number of calls."""
        return self.calls >= self._most

    def push(self, piece: str) -> list[str | CallOutput]:
        """Add a piece of output and return the text and calls that are now certain."""
        self._buffer += piece
        return self._take(last=False)

    def finish(self) -> list[str | CallOutput]:
        """Return the remaining text and calls, after the last piece."""
        parts = self._take(last=True)
        if self._buffer:
            # White space after the last call is not part of the text.
            parts.append(CallOutput(self._buffer, ()) if self.calls else self._buffer)
        self._buffer = ""
        return parts

    def _take(self, *, last: bool) -> list[str | CallOutput]:
        parts: list[str | CallOutput] = []
        while self._buffer and not self.full:
            start = self._form.find(self._buffer, begun=self._begun)
            if start is None:
                parts += self._release_text(len(self._buffer.rstrip()) if last else self._count_plain_characters())
                break
            parts += self._release_text(len(self._buffer[:start].rstrip()))
            blank = len(self._buffer) - len(self._buffer.lstrip())
            found = self._form.read(self._buffer[blank:], last=last)
            if found is None:
                break
            calls = found.calls
            if calls is None or not all(call.name in self._names for call in calls):
                parts += self._release_text(blank + found.end)
                continue
            calls = calls[: self._most - self.calls]
            self.calls += len(calls)
            self._begun = True
            parts.append(CallOutput(self._buffer[: blank + found.end], calls))
            self._buffer = self._buffer[blank + found.end :]
        return parts

    def _release_text(self, length: int) -> list[str | CallOutput]:
        """Remove the first `length` characters from the buffer and return them as text."""
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        self._begun = self._begun or bool(text.strip())
        return [text] if text else []

    def _count_plain_characters(self) -> int:
        """Return the number of leading characters that cannot belong to a call or the white space before it."""
        marker = self._form.marker or ("" if self._begun else "<|python_tag|>")
        text = self._buffer
        for length in range(min(len(marker) - 1, len(text)), 0, -1):
            if text.endswith(marker[:length]):
                text = text[:-length]
                break
        return len(text.rstrip())
