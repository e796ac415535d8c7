"""Parquet's records: text, and for a chat a list of messages; any other type is refused by its column. No torch.

Read in the sandboxed worker and nowhere else: the format is a large one, and so is its reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance.domain.data.tasks import GROUPS, Task, may_lack
from appliance.errors import BadInput, TooLarge

MAX_ROWS = 1_000_000
# By the file's own footer, for the columns that are read; the worker's memory is bounded in any case.
MAX_BYTES = 2 << 30
BATCH_ROWS = 1_024


def read_parquet(
    data: bytes, task: Task, columns: Mapping[str, str], file: str
) -> Iterator[tuple[str, dict[str, Any] | BadInput]]:
    """(place, parts) of each record; records are counted from 1, since Parquet has no lines."""
    # Loaded for this format alone: it takes a second.
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(
            pyarrow.BufferReader(data), arrow_extensions_enabled=False, page_checksum_verification=True
        )
        names = _find_columns(opened.schema_arrow, task, columns, file)
        _check_size(opened.metadata, set(names.values()), file)
        number = 0
        for batch in opened.iter_batches(BATCH_ROWS, columns=list(names.values()), use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", {part: record[name] for part, name in names.items()}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: expected Parquet, got: {' '.join(str(error).split())[:200]}") from None


_MESSAGES: Mapping[Task, tuple[str, ...]] = {"chat": ("messages",), "preference": ("prompt", "chosen", "rejected")}
"""Parts that may be lists of messages."""


def _find_columns(schema: Any, task: Task, columns: Mapping[str, str], file: str) -> dict[str, str]:
    found = {}
    for part, name in columns.items():
        if name not in schema.names and may_lack(task, part, name):
            continue
        if schema.names.count(name) != 1:
            raise BadInput(f"{file}: expected one column {name!r}, got the columns {', '.join(schema.names)!r}")
        kind = schema.field(name).type
        if not _fits(task, part, kind):
            expected = dict.fromkeys(_MESSAGES.get(task, ()), "text or a list of {role, content}") | dict.fromkeys(
                GROUPS, "text or integers"
            )
            raise BadInput(f"{file}, column {name!r}: expected {expected.get(part, 'text')}, got {str(kind)[:80]}")
        found[part] = name
    return found


def _fits(task: Task, part: str, kind: Any) -> bool:
    from pyarrow import types

    if _is_text(kind):
        return True
    return (
        _is_messages(kind, task) if part in _MESSAGES.get(task, ()) else part in GROUPS and bool(types.is_integer(kind))
    )


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind))


_CALL = {"id", "type", "function"}
_ROLES_MORE: Mapping[Task, frozenset[str]] = {"chat": frozenset(("tool_calls", "tool_call_id", "name"))}
"""What a message of a task may have beside role and content."""


def _is_messages(kind: Any, task: Task) -> bool:
    members = _members_of(kind)
    if not {"role", "content"} <= members.keys() <= {"role", "content"} | _ROLES_MORE.get(task, frozenset()):
        return False
    calls = members.pop("tool_calls", None)
    return all(map(_is_text, members.values())) and (calls is None or _is_calls(calls))


def _is_calls(kind: Any) -> bool:
    """Calls whose arguments are JSON text: in a column of objects every call has the members of all others, as null."""
    from pyarrow import types

    members = _members_of(kind)
    function = members.pop("function", None)
    if function is None or not members.keys() <= _CALL or not types.is_struct(function):
        return False
    inner = {function.field(place).name: function.field(place).type for place in range(function.num_fields)}
    return inner.keys() == {"name", "arguments"} and all(map(_is_text, (*members.values(), *inner.values())))


def _members_of(kind: Any) -> dict[str, Any]:
    """The types of the members of a list of structs, by name; none for another type."""
    from pyarrow import types

    if not (types.is_list(kind) or types.is_large_list(kind)) or not types.is_struct(kind.value_type):
        return {}
    members = [kind.value_type.field(place) for place in range(kind.value_type.num_fields)]
    return {member.name: member.type for member in members}


def _check_size(metadata: Any, names: set[str], file: str) -> None:
    if metadata.num_rows > MAX_ROWS:
        raise TooLarge(f"{file}: expected at most {MAX_ROWS} rows, got {metadata.num_rows}")
    size = 0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for place in range(chunks.num_columns):
            column = chunks.column(place)
            if column.path_in_schema.partition(".")[0] in names:
                size += column.total_uncompressed_size
    if size > MAX_BYTES:
        raise TooLarge(f"{file}: expected at most {MAX_BYTES} bytes of text, got {size}")
