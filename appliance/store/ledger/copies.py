"""Consistent copies of the database for backups, and the databases that are made from them.

SQLite is copied by its backup API, PostgreSQL by `pg_dump`, each from one snapshot beside a running service. A copy has
no sessions. The log in each copy is verified before the copy is used.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine, inspect, select, text

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.state import State
from appliance.domain.retention import TextErased
from appliance.errors import Conflict, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import HASH_BYTES, Frontier, hash_leaf
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.export import hash_line, read_removed
from appliance.formats.log.trust import Trust
from appliance.store.database.catalogue import require_catalogue
from appliance.store.database.engine import (
    begin_migration,
    connect_reader,
    connection_parameters,
    database_errors,
    parse_database_url,
    using_engine,
)
from appliance.store.database.tables import documents
from appliance.store.ledger.checks import read_log
from appliance.store.ledger.log_state import NO_KNOWN_HEAD, load_log_state
from appliance.store.ledger.rows import delete_disclosures, read_bytes, read_checkpoint, read_head
from appliance.store.ledger.snapshots import SnapshotContent

T = TypeVar("T")

_ATTEMPTS = 100
"""Most attempts to find a moment in which the files beside the database do not change."""
_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'appliance_app') THEN CREATE ROLE appliance_app NOLOGIN; END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""


class LogCopy(NamedTuple):
    """The verified log of a database: its state, root and signed checkpoint."""

    state: State
    frontier: Frontier
    checkpoint: bytes


def copy_database(
    url: str, target: Path, trust: Trust, read_beside: Callable[[], T], kept: SnapshotContent | None = None
) -> tuple[LogCopy, T]:
    """Copy the database into a new file and verify the log in it.

    `read_beside` reads files that change with the log. It is called before and after the copy's snapshot begins, until
    both calls return the same value. That value is returned, too. `kept`: a snapshot of the service's state; the
    entries that it covers are hashed and not replayed.

    Raises:
        Tampered: the log is invalid, or is not the one of the trust file.
        Unavailable: the database or its tools fail.
    """
    with using_engine(url, read_only=True) as engine:
        for _ in range(_ATTEMPTS):
            with database_errors("backup of the database"), connect_reader(engine) as connection:
                before = read_beside()
                read_head(connection)  # begins the snapshot
                if read_beside() != before:
                    continue
                if engine.dialect.name == "sqlite":
                    _copy_sqlite(connection, target)
                    return read_sqlite(target, trust, kept), before
                found = read_copied_log(connection, trust, kept)
                _dump_postgresql(connection, url, target)
                check_dump(target, open_checkpoint(found.checkpoint, *found.state.site.checkpoint_keys()))
                return found, before
        raise Unavailable(
            "backup of the database: expected a moment without a new cosignature, got one each time; try again"
        )


def _copy_sqlite(connection: Connection, target: Path) -> None:
    source: Any = connection.connection.driver_connection
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    copy = sqlite3.connect(target, isolation_level=None)
    try:
        source.backup(copy)
        # Overwrite the deleted rows, so that no session remains in a free page.
        for statement in ("PRAGMA secure_delete = ON", "DELETE FROM sessions"):
            copy.execute(statement).close()
    finally:
        copy.close()


def read_sqlite(path: Path, trust: Trust, kept: SnapshotContent | None = None) -> LogCopy:
    """Verify the log in a copied file of SQLite, which has no other reader."""
    with using_engine(f"sqlite:///{path}") as engine:
        return read_database(engine, trust, kept)


def read_database(engine: Engine, trust: Trust, kept: SnapshotContent | None = None) -> LogCopy:
    """Verify the log, the schema and the rights of a database."""
    with database_errors("database"), connect_reader(engine) as connection:
        require_catalogue(connection)
        return read_copied_log(connection, trust, kept)


def read_copied_log(connection: Connection, trust: Trust, kept: SnapshotContent | None = None) -> LogCopy:
    """Replay the log, and check that it is that of the trust file.

    Entries that `kept` covers are hashed instead, and so is every document.

    Raises:
        Tampered: an entry, row or checkpoint is invalid, or the log is another one.
    """
    begun, seen = (None, NO_KNOWN_HEAD) if kept is None else (kept.log_state, kept.seen)
    log_state = load_log_state(connection, begun, seen, trust.log_key, lambda _read, _of: None)
    first, note = read_bytes(connection, 0, 1), read_checkpoint(connection)
    if not first or note is None:
        raise Tampered("log: expected entries, got none")
    if (got := f"sha256:{hash_leaf(first[0][1]).hex()}") != trust.genesis:
        raise Tampered(f"entry 0: expected the first entry of the trust file, {trust.genesis}, got {got}")
    if begun is not None:
        _check_documents(connection)
    return LogCopy(log_state.state, log_state.frontier, note)


def _check_documents(connection: Connection) -> None:
    """Check that the bytes of each document have its digest."""
    every = select(documents.c.digest, documents.c.bytes).execution_options(yield_per=100)
    for digest, data in connection.execute(every):
        if (got := digest_bytes(data)) != (expected := f"sha256:{digest.hex()}"):
            raise Tampered(f"document {expected}: expected bytes with this digest, got {got}")


def find_erasures(url: str, size: int) -> list[int]:
    """Return the entries after the first `size` that erased a text."""
    with using_engine(url, read_only=True) as engine:
        kept = (data for data in read_log(engine, size, None) if read_removed(data) is None)
        return [entry.index for entry in map(parse_entry, kept) if entry.type == TextErased.type]


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def _dump_postgresql(connection: Connection, url: str, target: Path) -> None:
    # The snapshot must outlive the dump, during which this session is idle.
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    options = ("--format=custom", "--no-owner", "--exclude-table-data=public.sessions", f"--snapshot={snapshot}")
    _run_tool("pg_dump", url, *options, f"--file={target.absolute()}")


def check_dump(dump: Path, expected: Checkpoint) -> None:
    """Read the entries of a dump with `pg_restore` and compare the tree over them with a checkpoint.

    Raises:
        Tampered: the dump has other entries.
    """
    leaves, count = bytearray(HASH_BYTES * expected.size), 0
    for index, leaf in _read_leaves(dump):
        if not 0 <= index < expected.size:
            raise Tampered(f"database dump, entry {index}: expected none beyond the checkpoint, got one")
        leaves[HASH_BYTES * index : HASH_BYTES * (index + 1)] = leaf
        count += 1
    frontier = Frontier.EMPTY
    for start in range(0, len(leaves), HASH_BYTES):
        frontier = frontier.append(bytes(leaves[start : start + HASH_BYTES]))
    if (count, frontier.root()) != (expected.size, expected.root):
        raise Tampered(f"database dump: expected the {expected.size} entries of the checkpoint, got {count} or others")


def _read_leaves(dump: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (index, leaf hash) of the entries in a dump, from the text of COPY that pg_restore writes."""
    command = [
        find_tool("pg_restore"),
        "--data-only",
        "--schema=public",
        "--table=entries",
        "--file=-",
        str(dump.absolute()),
    ]
    columns: list[str] | None = None
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd="/", env=dict(os.environ), stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if columns is None and line.startswith(b"COPY public.entries ("):
                names = line[line.index(b"(") + 1 : line.index(b")")].decode()
                columns = [name.strip(' "') for name in names.split(",")]
            elif columns is not None and line.rstrip(b"\n") == b"\\.":
                break
            elif columns is not None:
                values = dict(zip(columns, line.rstrip(b"\n").split(b"\t"), strict=True))
                data, nodes = map(_parse_bytea, (values["bytes"], values["nodes"]))
                yield int(values["index"]), hash_leaf(data) if data else nodes[:HASH_BYTES]
        process.stdout.read()
        message = process.stderr.read()
    if process.returncode != 0 or columns is None:
        raise Tampered(f"database dump: expected one that pg_restore reads, got: {_last_line(message)}")


