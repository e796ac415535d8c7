"""Checks of the projections and of the database's own protections, and read-only access to a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, select, text

from appliance.domain.core.records.site import Archive
from appliance.domain.core.state import State, Table
from appliance.domain.queries.effective_access import ACCESS_KINDS
from appliance.errors import NotFound, Tampered
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.merkle import hash_leaf
from appliance.store.database.catalogue import check_catalogue
from appliance.store.database.engine import check_migrated, connect_reader, database_errors
from appliance.store.database.tables import APPEND_ONLY, projections
from appliance.store.ledger import rows
from appliance.store.ledger.log_state import (
    KnownHead,
    LogState,
    advance,
    check_index_rows,
    check_settled,
    make_removals,
)
from appliance.store.ledger.past import state_at
from appliance.store.ledger.rows import (
    OF_RECORDS,
    Change,
    encode_projection,
    list_archives,
    lock_head,
    read_head,
    write_projections,
)

Rows = dict[tuple[str, str, int], tuple[int | None, str]]
"""Rows of the projections: (kind, id, since) to (until, value)."""


def check_projections(connection: Connection, seen: KnownHead) -> list[str]:
    """Compare the projections with the entries and return one finding per differing row.

    The entries are verified on the way, as when loading.
    """
    versions = _Versions()
    log_state = LogState(removals=make_removals(connection))
    advance(connection, log_state, read_head(connection).size, seen, versions.record)
    check_settled(log_state)
    check_index_rows(connection, log_state)
    archived = max(list_archives(connection), default=-1)
    expected = _leave_archived(versions.rows, archived)
    rows_found = connection.execute(select(projections))
    got = _leave_archived(
        {(kind, key, since): (until, value) for kind, key, since, until, value in rows_found}, archived
    )
    return [
        f"projection {kind} {key} since entry {since}: "
        f"expected {_row(expected.get((kind, key, since)))}, got {_row(got.get((kind, key, since)))}"
        for kind, key, since in sorted(expected.keys() | got.keys())
        if expected.get((kind, key, since)) != got.get((kind, key, since))
    ]


def _leave_archived(rows: Rows, archived: int) -> Rows:
    """Leave out the values of records that were replaced up to the last archive, which removes them."""
    return {key: row for key, row in rows.items() if key[0] not in OF_RECORDS or row[0] is None or row[0] > archived}


class _Versions:
    """The projection rows that result from the changes so far: (kind, id, since) to (until, value)."""

    def __init__(self) -> None:
        self.rows: Rows = {}
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


def rebuild_projections(connection: Connection, seen: KnownHead) -> None:
    """Delete the projections and write them again, within the caller's transaction."""
    size = lock_head(connection).size
    connection.execute(delete(projections))
    log_state = LogState(removals=make_removals(connection))
    advance(connection, log_state, size, seen, lambda index, changes: write_projections(connection, index, changes))


def check_database(log: Engine, seen: KnownHead) -> list[str]:
    """Return findings on the schema, on rights and on the projections."""
    with reading(log) as connection:
        findings = check_guards(connection)
        try:
            return [*findings, *check_projections(connection, seen)]
        except Tampered as error:
            return [*findings, f"projections: expected a log that they follow from, got: {error.message}"]


def check_guards(connection: Connection) -> list[str]:
    """Return findings on the schema (missing, changed or unexpected objects) and on the rights of the service's
    role."""
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


@dataclass(frozen=True)
class DatabaseSummary:
    """A summary of a database.

    `state` has what decides which adapters may be loaded; it is None for an empty log. `role` is the login of the
    service, and `powers` are its privileges that an application does not need.
    """

    size: int
    state: State | None
    role: str
    powers: tuple[str, ...]


def summarise_database(engine: Engine) -> DatabaseSummary:
    """Return a summary of the database.

    Raises:
        Conflict: the database is at another revision.
        Tampered: tables, triggers or rights differ from what the migrations create.
        Unavailable: the database does not respond.
    """
    check_migrated(engine)
    with database_errors("database"), connect_reader(engine) as connection:
        size = read_head(connection).size
        role, powers = _role(connection)
        return DatabaseSummary(
            size=size,
            state=state_at(connection, size - 1, (*ACCESS_KINDS, "identity")) if size else None,
            role=role,
            powers=powers,
        )


_POWERS = """
SELECT rolname, rolsuper, rolcreaterole, rolbypassrls,
    (SELECT relowner = pg_roles.oid FROM pg_class WHERE pg_class.oid = to_regclass('public.entries'))
FROM pg_roles WHERE rolname = current_user
"""


def _role(connection: Connection) -> tuple[str, tuple[str, ...]]:
    if connection.dialect.name == "sqlite":
        return "the file's owner", ()
    name, *held = connection.execute(text(_POWERS)).one()
    names = ("superuser", "createrole", "bypassrls", "owner of the tables")
    return str(name), tuple(power for power, given in zip(names, held, strict=True) if given)


_PAGE = 256


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that reads one snapshot of the database."""
    with database_errors("ledger"), connect_reader(engine) as connection:
        yield connection


def read_log(engine: Engine, start: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes of the entries [start, stop) in order, read in pages; without `stop`, up to the current head."""
    with reading(engine) as connection:
        size = rows.read_head(connection).size
    last = size if stop is None else min(stop, size)
    for first in range(start, last, _PAGE):
        with reading(engine) as connection:
            page = rows.read_bytes(connection, first, min(first + _PAGE, last))
        yield from (data for _, data in page)


def read_entry(connection: Connection, index: int, archives: Callable[[], Table[Archive]]) -> bytes:
    """Return the bytes of an entry, compared with its leaf hash.

    Raises:
        NotFound: there is no such entry, or an archive removed its bytes (code `archived`).
        Tampered: the bytes do not hash to the leaf.
    """
    data = rows.read_entry_bytes(connection, index)
    if data is None:
        raise NotFound(f"entry {index}: expected one of the log's entries, got none")
    if not data and (archive := rows.find_archive(connection, index)) is not None:
        raise NotFound(f"entry {index}: {describe_archive(archive, archives().get(str(archive)))}", code="archived")
    leaf = rows.read_nodes(connection, [(0, index)]).get((0, index))
    if hash_leaf(data) != leaf:
        expected = "none" if leaf is None else leaf.hex()
        raise Tampered(f"entry {index}: leaf hash: expected {expected}, got {hash_leaf(data).hex()}")
    return data


def describe_archive(index: int, row: Archive | None) -> str:
    """Return who ordered an archive, and its digest; `index` is the archive's entry and `row` its row in the state."""
    if row is None:
        return f"entry {index} removed it, and the state has no such archive"
    who = f"by order of {' and '.join(row.signers)}"
    return f"entry {index} of {row.time[:10]} removed it {who}; the archive {row.archive} has it"


def find_document(engine: Engine, digest: str) -> bytes:
    """Return the document with this digest after hashing it again.

    Raises:
        NotFound: there is none.
        Tampered: its bytes have another digest.
    """
    with reading(engine) as connection:
        data = rows.read_document(connection, raw_digest(digest))
    if data is None:
        raise NotFound(f"document {digest}: expected one that an entry binds, got none")
    if digest_bytes(data) != digest:
        raise Tampered(f"document {digest}: expected the bytes of its digest, got {digest_bytes(data)}")
    return data
