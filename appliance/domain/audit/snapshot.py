"""The state as bytes, and back: what a service goes on from instead of the first entry.

Nothing here checks whether the bytes can be trusted: they are not exchanged, and the state is the fold over the
entries. `store/ledger/snapshots.py` keeps them under the service's own seal.
"""

from __future__ import annotations

import json
from functools import cache
from types import GenericAlias
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from appliance.domain.core.names import explain
from appliance.domain.core.state import State
from appliance.domain.core.table import Table
from appliance.errors import BadInput
from appliance.formats.core.fields import show

_TABLES = {name: table for name, table in vars(State()).items() if isinstance(table, Table)}
ROWS: dict[str, Any] = {name: table.row for name, table in _TABLES.items() if name != "clearances"}
"""What the rows of each of the state's tables are, by the table's name there."""


class Snapshot(NamedTuple):
    """The state at one moment. Its values never change, so it costs the tables alone."""

    place: tuple[int, str, str]
    """Size, time of the last entry, its leaf hash."""
    tables: dict[str, dict[str, Any]]


def take_snapshot(state: State) -> Snapshot:
    return Snapshot(state.place, {name: dict(_table(state, name).items()) for name in ROWS})


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """A line of JSON for the place, then one for each table, in the order of `ROWS`."""
    lines = [json.dumps(snapshot.place).encode()]
    lines += [_adapter(name).dump_json(snapshot.tables[name]) for name in ROWS]
    return b"\n".join(lines)


def decode_snapshot(data: bytes) -> State:
    """BadInput for bytes that are no snapshot of this version."""
    place, *tables = data.split(b"\n")
    if len(tables) != len(ROWS):
        raise BadInput(f"snapshot: expected {len(ROWS)} tables, got {len(tables)}")
    state = State()
    try:
        state.size, state.last_time, state.last_leaf = json.loads(place)
        for name, line in zip(ROWS, tables, strict=True):
            for key, value in _adapter(name).validate_json(line).items():
                _table(state, name).set(key, value)
    except ValidationError as error:
        raise BadInput(f"snapshot: {explain(error)[:500]}") from None
    except (ValueError, TypeError):
        raise BadInput(f"snapshot: expected size, time and hash, got {show(place)}") from None
    return state


def _table(state: State, name: str) -> Table[Any]:
    table: Table[Any] = getattr(state, name)
    return table


@cache
def _adapter(name: str) -> TypeAdapter[dict[str, Any]]:
    table: Any = GenericAlias(dict, (str, ROWS[name]))
    return TypeAdapter(table, config=ConfigDict(strict=True))
