"""Strict readers of files of rows: no guessing, and only empty lines at the end are skipped.

An import stops at the first invalid record; a check continues. Errors name the record's line. No torch.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from appliance.domain.data.kinds import FORMATS, GROUPS, OPTIONAL, PARTS, PREFERENCE, DatasetKind, is_column_optional
from appliance.domain.data.tool_calls import TOOL, list_names, match_results, read_calls, read_id, read_name, read_tools
from appliance.errors import BadInput, TooLarge

ChatMessage = dict[str, str]


class Preference(NamedTuple):
    """The messages before the completions, the chosen completion, and the rejected one."""

    messages: Sequence[ChatMessage]
    chosen: str
    rejected: str


def read_sides(given: Mapping[str, str | list[ChatMessage]], place: str) -> Preference:
    """Return prompt and completions of a preference; `given` holds the parts that the row has.

    Raises:
        BadInput: the parts are not one prompt and two different completions.
    """
    for part in ("chosen", "rejected"):
        if part not in given:
            raise BadInput(f"{place}, {part}: expected an answer, got none")
    kinds = {part: "a list of messages" if isinstance(value, list) else "text" for part, value in given.items()}
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{part} as {kind}" for part, kind in kinds.items())
        raise BadInput(f"{place}: expected all parts as text or all as lists of messages, got {got}")
    if given["chosen"] == given["rejected"]:
        raise BadInput(f"{place}: expected two different answers, got one text as chosen and as rejected")
    texts = {part: value for part, value in given.items() if isinstance(value, str)}
    sides = _read_text_sides(texts, place) if texts else _read_message_sides(given, place)  # type: ignore[arg-type] # all are lists
    if sides.chosen.strip() == sides.rejected.strip():
        raise BadInput(f"{place}: expected two different answers, got the same but for outer white space")
    return sides


def _read_text_sides(given: Mapping[str, str], place: str) -> Preference:
    chosen, rejected = given["chosen"], given["rejected"]
    if "prompt" in given:
        return Preference([{"role": "user", "content": given["prompt"]}], chosen, rejected)
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        shared = min(len(chosen), len(rejected))
    # Cut at white space only; TRL cuts within words and trains on fragments.
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    prompt = chosen[:shared].strip()
    if not prompt:
        raise BadInput(
            f"{place}: expected a prompt, or a common beginning of chosen and rejected that can be one, got neither"
        )
    for part in ("chosen", "rejected"):
        if not given[part][shared:].strip():
            raise BadInput(f"{place}, {part}: expected an answer behind the common beginning, got nothing")
    return Preference([{"role": "user", "content": prompt}], chosen[shared:].strip(), rejected[shared:].strip())


def _read_message_sides(given: Mapping[str, list[ChatMessage]], place: str) -> Preference:
    chosen, rejected, prompt = given["chosen"], given["rejected"], given.get("prompt")
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        if not shared:
            raise BadInput(f"{place}: expected chosen and rejected to begin with the same prompt, got different ones")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for part, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            got = ", ".join(message["role"] for message in answer)
            raise BadInput(f"{place}, {part}: expected one turn of the assistant behind the prompt, got {got}")
    return Preference(prompt, chosen[0]["content"], rejected[0]["content"])


MAX_PARQUET_ROWS = 1_000_000
# Uncompressed bytes of the columns that are read, by the file's footer; the worker's memory is limited as well.
MAX_BYTES = 2 << 30
BATCH_ROWS = 1_024


def read_parquet(
    data: bytes, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str
) -> Iterator[tuple[str, dict[str, Any] | BadInput]]:
    """Yield (place, parts) of each record; records are counted from 1, since Parquet has no lines.

    Raises:
        BadInput: the file is not Parquet, or lacks a column.
        TooLarge: the file has too many rows or bytes.
    """
    # Imported here, since loading takes a second.
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(
            pyarrow.BufferReader(data), arrow_extensions_enabled=False, page_checksum_verification=True
        )
        names = _find_columns(opened.schema_arrow, dataset_kind, columns, file)
        _check_size(opened.metadata, set(names.values()), file)
        number = 0
        for batch in opened.iter_batches(BATCH_ROWS, columns=list(names.values()), use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", {part: record[name] for part, name in names.items()}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: expected Parquet, got: {' '.join(str(error).split())[:200]}") from None


_MESSAGES: Mapping[str, tuple[str, ...]] = {"chat": ("messages",), "preference": ("prompt", "chosen", "rejected")}
"""Parts that may be lists of messages."""


def _find_columns(schema: Any, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str) -> dict[str, str]:
    found = {}
    for part, name in columns.items():
        if name not in schema.names and is_column_optional(dataset_kind, part, name):
            continue
        if schema.names.count(name) != 1:
            raise BadInput(f"{file}: expected one column {name!r}, got the columns {', '.join(schema.names)!r}")
        kind = schema.field(name).type
        if not _fits(dataset_kind, part, kind):
            messages = dict.fromkeys(_MESSAGES.get(dataset_kind, ()), "text or a list of {role, content}")
            expected = messages | dict.fromkeys(GROUPS, "text or integers")
            raise BadInput(f"{file}, column {name!r}: expected {expected.get(part, 'text')}, got {str(kind)[:80]}")
        found[part] = name
    return found


def _fits(dataset_kind: DatasetKind, part: str, kind: Any) -> bool:
    from pyarrow import types

    if _is_text(kind):
        return True
    return (
        _is_messages(kind, dataset_kind)
        if part in _MESSAGES.get(dataset_kind, ())
        else part in GROUPS and bool(types.is_integer(kind))
    )


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


_CALL = {"id", "type", "function"}
_ROLES_MORE: Mapping[DatasetKind, frozenset[str]] = {"chat": frozenset(("tool_calls", "tool_call_id", "name"))}
"""Optional fields of messages, besides role and content."""


def _is_messages(kind: Any, dataset_kind: DatasetKind) -> bool:
    members = _get_members(kind)
    if not {"role", "content"} <= members.keys() <= {"role", "content"} | _ROLES_MORE.get(dataset_kind, frozenset()):
        return False
    calls = members.pop("tool_calls", None)
    return all(map(_is_text, members.values())) and (calls is None or _is_calls(calls))


def _is_calls(kind: Any) -> bool:
    """Return True for calls whose arguments are JSON text; objects would have the fields of all calls, as null."""
    from pyarrow import types

    members = _get_members(kind)
    function = members.pop("function", None)
    if function is None or not members.keys() <= _CALL or not types.is_struct(function):
        return False
    inner = {function.field(place).name: function.field(place).type for place in range(function.num_fields)}
    return inner.keys() == {"name", "arguments"} and all(map(_is_text, (*members.values(), *inner.values())))


def _get_members(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a list of structs, by name; empty for another type."""
    from pyarrow import types

    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return {}
    members = [kind.value_type.field(place) for place in range(kind.value_type.num_fields)]
    return {member.name: member.type for member in members}


