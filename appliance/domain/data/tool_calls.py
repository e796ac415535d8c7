"""Tools, calls and results as a conversation of OpenAI's interface has them, checked member by member.

A dataset's rows and a unit's requests have the same form. What is wrong is said with its place; a call's arguments are
JSON text there and an object here, as transformers' templates want them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from appliance.errors import BadInput, TooLarge

MAX_TOOLS = 128
MAX_TOOLS_TEXT = 65_536
"""Characters of all tools of a conversation, as JSON."""
MAX_CALLS = 32
"""Calls of one message."""
MAX_DEPTH = 32
"""Levels of a tool's schema, or of a call's arguments."""
TOOL = "tool"

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_ID = re.compile(r"[\x21-\x7e]{1,64}")
_OF_FUNCTION = {"name", "description", "parameters", "strict", "return"}

Value = dict[str, Any]


def read_tools(value: object, place: str) -> tuple[Value, ...]:
    """The tools as a template is given them: without `strict`, which says how an answer is drawn."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise BadInput(f"{place}: expected a list of 1 to {MAX_TOOLS} tools, got {_count(value)}")
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
        raise BadInput(f'{place}: expected {{"type": "function", "function": {{…}}}}, got {_form(value)}')
    function = value["function"]
    if not isinstance(function, dict) or (more := function.keys() - _OF_FUNCTION):
        got = type(function).__name__ if not isinstance(function, dict) else f"the member {min(more)!r:.40}"
        raise BadInput(f"{place}, function: expected the members {', '.join(sorted(_OF_FUNCTION))}, got {got}")
    read_name(function.get("name"), f"{place}, function")
    for name, kind, words in (("description", str, "text"), ("parameters", dict, "an object, a JSON schema")):
        if not isinstance(function.get(name), kind | None):
            raise BadInput(f"{place}, function, {name}: expected {words}, got {type(function[name]).__name__}")
    if not isinstance(function.get("strict"), bool | None):
        raise BadInput(f"{place}, function, strict: expected true or false, got {type(function['strict']).__name__}")
    kept = {name: one for name, one in function.items() if name != "strict" and one is not None}
    return {"type": "function", "function": kept}


def read_calls(value: object, place: str) -> list[Value]:
    """A message's calls, each with its id and an object as arguments; a call without an id gets one."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CALLS:
        raise BadInput(f"{place}, tool_calls: expected a list of 1 to {MAX_CALLS} calls, got {_count(value)}")
    return [_read_call(one, f"{place}, call {number}") for number, one in enumerate(value)]


def _read_call(value: object, place: str) -> Value:
    if not isinstance(value, dict) or value.keys() - {"id", "type", "function"}:
        raise BadInput(f"{place}: expected an id, the type function and a function, got {_form(value)}")
    if value.get("type", "function") != "function":
        raise BadInput(f"{place}: expected the type function, got {value.get('type')!r:.40}")
    function = value.get("function")
    if not isinstance(function, dict) or function.keys() - {"name", "arguments"}:
        raise BadInput(f"{place}, function: expected a name and arguments, got {_form(function)}")
    name = read_name(function.get("name"), place)
    arguments = read_arguments(function.get("arguments"), f"{place}, {name}")
    found: Value = {} if value.get("id") is None else {"id": read_id(value["id"], place)}
    return {**found, "type": "function", "function": {"name": name, "arguments": arguments}}


def read_name(value: object, place: str) -> str:
    """A tool's name."""
    if value is None:
        raise BadInput(f"{place}: expected a name, got none")
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        got = repr(value)[:80] if isinstance(value, str) else type(value).__name__
        raise BadInput(f"{place}: expected a name of 1 to 64 letters, digits and signs of _.-, got {got}")
    return value


def read_id(value: object, place: str) -> str:
    """A call's id."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        got = repr(value)[:80] if isinstance(value, str) else type(value).__name__
        raise BadInput(f"{place}: expected an id of 1 to 64 printable characters without spaces, got {got}")
    return value


def read_arguments(value: Any, place: str) -> Value:
    """A call's arguments as an object: OpenAI writes them as JSON text."""
    if value is None:
        raise BadInput(f"{place}, arguments: expected a JSON object, as text or as it is, got none")
    if isinstance(value, str):
        try:
            value = parse_strict(value)
        except ValueError:
            raise BadInput(f"{place}, arguments: expected a JSON object as text, got {value[:40]!r}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{place}, arguments: expected a JSON object, got {type(value).__name__}")
    check_json(value, f"{place}, arguments")
    return value