def _parse_bytea(text: bytes) -> bytes:
    return bytes.fromhex(text.removeprefix(b"\\\\x").decode())


def restore_dump(dump: Path, owner_url: str) -> None:
    """Fill an empty PostgreSQL database from a dump, in one transaction, as the owner of the tables.

    Raises:
        Conflict: the database has tables.
        Unavailable: the server refuses; the database is unchanged.
    """
    with using_engine(owner_url) as engine:
        with database_errors("restore of the database"), begin_migration(engine) as connection:
            if tables := inspect(connection).get_table_names():
                raise Conflict(
                    f"restore of the database: expected an empty one, got one with tables, such as {tables[0]}"
                )
            connection.execute(text(_ROLE))
        _run_tool(
            "pg_restore", owner_url, "--no-owner", "--single-transaction", "--exit-on-error", str(dump.absolute())
        )


def _run_tool(name: str, url: str, *options: str) -> None:
    """Run a program of PostgreSQL on a database. The password is in its environment, so that no process list has it."""
    parameters = connection_parameters(parse_database_url(url))
    environment = dict(os.environ)
    if (password := parameters.pop("password", None)) is not None:
        environment["PGPASSWORD"] = str(password)
    command = [find_tool(name), "--no-password", f"--dbname={make_conninfo(**parameters)}", *options]
    found = subprocess.run(command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if found.returncode != 0:
        raise Unavailable(f"{name}: expected it to succeed, got: {_last_line(found.stderr)}")


def find_tool(name: str) -> str:
    """Return the path of a program of PostgreSQL: the newest of Debian's packages, or the one on the PATH.

    Raises:
        Unavailable: there is none.
    """
    packaged = [path for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}") if path.parts[-3].isdecimal()]
    found = str(max(packaged, key=lambda path: int(path.parts[-3]))) if packaged else shutil.which(name)
    if found is None:
        raise Unavailable(f"{name}: expected PostgreSQL's own program, got none; install postgresql-client")
    return found


def _last_line(message: bytes) -> str:
    lines = message.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"


# --- a restored database ------------------------------------------------------------------------------------------


def erase_texts(engine: Engine, commitments: Iterable[str]) -> None:
    """Erase the texts behind these commitments, as an erasure that the copied log lacks did."""
    with database_errors("restore of the database"), begin_migration(engine) as connection:
        delete_disclosures(connection, list(commitments))


def roots_at(engine: Engine, sizes: Iterable[int]) -> dict[int, bytes]:
    """Return the root of the log's tree at each of these sizes that the log has."""
    wanted, roots, frontier = set(sizes), {}, Frontier.EMPTY
    for data in read_log(engine, 0, max(wanted, default=0)):
        frontier = frontier.append(hash_line(data))
        if frontier.size in wanted:
            roots[frontier.size] = frontier.root()
    return roots