def _check_size(metadata: Any, names: set[str], file: str) -> None:
    if metadata.num_rows > MAX_PARQUET_ROWS:
        raise TooLarge(f"{file}: expected at most {MAX_PARQUET_ROWS} rows, got {metadata.num_rows}")
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for place in range(chunks.num_columns):
            column = chunks.column(place)
            if column.path_in_schema.partition(".")[0] in names:
                size += column.total_uncompressed_size
    if size > MAX_BYTES:
        raise TooLarge(f"{file}: expected at most {MAX_BYTES} bytes of text, got {size}")


MAX_ROWS = 1_000_000
MAX_TEXT_CHARACTERS = 200_000
MAX_MESSAGES = 1_000
MAX_FIELD_CHARACTERS = 1 << 24
"""Largest number of characters in a CSV or TSV field, which may be the JSON of many messages.

Python's default limit is below the limit of a text.
"""
MAX_GROUP_CHARACTERS = 256
MESSAGES, TOOLS = "messages", "tools"

Message = dict[str, Any]


@dataclass(frozen=True)
class SourceRecord:
    """One record of a file: its parts by name, and its `place`, which errors name.

    `messages` are all messages of a chat, or those before the completions of a preference. `tools` are a chat's tools.
    """

    place: str
    parts: Mapping[str, str]
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


