"""Tools, tool calls and tool results in a conversation, in the form of OpenAI's API.

Dataset rows and unit requests have the same form. Error messages name the place of the fault. OpenAI writes a call's
arguments as JSON text; this module converts them to objects, which the chat templates of transformers expect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.errors import BadInput, TooLarge
from appliance.formats.core.canonical import parse_json

MAX_TOOLS = 128
MAX_TOOLS_TEXT = 65_536
"""Most characters of all tools of a conversation, as JSON."""
MAX_CALLS = 32
"""Most calls in one message."""
MAX_DEPTH = 32
"""Most levels of nesting in a tool's schema, or in a call's arguments."""
TOOL = "tool"

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_ID = re.compile(r"[\x21-\x7e]{1,64}")
_FUNCTION_FIELDS = {"name", "description", "parameters", "strict", "return"}

Value = dict[str, Any]


def read_tools(value: object, place: str) -> tuple[Value, ...]:
    """Read the tools of a conversation, in the form that a chat template expects.

    `strict` is checked and removed: it says how the response is generated and is no part of the prompt.

    Raises: BadInput for malformed tools or a name that occurs twice, TooLarge for more than MAX_TOOLS_TEXT characters.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise BadInput(f"{place}: expected a list of 1 to {MAX_TOOLS} tools, got {_describe_count(value)}")
    check_json(value, place)
    tools = tuple(_read_tool(one, f"{place}, number {number}") for number, one in enumerate(value))
    if (got := len(encode_json(tools))) > MAX_TOOLS_TEXT:
        raise TooLarge(f"{place}: expected at most {MAX_TOOLS_TEXT} characters as JSON, got {got}")
    names = list_names(tools)
    for number, name in enumerate(names):
        if name in names[:number]:
            raise BadInput(f"{place}, number {number}: expected tools of different names, got {name!r} again")
    return tools


