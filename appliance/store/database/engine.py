"""Opens the database with what durability and the ledger's rules need, and brings its tables up to date."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError

from appliance.errors import BadInput, Conflict, Tampered, Unavailable
from appliance.store.database import prepared
from appliance.store.database.catalogue import require_catalogue
from appliance.store.database.tables import OLDER, REVISION

BUSY_TIMEOUT_S = 10
"""How long a writer waits for another one before the database counts as unavailable."""
CHECKPOINT_WAIT_S = 0.25
"""How long a checkpoint waits for readers: more than a request reads, and no append can begin meanwhile."""

_SQLITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    # No text of an erased disclosure may remain in a free page.
    "PRAGMA secure_delete = ON",
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}",
)
_POSTGRESQL_OPTIONS = {
    # A commit that was acknowledged is on disk, whatever the settings of the role or the database are.
    "synchronous_commit": "on",
    "lock_timeout": f"{BUSY_TIMEOUT_S}s",
    # A service that was stopped in the middle of an append must not hold the head against the others.
    "idle_in_transaction_session_timeout": "30s",
    # The server learns within a minute that a service's host is gone, and lets go of what its sessions held.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # Whatever a role or a database sets: a table or a function of another schema, or a temporary one, is never taken
    # for the ledger's.
    "search_path": "public,pg_temp",
    "client_encoding": "UTF8",
    "timezone": "UTC",
}


def open_engine(url: str, *, read_only: bool = False, process: str | None = None) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql://…`; connects to nothing yet. BadInput for any other URL.

    `process`: the service process whose sessions these are, "" for one without a name.
    """
    parsed = parse_database_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed, "ro" if read_only else "rw")
    settings = _POSTGRESQL_OPTIONS | ({"default_transaction_read_only": "on"} if read_only else {})
    if process is not None:
        settings = settings | {"application_name": session_name(process)}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return create_engine(
        parsed,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_timeout=BUSY_TIMEOUT_S,
        connect_args={"options": options, "connect_timeout": BUSY_TIMEOUT_S, "tcp_user_timeout": BUSY_TIMEOUT_S * 1000},
    )


def session_name(process: str) -> str:
    """What the server knows a process's sessions by."""
    return f"appliance/{process}"


def locate_database(engine: Engine) -> str:
    """The URL of the same database for another process in any folder; it contains the password."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        url = url.set(database=os.path.abspath(str(url.database)))
    return url.render_as_string(hide_password=False)


def _open_sqlite(url: URL, mode: str) -> Engine:
    path = os.path.abspath(str(url.database))

    def connect() -> sqlite3.Connection:
        # Either mode: a database that is gone is an error, never a new, empty one.
        address = f"file:{quote(path)}?mode={mode}"
        return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)

    engine = create_engine(url, creator=connect)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "checkout", _check_out)
    return engine


def parse_database_url(given: str) -> URL:
    """The URL with its driver; messages never show a password."""
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise BadInput("database URL: expected sqlite:///PATH or postgresql://HOST/NAME, got no URL") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and not url.query and url.database not in (None, "", ":memory:"):
        return url
    shown = url.render_as_string(hide_password=True)
    raise BadInput(f"database URL: expected sqlite:///PATH or postgresql://HOST/NAME, got {shown}")


def _configure_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver's own transactions begin too late (at the first change) and never as IMMEDIATE.
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(pragma).close()
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["file"] = (path, _identity(path))


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    prepared.run_raw(connection, "execute", "BEGIN IMMEDIATE" if writes else "BEGIN", ())


def begin_writing(connection: Connection) -> None:
    """A transaction of a connection that was made to write, again after `prepared.commit`."""
    if not connection.in_transaction():
        connection.begin()
    elif connection.dialect.name == "sqlite":
        _begin_sqlite(connection)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def connect_writer(engine: Engine) -> Connection:
    """A connection whose transactions take SQLite's write lock when they begin, so that none fails half-way for it."""
    return engine.connect().execution_options(writes=True)


def keep_off_disk(connection: Connection) -> None:
    """Nothing that it writes goes into SQLite's temporary files, which are outside the home; before it begins."""
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        raw.execute("PRAGMA temp_store = MEMORY").close()


