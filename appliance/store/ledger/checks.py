"""Checks of what is stored besides the entries: the projections, and the database's own refusals."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, text

from appliance.store.database.catalogue import check_catalogue
from appliance.store.database.tables import APPEND_ONLY, projections
from appliance.store.ledger.fold import Fold, Seen, advance, check_keys
from appliance.store.ledger.rows import Change, encode_projection, lock_head, read_head, write_projections


def check_projections(connection: Connection, seen: Seen) -> list[str]:
    """Findings, one a row that differs; the entries are checked on the way as at load."""
    versions = _Versions()
    fold = Fold()
    advance(connection, fold, read_head(connection).size, seen, versions.record)
    check_keys(connection, fold)
    expected = versions.rows
    got = {
        (kind, key, since): (until, value) for kind, key, since, until, value in connection.execute(select(projections))
    }
    return [
        f"projection {kind} {key} since entry {since}: "
        f"expected {_row(expected.get((kind, key, since)))}, got {_row(got.get((kind, key, since)))}"
        for kind, key, since in sorted(expected.keys() | got.keys())
        if expected.get((kind, key, since)) != got.get((kind, key, since))
    ]


class _Versions:
    """The rows that result from the changes so far: (kind, id, since) to (until, value)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], tuple[int | None, str]] = {}
        self._current: dict[tuple[str, str], int] = {}

    def record(self, index: int, changes: list[Change]) -> None:
        for kind, key, value in changes:
            since = self._current.pop((kind, key), None)
            if since is not None:
                self.rows[kind, key, since] = index, self.rows[kind, key, since][1]
            if value is not None:
                self._current[kind, key] = index
                self.rows[kind, key, index] = None, encode_projection(value)


def _row(row: tuple[int | None, str] | None) -> str:
    if row is None:
        return "none"
    return f"{row[1]} until {'now' if row[0] is None else f'entry {row[0]}'}"


def rebuild_projections(connection: Connection, seen: Seen) -> None:
    """Drops the projections and writes them again, within the caller's transaction."""
    size = lock_head(connection).size
    connection.execute(delete(projections))
    advance(connection, Fold(), size, seen, lambda index, changes: write_projections(connection, index, changes))


def check_guards(connection: Connection) -> list[str]:
    """What the database holds that it should not, or lacks: a trigger, a table, a right; and what its role may do."""
    rights = [] if connection.dialect.name == "sqlite" else _check_postgresql_rights(connection)
    return check_catalogue(connection) + rights


def _check_postgresql_rights(connection: Connection) -> list[str]:
    findings = []
    query = text("SELECT has_table_privilege(:table, :right)")
    for table in LEDGER:
        for right in ("UPDATE", "DELETE", "TRUNCATE"):
            if connection.execute(query, {"table": table, "right": right}).scalar_one():
                findings.append(f"role of the service, {table}: expected no right to {right}, got it")
    for setting, expected in {"fsync": "on", "full_page_writes": "on", "session_replication_role": "origin"}.items():
        value = connection.execute(text("SELECT current_setting(:name)"), {"name": setting}).scalar_one()
        if value != expected:
            findings.append(f"database server, {setting}: expected {expected}, got {value}")
    return findings


LEDGER = tuple(table.name for table in APPEND_ONLY)