def check_json(value: object, place: str) -> None:
    """BadInput for what has no JSON text: NaN, half of a surrogate pair; or more levels than MAX_DEPTH."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH + 4:
            raise BadInput(f"{place}: expected at most {MAX_DEPTH} levels, got more")
        level = [inner for one in level for inner in _inner(one)]
    try:
        encode_json(value).encode("utf-8")
    except ValueError as error:
        got = "half of a surrogate pair" if isinstance(error, UnicodeError) else "a number that JSON does not have"
        raise BadInput(f"{place}: expected JSON, got {got}") from None


def _inner(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def encode_json(value: object) -> str:
    """JSON in the order of the members, as Python writes it. ValueError for what has none."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def parse_strict(text: str) -> Any:
    """JSON without duplicate keys, NaN and infinities. ValueError."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> Value:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def canonical_call(name: str, arguments: Mapping[str, Any]) -> str:
    """What two calls are compared by: the name, and the arguments without regard to the order of their members.

    Numbers that are equal are one: 1, 1.0 and 1e0."""
    return json.dumps([name, _plain(arguments)], sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def match_results(messages: Sequence[Value], names: Sequence[str] | None, place: str) -> None:
    """BadInput unless every result has its call, every call its result, and no id is there twice.

    Calls and results of a turn are matched by their ids, or where neither has ids by their order; then both get ids
    here. A conversation may end with calls. `names`: of the tools that there are, None where any may be called.
    """
    seen: set[str] = set()
    waiting: list[Value] = []
    for number, message in enumerate(messages):
        where = f"{place}, message {number}"
        if message["role"] == TOOL:
            _match_result(message, waiting, seen, where)
            continue
        if waiting:
            raise BadInput(f"{where}: expected a result of the call {_called(waiting[0])}, got the {message['role']}'s")
        waiting = list(message.get("tool_calls", ()))
        _check_called(waiting, names, seen, where)


def _check_called(calls: Sequence[Value], names: Sequence[str] | None, seen: set[str], where: str) -> None:
    for number, call in enumerate(calls):
        name = call["function"]["name"]
        if names is not None and name not in names:
            known = ", ".join(names) or "none"
            raise BadInput(f"{where}, call {number}: expected one of the tools {known:.200}, got {name!r}")
        # Nine letters and digits: Mistral's templates take no other.
        call.setdefault("id", f"call{len(seen):05}")
        if call["id"] in seen:
            raise BadInput(f"{where}, call {number}: expected an id of its own, got {call['id']!r} again")
        seen.add(call["id"])


def _match_result(message: Value, waiting: list[Value], seen: set[str], where: str) -> None:
    wanted = message.get("tool_call_id")
    if not waiting:
        got = "a second one of that call" if wanted in seen else "one without a call"
        raise BadInput(f"{where}: expected a result of a call before it, got {got}")
    call = next((one for one in waiting if wanted in (None, one["id"])), None)
    if call is None:
        expected = " or ".join(_called(one) for one in waiting)
        raise BadInput(f"{where}, tool_call_id: expected that of the call {expected}, got {wanted!r}")
    name = call["function"]["name"]
    if message.get("name", name) != name:
        raise BadInput(f"{where}, name: expected {name}, which the call {call['id']!r} names, got {message['name']!r}")
    message |= {"tool_call_id": call["id"], "name": name}
    waiting.remove(call)


def _called(call: Value) -> str:
    return f"{call['function']['name']} ({call['id']})"


def _count(value: object) -> str:
    return str(len(value)) if isinstance(value, list) else type(value).__name__


def _form(value: object) -> str:
    if not isinstance(value, dict):
        return "nothing" if value is None else type(value).__name__
    return f"the members {', '.join(map(str, value))}"[:120] if value else "no members"