def connect_reader(engine: Engine) -> Connection:
    """A connection whose transaction sees one moment of the database, however many statements it asks."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return connection


def discard(connection: Connection | None) -> None:
    """Closes it, in any state, without returning it to the pool."""
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.invalidate()
        with suppress(SQLAlchemyError):
            connection.close()


def checkpoint_wal(connection: Connection, mode: str) -> bool:
    """SQLite's own, outside of every transaction (https://sqlite.org/pragma.html#pragma_wal_checkpoint).

    False where it could not complete: another connection reads an older snapshot, writes, or checkpoints.
    """
    raw: Any = connection.connection.driver_connection
    _set_wait(raw, CHECKPOINT_WAIT_S)
    try:
        ((busy, _written, _copied),) = raw.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
    finally:
        _set_wait(raw, BUSY_TIMEOUT_S)
    return not busy


def _set_wait(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}").close()


def stored_bytes(engine: Engine) -> int:
    """What the database takes on disk: SQLite's file with what was written ahead, or all of PostgreSQL's database."""
    if engine.dialect.name == "sqlite":
        path = Path(os.path.abspath(str(engine.url.database)))
        files = (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"))
        return sum(file.stat().st_size for file in files if file.exists())
    with database_errors("database"), connect_reader(engine) as connection:
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def is_current(connection: Connection) -> bool:
    """False once SQLite's file is no longer the one at its path: what is written into a removed file is lost."""
    return _is_same_file(connection.info)


def _is_same_file(info: Any) -> bool:
    path, identity = info.get("file", (None, None))
    try:
        return path is None or _identity(path) == identity
    except OSError:
        return False


def _check_out(_connection: object, record: Any, _proxy: object) -> None:
    if not _is_same_file(record.info):
        raise DisconnectionError("the database file was replaced")


class database_errors:
    """Nothing foreign leaks out: a refused row is Tampered, every other trouble of database or disk Unavailable.

    A class of its own, since a generator costs each append more.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IntegrityError):
            raise Tampered(f"{self._what}: expected rows that fit the ledger, got {_first_line(error)}") from error
        if isinstance(error, (SQLAlchemyError, sqlite3.Error, OSError)):
            raise Unavailable(f"{self._what}: expected a database that answers, got {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause) or type(cause).__name__).splitlines()[0]


def migrate(engine: Engine) -> None:
    """Creates or upgrades every table, in one transaction; the engine's role must own them.

    Tampered, and nothing is changed, where the database would then hold anything else than what the migrations make.
    """
    with database_errors("migration"), begin_migration(engine) as connection:
        upgrade(connection)
        require_catalogue(connection)


def upgrade(connection: Connection) -> None:
    """The migrations alone, within the caller's transaction."""
    from alembic import command

    command.upgrade(_alembic_config(connection), "head")


@contextmanager
def begin_migration(engine: Engine) -> Iterator[Connection]:
    """A writing transaction on a database that may not be there yet; a new SQLite file is its owner's alone."""
    if engine.dialect.name == "sqlite":
        os.close(open_file(engine))
    with connect_writer(engine) as connection:
        keep_off_disk(connection)
        with connection.begin():
            yield connection


def open_file(engine: Engine) -> int:
    """A descriptor of SQLite's file, which is made where there is none."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(os.path.abspath(str(engine.url.database)), flags, 0o600)


def check_migrated(engine: Engine) -> None:
    """Conflict when the database is not exactly at the revision that this code was written for; Tampered where it holds
    anything else than that revision's tables, triggers and rights."""
    with database_errors("migration"), connect_reader(engine) as connection:
        got = _revision_of(connection)
        if got != REVISION:
            raise Conflict(f"database, revision: expected {REVISION}, got {got or 'an empty database'}")
        require_catalogue(connection)


def bring_up_to_date(url: str, owner_url: str, say: Callable[[str], None]) -> None:
    """The tables of an earlier build, by who owns them; one that is older than the tables refuses them."""
    with _opened(url) as engine, database_errors("migration"), connect_reader(engine) as connection:
        revision = _revision_of(connection)
    if revision in OLDER:
        say("brings its tables up to date")
        with _opened(owner_url) as engine:
            migrate(engine)


@contextmanager
def _opened(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _alembic_config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).resolve().parents[3] / "migrations"))
    return config
