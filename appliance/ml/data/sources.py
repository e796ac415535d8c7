"""A file's bytes become records, strictly: nothing is guessed and nothing is skipped.

An import stops at the first record that does not fit; a check goes on. Each is named by its line. No torch.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.data.tasks import FORMATS, GROUPS, OPTIONAL, PARTS, PREFERENCE, Task, may_lack
from appliance.domain.data.tool_calls import TOOL, list_names, match_results, read_calls, read_id, read_name, read_tools
from appliance.errors import BadInput, TooLarge
from appliance.ml.data.parquet import read_parquet
from appliance.ml.data.preferences import read_sides

MAX_ROWS = 1_000_000
MAX_TEXT_CHARACTERS = 200_000
MAX_MESSAGES = 1_000
MAX_FIELD_CHARACTERS = 1 << 24
"""Of a field of CSV or TSV, which may be the JSON of many messages; Python's own limit is below that of a text."""
MAX_GROUP_CHARACTERS = 256
MESSAGES, TOOLS = "messages", "tools"

Message = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One record as it stood in the file: its parts by name, and its `place` in words, for an error to name.

    `messages` of a chat are all of it, of a preference those before the answers. `tools`: what a chat may call.
    """

    place: str
    parts: Mapping[str, str]
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


def parse_source(data: bytes, kind: str, task: Task, columns: Mapping[str, str], file: str = "dataset") -> list[Source]:
    """The records of a file; `columns` maps the task's parts to the file's own names, `file` is what errors call it."""
    sources = []
    for found in read_records(data, kind, task, columns, file):
        if isinstance(found, BadInput):
            raise found
        sources.append(found)
    if not sources:
        raise BadInput(f"{file}: expected rows, got none")
    return sources


def read_records(
    data: bytes, kind: str, task: Task, columns: Mapping[str, str], file: str
) -> Iterator[Source | BadInput]:
    """Each record, or what is wrong with it. BadInput is raised where no record after can be read."""
    if kind not in FORMATS:
        raise BadInput(f"{file}, format: expected one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "parquet":
        records: Records = read_parquet(data, task, columns, file)
    else:
        parsers = {"csv": _parse_csv, "tsv": _parse_tsv, "jsonl": _parse_jsonl}
        records = parsers[kind](_decode(data, file), task, columns, file)
    for number, (place, values) in enumerate(records):
        if number == MAX_ROWS:
            raise TooLarge(f"{file}: expected at most {MAX_ROWS} rows, got more")
        try:
            yield values if isinstance(values, BadInput) else _read(task, place, values)
        except BadInput as error:
            yield error


Records = Iterator[tuple[str, dict[str, Any] | BadInput]]
"""Each with its place; what cannot be one is an error in its place."""


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}, line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}") from None


def _parse_csv(text: str, task: Task, columns: Mapping[str, str], file: str) -> Records:
    return _parse_table(csv.reader(io.StringIO(text, newline=""), strict=True), "CSV", task, columns, file)


def _parse_tsv(text: str, task: Task, columns: Mapping[str, str], file: str) -> Records:
    """As IANA registered it: no field holds a tab or a line break, and a quotation mark is a character like others."""
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    return _parse_table(reader, "TSV", task, columns, file)


def _parse_table(reader: Any, kind: str, task: Task, columns: Mapping[str, str], file: str) -> Records:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    line = 1
    try:
        header: list[str] = next(reader, [])
        wanted = {part: name for part, name in columns.items() if _has(header, task, part, name)}
        _check_header(header, wanted, file)
        places = {part: header.index(name) for part, name in wanted.items()}
        line = reader.line_num + 1
        for fields in reader:
            where = f"{file}, line {line}"
            if len(fields) != len(header):
                yield where, BadInput(f"{where}: expected {len(header)} fields, got {len(fields)}")
            else:
                yield where, {part: fields[place] for part, place in places.items()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{file}, line {line}: expected {kind}, got: {error}") from None


def _has(header: list[str], task: Task, part: str, name: str) -> bool:
    return name in header or not may_lack(task, part, name)


def _check_header(header: list[str], wanted: Mapping[str, str], file: str) -> None:
    """One BadInput for all columns that are missing or there twice; it says how to name the file's own."""
    wrong = {part: name for part, name in wanted.items() if header.count(name) != 1}
    if not wrong:
        return
    separator = next((c for c in SEPARATORS if len(header) == 1 and c in header[0]), None)
    if separator is None:
        said = [f"--column {part}={name}" for part, name in _guess_columns(header, wanted, list(wrong)).items()]
        hints = f"; if yours has another name: {' '.join(said)}"
    else:
        hints = f"; the fields seem to be separated by {separator!r}: {SEPARATORS[separator]}"
    columns = " and ".join(f"one column {name!r}" for name in wrong.values())
    raise BadInput(f"{file}, line 1: expected {columns}, got the columns {', '.join(header)!r}{hints}")