def parse_source(
    data: bytes, kind: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str = "dataset"
) -> list[SourceRecord]:
    """Return the records of a file.

    `columns` maps parts to the file's column names; `file` names the file in errors.

    Raises:
        BadInput: a record does not fit, or there are none.
    """
    sources = []
    for found in read_records(data, kind, dataset_kind, columns, file):
        if isinstance(found, BadInput):
            raise found
        sources.append(found)
    if not sources:
        raise BadInput(f"{file}: expected rows, got none")
    return sources


def read_records(
    data: bytes, kind: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str
) -> Iterator[SourceRecord | BadInput]:
    """Yield each record, or the error in its place.

    Raises:
        BadInput: the rest of the file cannot be read.
        TooLarge: the file has too many rows.
    """
    if kind not in FORMATS:
        raise BadInput(f"{file}, format: expected one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "parquet":
        records: Records = read_parquet(data, dataset_kind, columns, file)
    else:
        parsers = {"csv": _parse_csv, "tsv": _parse_tsv, "jsonl": _parse_jsonl}
        records = parsers[kind](_decode(data, file), dataset_kind, columns, file)
    for number, (place, values) in enumerate(records):
        if number == MAX_ROWS:
            raise TooLarge(f"{file}: expected at most {MAX_ROWS} rows, got more")
        try:
            yield values if isinstance(values, BadInput) else _read_source(dataset_kind, place, values)
        except BadInput as error:
            yield error


Records = Iterator[tuple[str, dict[str, Any] | BadInput]]
"""Each record's place and its parts, or an error."""


_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LOOK = 400
"""Number of first bytes that detect UTF-16 without a byte order mark: in Latin script every second byte is zero."""
_OTHERS = (
    (_UTF_16, "text in UTF-16; {convert}"),
    ((b"PK\x03\x04",), "an Excel workbook or another ZIP archive; {export}"),
    ((b"\xd0\xcf\x11\xe0",), "an old Excel workbook; {export}"),
    ((b"PAR1\x15",), "Parquet; name the format with --format parquet"),
    ((b"\x1f\x8b",), "a gzip archive; unpack it first"),
    ((b"%PDF",), "a PDF; {export}"),
)
"""First bytes of files that are often mistaken for text, and the remedy."""
_CONVERT = "save it as UTF-8, or run: iconv -f {encoding} -t UTF-8 FILE > NEW"
_EXPORT = "export its rows as CSV in UTF-8"


def _decode(data: bytes, file: str) -> str:
    """Decode UTF-8, with or without a byte order mark; BadInput suggests what other bytes are, and the remedy."""
    for starts, advice in _OTHERS:
        if data.startswith(starts) or (starts is _UTF_16 and data[:_LOOK].count(0) > len(data[:_LOOK]) // 3):
            found = advice.format(convert=_CONVERT.format(encoding="UTF-16"), export=_EXPORT)
            raise BadInput(f"{file}: expected text in UTF-8, got {found}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{file}, line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}, as Latin-1 and "
            f"Windows-1252 have it; {_CONVERT.format(encoding='WINDOWS-1252')}"
        ) from None


def _parse_csv(text: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str) -> Records:
    stream = io.StringIO(text.rstrip("\r\n"), newline="")
    return _parse_table(csv.reader(stream, strict=True), "CSV", dataset_kind, columns, file)


def _parse_tsv(text: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str) -> Records:
    """Parse TSV as registered with IANA: fields contain no tab or line break, and quotation marks are ordinary."""
    stream = io.StringIO(text.rstrip("\r\n"), newline="")
    reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    return _parse_table(reader, "TSV", dataset_kind, columns, file)


def _parse_table(reader: Any, kind: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str) -> Records:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    line = 1
    try:
        header: list[str] = next(reader, [])
        wanted = {part: name for part, name in columns.items() if _is_wanted(header, dataset_kind, part, name)}
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


def _is_wanted(header: list[str], dataset_kind: DatasetKind, part: str, name: str) -> bool:
    return name in header or not is_column_optional(dataset_kind, part, name)


def _check_header(header: list[str], wanted: Mapping[str, str], file: str) -> None:
    """Raise one BadInput for all missing or repeated columns, which suggests how to map the file's own names."""
    wrong = {part: name for part, name in wanted.items() if header.count(name) != 1}
    if not wrong:
        return
    separator = next((c for c in SEPARATORS if len(header) == 1 and c in header[0]), None)
    if separator is None:
        hints = (
            "" if set(header) & set(wanted.values()) else f"; if line 1 is a row, put {_name_columns(wanted)} before it"
        )
        if not any(map(_is_sentence, header)):
            said = [f"--column {part}={name}" for part, name in _guess_columns(header, wanted, list(wrong)).items()]
            hints += f"; if yours has another name: {' '.join(said)}"
    else:
        hints = f"; the fields seem to be separated by {separator!r}: {SEPARATORS[separator]}"
    columns = " and ".join(f"one column {name!r}" for name in wrong.values())
    raise BadInput(f"{file}, line 1: expected {columns}, got the columns {', '.join(header)!r:.200}{hints}")


def _name_columns(wanted: Mapping[str, str]) -> str:
    return f"a line with the names of its columns, such as {','.join(wanted.values())},"


def _is_sentence(name: str) -> bool:
    """Return True if a text of line 1 is too long for the name of a column."""
    return len(name) > 60 or len(name.split()) > 5


SEPARATORS = {
    ";": "save the file as CSV with commas",
    "\t": "name the format with --format tsv",
    "|": "save the file as CSV with commas",
}
"""Field separators of files that are not CSV, and the remedy."""


def _guess_columns(header: list[str], wanted: Mapping[str, str], parts: list[str]) -> dict[str, str]:
    """Suggest a column of the file for each of these parts: the one with a similar name.

    If as many columns as parts are left, they are used in order; otherwise NAME, since any column could be meant.
    """
    free = [name for name in header if name and name not in wanted.values()]
    alone = len(free) == len(parts)
    guessed = {}
    for part in parts:
        near = difflib.get_close_matches(part, free, n=1, cutoff=0.7)
        if near:
            guessed[part] = near[0]
            free.remove(near[0])
    return {part: guessed[part] if part in guessed else free.pop(0) if alone else "NAME" for part in parts}


def _parse_jsonl(text: str, dataset_kind: DatasetKind, columns: Mapping[str, str], file: str) -> Records:
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for line, content in enumerate(lines, start=1):
        place = f"{file}, line {line}"
        try:
            yield place, _read_object(content, dataset_kind, columns, place)
        except BadInput as error:
            yield place, error


def _read_object(content: str, dataset_kind: DatasetKind, columns: Mapping[str, str], place: str) -> dict[str, Any]:
    value = parse_json(content, place)
    if not isinstance(value, dict):
        raise BadInput(f"{place}: expected a JSON object, got {type(value).__name__}")
    values = {}
    for part, name in columns.items():
        if name in value:
            values[part] = value[name]
        elif not is_column_optional(dataset_kind, part, name):
            members = ", ".join(sorted(value))
            raise BadInput(f"{place}: expected a value in {name!r}, got the fields {members}")
    return values


def parse_json(text: str, place: str) -> Any:
    """Parse a JSON value; raise BadInput if it is not JSON or has a field twice in an object."""

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise BadInput(f"{place}: expected each field once, got {twice!r:.80} twice; remove one of them")
        return value

    try:
        return json.loads(text, object_pairs_hook=make_object)
    except (ValueError, RecursionError):
        raise BadInput(f"{place}: expected a JSON object, got {text[:40]!r}") from None


def _read_source(dataset_kind: DatasetKind, place: str, values: Mapping[str, Any]) -> SourceRecord:
    """Return the record with each part checked."""
    parts, messages, tools = dict[str, str](), tuple[Message, ...](), tuple[Mapping[str, Any], ...]()
    if dataset_kind == PREFERENCE:
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
            parts[part] = _check_text(value, f"{place}, {part}", may_be_empty=(dataset_kind, part) in OPTIONAL)
    if dataset_kind == "chat":
        match_results(messages, list_names(tools), place)
    return SourceRecord(place, parts, messages, tools)


def _read_tools(value: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a list, or of its JSON text; empty if the row has none."""
    if value is None or value in ("", []):
        return ()
    return read_tools(parse_json(value, place) if isinstance(value, str) else value, place)


def _read_preference(place: str, values: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, str]]:
    """Return the messages before the completions, and both completions."""
    given: dict[str, str | list[Message]] = {}
    for part in PARTS[PREFERENCE]:
        value, where = values.get(part), f"{place}, {part}"
        if isinstance(value, list):
            if not 1 <= len(value) <= MAX_MESSAGES:
                raise BadInput(f"{where}: expected 1 to {MAX_MESSAGES} messages, got {len(value)}")
            given[part] = [_read_plain_message(item, f"{where}, message {n}") for n, item in enumerate(value)]
        elif part in values and not (part == "prompt" and value is None):
            given[part] = _check_text(value, where)
    sides = read_sides(given, place)
    asked = sides.messages
    if asked[-1]["role"] != "user":
        raise BadInput(f"{place}, prompt: expected the user's turn at the end, got the {asked[-1]['role']}'s")
    _check_turns([*asked, {"role": "assistant", "content": sides.chosen}], place)
    return tuple(asked), {"chosen": sides.chosen, "rejected": sides.rejected}


def _read_group(part: str, value: Any, place: str) -> dict[str, str]:
    """Return a group's value as text, with integers as decimal digits; empty if the row has none."""
    if value is None or value == "":
        return {}
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _check_text(value, place)
    if len(text) > MAX_GROUP_CHARACTERS:
        raise TooLarge(f"{place}: expected at most {MAX_GROUP_CHARACTERS} characters, got {len(text)}")
    return {part: text}


def _read_messages(value: Any, place: str) -> tuple[Message, ...]:
    """Return the messages of an array of `{role, content}`, or of its JSON text."""
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
"""Optional fields of a message by role, besides role and content."""


def _read_message(value: Any, place: str) -> Message:
    """Return a message with `role`, `content`, and the fields of tool calls and results."""
    if not isinstance(value, dict):
        raise BadInput(f"{place}: expected role and content, got {type(value).__name__}")
    # In a Parquet column every message has every field.
    value = {name: one for name, one in value.items() if one is not None or name in ("role", "content")}
    role = value.get("role")
    more = _ROLES.get(role, frozenset()) if isinstance(role, str) else frozenset()
    calls = (
        read_calls(value["tool_calls"], place) if "tool_calls" in more & value.keys() and value["tool_calls"] else []
    )
    if calls and value.get("content") is None:
        value = {**value, "content": ""}
    kept = {name: one for name, one in value.items() if name not in more}
    read = _read_plain_message(kept, place, roles=tuple(_ROLES), may_be_empty=bool(calls) or role == TOOL)
    if calls:
        read["tool_calls"] = calls
    readers = {"tool_call_id": read_id, "name": read_name}
    return {
        **read,
        **{name: readers[name](value[name], place) for name in sorted(more & value.keys() & readers.keys())},
    }


def _read_plain_message(
    value: Any, place: str, *, roles: tuple[str, ...] = ("system", "user", "assistant"), may_be_empty: bool = False
) -> Message:
    """Return a message that has only `role` and `content`."""
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        got = f"the fields {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
        raise BadInput(f"{place}: expected role and content, got {got}")
    if value["role"] not in roles:
        named = f"{', '.join(roles[:-1])} or {roles[-1]}"
        raise BadInput(f"{place}: expected the role {named}, got {value['role']!r:.40}")
    return {"role": value["role"], "content": _check_text(value["content"], place, may_be_empty=may_be_empty)}


def _check_turns(messages: list[Message], place: str) -> tuple[Message, ...]:
    """Check the order of messages: optionally a system message, then user and assistant in turn, the assistant last.

    After calls, tool results take the user's place (`match_results` checks that there is one for each call).
    """
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