def list_names(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(tool["function"]["name"] for tool in tools)


def _read_tool(value: object, place: str) -> Value:
    if not isinstance(value, dict) or value.get("type") != "function" or value.keys() != {"type", "function"}:
        raise BadInput(f'{place}: expected {{"type": "function", "function": {{…}}}}, got {_describe_fields(value)}')
    function = value["function"]
    if not isinstance(function, dict) or (unknown := function.keys() - _FUNCTION_FIELDS):
        got = type(function).__name__ if not isinstance(function, dict) else f"the field {min(unknown)!r:.40}"
        raise BadInput(f"{place}, function: expected the fields {', '.join(sorted(_FUNCTION_FIELDS))}, got {got}")
    read_name(function.get("name"), f"{place}, function")
    for name, kind, words in (("description", str, "text"), ("parameters", dict, "an object, a JSON schema")):
        if not isinstance(function.get(name), kind | None):
            raise BadInput(f"{place}, function, {name}: expected {words}, got {type(function[name]).__name__}")
    if not isinstance(function.get("strict"), bool | None):
        raise BadInput(f"{place}, function, strict: expected true or false, got {type(function['strict']).__name__}")
    fields = {name: field for name, field in function.items() if name != "strict" and field is not None}
    return {"type": "function", "function": fields}


def read_calls(value: object, place: str) -> list[Value]:
    """Read the calls of a message, each with its id, if it has one, and an object as arguments.

    `match_results` gives an id to calls without one.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CALLS:
        raise BadInput(f"{place}, tool_calls: expected a list of 1 to {MAX_CALLS} calls, got {_describe_count(value)}")
    return [_read_call(one, f"{place}, call {number}") for number, one in enumerate(value)]


def _read_call(value: object, place: str) -> Value:
    if not isinstance(value, dict) or value.keys() - {"id", "type", "function"}:
        raise BadInput(f"{place}: expected an id, the type function and a function, got {_describe_fields(value)}")
    if value.get("type", "function") != "function":
        raise BadInput(f"{place}: expected the type function, got {value.get('type')!r:.40}")
    function = value.get("function")
    if not isinstance(function, dict) or function.keys() - {"name", "arguments"}:
        raise BadInput(f"{place}, function: expected a name and arguments, got {_describe_fields(function)}")
    name = read_name(function.get("name"), place)
    arguments = read_arguments(function.get("arguments"), f"{place}, {name}")
    found: Value = {} if value.get("id") is None else {"id": read_id(value["id"], place)}
    return {**found, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_name(value: object, place: str) -> str:
    """Read a tool's name.

    Raises: BadInput unless it has 1 to 64 letters, digits and characters of `_.-`.
    """
    if value is None:
        raise BadInput(f"{place}: expected a name, got none")
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        got = repr(value)[:80] if isinstance(value, str) else type(value).__name__
        raise BadInput(f"{place}: expected a name of 1 to 64 letters, digits and signs of _.-, got {got}")
    return value


def read_id(value: object, place: str) -> str:
    """Read a call's id.

    Raises: BadInput unless it has 1 to 64 printable ASCII characters without spaces.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        got = repr(value)[:80] if isinstance(value, str) else type(value).__name__
        raise BadInput(f"{place}: expected an id of 1 to 64 printable characters without spaces, got {got}")
    return value


def read_arguments(value: Any, place: str) -> Value:
    """Read a call's arguments as an object. They may be an object or, as OpenAI writes them, JSON text."""
    if value is None:
        raise BadInput(f"{place}, arguments: expected a JSON object, as text or as it is, got none")
    if isinstance(value, str):
        try:
            value = parse_json(value.encode("utf-8", "surrogatepass"), place)
        except BadInput:
            raise BadInput(f"{place}, arguments: expected a JSON object as text, got {value[:40]!r}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{place}, arguments: expected a JSON object, got {type(value).__name__}")
    check_json(value, f"{place}, arguments")
    return value


def check_json(value: object, place: str) -> None:
    """Check that a value can be written as JSON.

    Raises: BadInput for NaN, an infinity, an unpaired surrogate, or too many levels (MAX_DEPTH, and four for what
        encloses it).
    """
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH + 4:
            raise BadInput(f"{place}: expected at most {MAX_DEPTH} levels, got more")
        level = [inner for one in level for inner in _list_children(one)]
    try:
        encode_json(value).encode("utf-8")
    except ValueError as error:
        got = "half of a surrogate pair" if isinstance(error, UnicodeError) else "a number that JSON does not have"
        raise BadInput(f"{place}: expected JSON, got {got}") from None


def _list_children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def encode_json(value: object) -> str:
    """Encode a value as JSON, with the fields in their order.

    Raises: ValueError for NaN and infinities.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def canonical_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a text that is the same for two equal calls: the name, and the arguments with their fields sorted.

    Equal numbers have the same text: 1, 1.0 and 1e0.
    """
    return json.dumps([name, _normalise_numbers(arguments)], sort_keys=True, ensure_ascii=False)


def _normalise_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _normalise_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_normalise_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def match_results(messages: Sequence[Value], names: Sequence[str] | None, place: str) -> None:
    """Match the tool results of a conversation to its calls, and give an id to those that have none.

    Calls and results of a turn are matched by their ids or, where the results have none, by their order. A conversation
    may end with calls. `names` are the names of the available tools; None allows any.

    Raises: BadInput for a result without a call, a call without a result, an id that occurs twice, or a call of an
        unavailable tool.
    """
    seen: set[str] = set()
    waiting: list[Value] = []
    for number, message in enumerate(messages):
        location = f"{place}, message {number}"
        if message["role"] == TOOL:
            _match_result(message, waiting, seen, location)
            continue
        if waiting:
            got = f"a message of the {message['role']}"
            raise BadInput(f"{location}: expected a result of the call {_describe_call(waiting[0])}, got {got}")
        waiting = list(message.get("tool_calls", ()))
        _check_called(waiting, names, seen, location)


def _check_called(calls: Sequence[Value], names: Sequence[str] | None, seen: set[str], place: str) -> None:
    for number, call in enumerate(calls):
        name = call["function"]["name"]
        if names is not None and name not in names:
            known = ", ".join(names) or "none"
            raise BadInput(f"{place}, call {number}: expected one of the tools {known:.200}, got {name!r}")
        # Ids of nine letters and digits, the only form that Mistral's templates accept.
        call.setdefault("id", f"call{len(seen):05}")
        if call["id"] in seen:
            raise BadInput(f"{place}, call {number}: expected an id of its own, got {call['id']!r} again")
        seen.add(call["id"])


def _match_result(message: Value, waiting: list[Value], seen: set[str], place: str) -> None:
    wanted = message.get("tool_call_id")
    if not waiting:
        got = "a second one of that call" if wanted in seen else "one without a call"
        raise BadInput(f"{place}: expected a result of a call before it, got {got}")
    call = next((call for call in waiting if wanted in (None, call["id"])), None)
    if call is None:
        expected = " or ".join(_describe_call(call) for call in waiting)
        raise BadInput(f"{place}, tool_call_id: expected that of the call {expected}, got {wanted!r}")
    name = call["function"]["name"]
    if message.get("name", name) != name:
        raise BadInput(f"{place}, name: expected {name}, which the call {call['id']!r} names, got {message['name']!r}")
    message |= {"tool_call_id": call["id"], "name": name}
    waiting.remove(call)


def _describe_call(call: Value) -> str:
    return f"{call['function']['name']} ({call['id']})"


def _describe_count(value: object) -> str:
    return str(len(value)) if isinstance(value, list) else type(value).__name__


def _describe_fields(value: object) -> str:
    if not isinstance(value, dict):
        return "nothing" if value is None else type(value).__name__
    return f"the fields {', '.join(map(str, value))}"[:120] if value else "no fields"