SEPARATORS = {
    ";": "save the file as CSV with commas",
    "\t": "name the format with --format tsv",
    "|": "save the file as CSV with commas",
}
"""What separates the fields of a file that is no CSV, and what to do."""


def _guess_columns(header: list[str], wanted: Mapping[str, str], parts: list[str]) -> dict[str, str]:
    """A column of the file for each of these parts: one of a like name. Where two columns are left for two parts, in
    their order. Else NAME, since any of the file's could be meant."""
    free = [name for name in header if name and name not in wanted.values()]
    alone = len(free) == len(parts)
    guessed = {}
    for part in parts:
        near = difflib.get_close_matches(part, free, n=1, cutoff=0.7)
        if near:
            guessed[part] = near[0]
            free.remove(near[0])
    return {part: guessed[part] if part in guessed else free.pop(0) if alone else "NAME" for part in parts}


def _parse_jsonl(text: str, task: Task, columns: Mapping[str, str], file: str) -> Records:
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for line, content in enumerate(lines, start=1):
        place = f"{file}, line {line}"
        try:
            yield place, _read_object(content, task, columns, place)
        except BadInput as error:
            yield place, error


def _read_object(content: str, task: Task, columns: Mapping[str, str], place: str) -> dict[str, Any]:
    value = parse_json(content, place)
    if not isinstance(value, dict):
        raise BadInput(f"{place}: expected a JSON object, got {type(value).__name__}")
    values = {}
    for part, name in columns.items():
        if name in value:
            values[part] = value[name]
        elif not may_lack(task, part, name):
            members = ", ".join(sorted(value))
            raise BadInput(f"{place}: expected a value in {name!r}, got the members {members}")
    return values


def parse_json(text: str, place: str) -> Any:
    """A JSON value without duplicate keys."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise BadInput(f"{place}: expected a JSON object, got {text[:40]!r}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _read(task: Task, place: str, values: Mapping[str, Any]) -> Source:
    """The record with every part checked by itself."""
    parts, messages, tools = dict[str, str](), tuple[Message, ...](), tuple[Mapping[str, Any], ...]()
    if task == PREFERENCE:
        messages, parts = _read_preference(place, values)
        values = {part: value for part, value in values.items() if part in GROUPS}
    for part, value in values.items():
        if part == MESSAGES:
            messages = _read_messages(value, place)
        elif part == TOOLS:
            tools = _read_tools(value, f"{place}, {TOOLS}")
        elif part in GROUPS:
            parts |= _read_group(part, value, f"{place}, {part}")
        else:
            parts[part] = _check_text(value, f"{place}, {part}", may_be_empty=(task, part) in OPTIONAL)
    if task == "chat":
        match_results(messages, list_names(tools), place)
    return Source(place, parts, messages, tools)


def _read_tools(value: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """A list of tools, or its JSON text; none where the row has none."""
    if value is None or value in ("", []):
        return ()
    return read_tools(parse_json(value, place) if isinstance(value, str) else value, place)


def _read_preference(place: str, values: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The messages before the answers, and both answers."""
    given: dict[str, str | list[Message]] = {}
    for part in PARTS[PREFERENCE]:
        value, where = values.get(part), f"{place}, {part}"
        if isinstance(value, list):
            if not 1 <= len(value) <= MAX_MESSAGES:
                raise BadInput(f"{where}: expected 1 to {MAX_MESSAGES} messages, got {len(value)}")
            given[part] = [_read_said(item, f"{where}, message {n}") for n, item in enumerate(value)]
        elif part in values and not (part == "prompt" and value is None):
            given[part] = _check_text(value, where)
    sides = read_sides(given, place)
    asked = sides.messages
    if asked[-1]["role"] != "user":
        raise BadInput(f"{place}, prompt: expected the user's turn at the end, got the {asked[-1]['role']}'s")
    _check_turns([*asked, {"role": "assistant", "content": sides.chosen}], place)
    return tuple(asked), {"chosen": sides.chosen, "rejected": sides.rejected}


