"""A state rebuilt from the rows that projections keep."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.core.names import Time, Value
from appliance.domain.core.state import UNPROJECTED, State

MODELS: dict[str, type[Value]] = {table.kind: table.row for table in State().tables if table.kind not in UNPROJECTED}
"""The kinds of things that have rows, each as a value."""


def state_of(rows: Iterable[tuple[str, str, str]], size: int, last_time: Time) -> State:
    """The state that rows (kind, id, value in JSON) amount to; what has no rows is not in it."""
    state = State()
    put_rows(state, rows)
    state.size, state.last_time = size, last_time
    return state


def put_rows(state: State, rows: Iterable[tuple[str, str, str | None]]) -> None:
    """None as a value takes the thing away."""
    tables = {table.kind: table for table in state.tables}
    for kind, key, value in rows:
        tables[kind].set(key, None if value is None else MODELS[kind].model_validate_json(value))