def _read_group(part: str, value: Any, place: str) -> dict[str, str]:
    """A group's value as text, an integer in decimal digits; nothing where the row has none."""
    if value is None or value == "":
        return {}
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _check_text(value, place)
    if len(text) > MAX_GROUP_CHARACTERS:
        raise TooLarge(f"{place}: expected at most {MAX_GROUP_CHARACTERS} characters, got {len(text)}")
    return {part: text}


def _read_messages(value: Any, place: str) -> tuple[Message, ...]:
    """An array of `{role, content}`, or its JSON text where the file holds nothing but text."""
    if isinstance(value, str):
        value = parse_json(value, f"{place}, {MESSAGES}")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        got = len(value) if isinstance(value, list) else type(value).__name__
        raise BadInput(f"{place}, {MESSAGES}: expected 1 to {MAX_MESSAGES} messages, got {got}")
    return _check_turns([_read_message(item, f"{place}, message {n}") for n, item in enumerate(value)], place)


_ROLES: Mapping[str, frozenset[str]] = {
    "system": frozenset(),
    "user": frozenset(),
    "assistant": frozenset({"tool_calls"}),
    TOOL: frozenset({"tool_call_id", "name"}),
}
"""What a message of each role may have beside role and content."""


def _read_message(value: Any, place: str) -> Message:
    """`role` and `content`, and what calls of tools and their results have beside."""
    if not isinstance(value, dict):
        raise BadInput(f"{place}: expected role and content, got {type(value).__name__}")
    # A column of Parquet has every member in every message.
    value = {name: one for name, one in value.items() if one is not None or name in ("role", "content")}
    role = value.get("role")
    more = _ROLES.get(role, frozenset()) if isinstance(role, str) else frozenset()
    calls = (
        read_calls(value["tool_calls"], place) if "tool_calls" in more & value.keys() and value["tool_calls"] else []
    )
    if calls and value.get("content") is None:
        value = {**value, "content": ""}
    kept = {name: one for name, one in value.items() if name not in more}
    read = _read_said(kept, place, roles=tuple(_ROLES), may_be_empty=bool(calls) or role == TOOL)
    if calls:
        read["tool_calls"] = calls
    readers = {"tool_call_id": read_id, "name": read_name}
    return {
        **read,
        **{name: readers[name](value[name], place) for name in sorted(more & value.keys() & readers.keys())},
    }


def _read_said(
    value: Any, place: str, *, roles: tuple[str, ...] = ("system", "user", "assistant"), may_be_empty: bool = False
) -> Message:
    """A message of text alone."""
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        got = f"the members {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
        raise BadInput(f"{place}: expected role and content, got {got}")
    if value["role"] not in roles:
        named = f"{', '.join(roles[:-1])} or {roles[-1]}"
        raise BadInput(f"{place}: expected the role {named}, got {value['role']!r:.40}")
    return {"role": value["role"], "content": _check_text(value["content"], place, may_be_empty=may_be_empty)}


def _check_turns(messages: list[Message], place: str) -> tuple[Message, ...]:
    """A system's message at most, in front; then user and assistant in turn, and the last word is the assistant's.

    Behind calls the results come in the user's place (`match_results` says that all of them do)."""
    first = 1 if messages[0]["role"] == "system" else 0
    if not any(message["role"] == "assistant" for message in messages):
        raise BadInput(f"{place}: expected a turn of the assistant, got none", code="nothing-to-train")
    before, called = "assistant", False
    for number, message in enumerate(messages[first:], start=first):
        role = message["role"]
        expected = TOOL if called else "user" if before == "assistant" else "assistant"
        called = "tool_calls" in message
        if role not in (expected, TOOL):
            raise BadInput(f"{place}, message {number}: expected the role {expected}, got {role}")
        before = role
    if before != "assistant":
        raise BadInput(f"{place}: expected the assistant's turn at the end, got the {before}'s")
    return tuple(messages)


def _check_text(value: Any, place: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{place}: expected text, got {type(value).__name__}")
    if not value.strip() and not (may_be_empty and not value):
        raise BadInput(f"{place}: expected a text, got {'only white space' if value else 'nothing'}")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise TooLarge(f"{place}: expected at most {MAX_TEXT_CHARACTERS} characters, got {len(value)}")
    if "\x00" in value:
        raise BadInput(f"{place}: expected text, got a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{place}: expected Unicode text, got half of a surrogate pair") from None
    return value
