"""Database engines with the settings that durability and the ledger need, schema migrations, and prepared statements.

`Prepared` is a SQLAlchemy Core statement that is compiled once and run on the driver's cursor. Core's normal execution,
with its compilation cache, parameters and results, costs several times as much as the database.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, ClauseElement, Connection, Dialect, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError

from appliance.build import find_folder
from appliance.errors import BadInput, Conflict, Tampered, Unavailable
from appliance.store.database.catalogue import require_catalogue
from appliance.store.database.tables import DEVELOPMENT, OLDER, REVISION

Values = Mapping[str, Any]
_Compiled = tuple[str, Callable[[Values], Any]]


class Prepared:
    """One statement. Its parameters are a mapping that has all of its names; values go to the driver unchanged."""

    def __init__(self, statement: ClauseElement | Callable[[str], ClauseElement]) -> None:
        """Accept a statement, or a function from a dialect's name to the statement where the dialects differ."""
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def execute(self, connection: Connection, values: Values) -> Any:
        """Run the statement and return the driver's cursor, whose rows are plain tuples."""
        sql, bind = self._compiled.get(connection.dialect.name) or self._compile(connection.dialect)
        _begin(connection)
        return run_raw(connection, "execute", sql, bind(values))

    def ask(self, connection: Connection, values: Values) -> list[Any]:
        """Return all rows of one snapshot of the database, without starting a transaction."""
        sql, bind = self._compile(connection.dialect)
        found: list[Any] = run_raw(connection, "execute", sql, bind(values)).fetchall()
        return found

    def execute_many(self, connection: Connection, rows: Sequence[Values]) -> None:
        sql, bind = self._compile(connection.dialect)
        _run_many(connection, sql, [bind(row) for row in rows])

    def insert(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows by an INSERT without further clauses; values are in the order of the table's columns."""
        sql, _ = self._compile(connection.dialect)
        _run_many(connection, sql, rows)

    def _compile(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            statement = self._statement(dialect.name) if callable(self._statement) else self._statement
            made: Any = statement.compile(dialect=dialect if dialect.positional else _POSTGRESQL)
            compiled = self._compiled[dialect.name] = str(made), _positional(made.positiontup)
        return compiled


_POSTGRESQL: Dialect = PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
"""Dialect with positional parameters, as in SQLite; SQLAlchemy's default for PostgreSQL is by name."""


def _run_many(connection: Connection, sql: str, rows: Sequence[Any]) -> None:
    if not rows:
        return
    _begin(connection)
    if len(rows) == 1:
        run_raw(connection, "execute", sql, rows[0])
    else:
        run_raw(connection, "executemany", sql, rows)


def _positional(names: Sequence[str]) -> Callable[[Values], Any]:
    """Return a function that orders values by position; `itemgetter` of one name would return a bare value."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: [values[name] for name in names]


def _begin(connection: Connection) -> None:
    """Begin a transaction if there is none, as Core does before each statement.

    Otherwise SQLite would read outside the transaction that the next statement begins, and a reader would see two
    snapshots.
    """
    if not connection.in_transaction():
        connection.begin()


def run_raw(connection: Connection, method: str, sql: str, parameters: Any) -> Any:
    """Call the driver's cursor without checking the transaction; errors are translated to SQLAlchemy's classes."""
    # Use the driver's connection, since no listener needs the pool's.
    cursor = connection.connection.dbapi_connection.cursor()  # type: ignore[union-attr]
    try:
        getattr(cursor, method)(sql, parameters)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translate(connection, sql, error, cursor) from error
    return cursor


def commit_raw(connection: Connection) -> None:
    """Commit the driver's transaction; SQLAlchemy does not see this and keeps the connection in a transaction.

    COMMIT runs as a statement because SQLite's driver has it compiled; its own `commit` compiles one each time.
    """
    run_raw(connection, "execute", "COMMIT", ())


def _translate(connection: Connection, sql: str, error: Exception, cursor: Any) -> DBAPIError:
    dialect: Any = connection.dialect
    lost, base = dialect.is_disconnect(error, connection.connection, cursor), dialect.loaded_dbapi.Error
    found: Any = DBAPIError.instance(sql, None, error, base, connection_invalidated=lost, dialect=dialect)
    return found  # type: ignore[no-any-return]


BUSY_TIMEOUT_S = 10
"""Seconds that a writer waits for another one before the database counts as unavailable."""
CHECKPOINT_WAIT_S = 0.25
"""Seconds that a checkpoint waits for readers, longer than a request reads; no append can begin meanwhile."""

_SQLITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    # Overwrite deleted content, so that no text of an erased disclosure remains in a free page.
    "PRAGMA secure_delete = ON",
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}",
)
_POSTGRESQL_OPTIONS = {
    # An acknowledged commit is on disk, regardless of the settings of the role or the database.
    "synchronous_commit": "on",
    "lock_timeout": f"{BUSY_TIMEOUT_S}s",
    # A service that was stopped in the middle of an append must not keep the head locked.
    "idle_in_transaction_session_timeout": "30s",
    # Within a minute, the server detects that a service's host is gone and releases the locks of its sessions.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # Override the settings of role and database, so that no table or function of another schema, and no temporary
    # one, is used instead of the ledger's.
    "search_path": "public,pg_temp",
    "client_encoding": "UTF8",
    "timezone": "UTC",
}


def open_engine(url: str, *, read_only: bool = False, process: str | None = None) -> Engine:
    """Create an engine for `sqlite:///PATH` or `postgresql://…` without connecting.

    `process` is the name of the service process for its sessions; "" is a process without a name.

    Raises:
        BadInput: the URL has another form.
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
    """Return the `application_name` of a process's sessions on the server."""
    return f"appliance/{process}"


def locate_database(engine: Engine) -> str:
    """Return the URL of the same database for another process in any folder; it contains the password."""
    url = engine.url
    if url.get_backend_name() == "sqlite":
        url = url.set(database=os.path.abspath(str(url.database)))
    return url.render_as_string(hide_password=False)


def connection_parameters(url: URL) -> dict[str, Any]:
    """Return the parameters with which PostgreSQL's library connects to the database of a URL of several hosts or one.

    A URL of SQLAlchemy names each of several hosts by its own `host=HOST:PORT`, which the library does not read.
    """
    _, parameters = _POSTGRESQL.create_connect_args(url)
    return {name: value for name, value in parameters.items() if name != "context"}


def _open_sqlite(url: URL, mode: str) -> Engine:
    path = os.path.abspath(str(url.database))

    def connect() -> sqlite3.Connection:
        # Neither mode creates a file: a missing database is an error.
        address = f"file:{quote(path)}?mode={mode}"
        return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)

    engine = create_engine(url, creator=connect)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "checkout", _check_out)
    return engine


def parse_database_url(url_text: str) -> URL:
    """Parse a database URL and add its driver. Messages never show a password.

    Raises:
        BadInput: the URL has another form.
    """
    try:
        url = make_url(url_text)
        shown = url.render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # the latter for a wrong port, or bytes of the environment that are no UTF-8
        raise BadInput("database URL: expected sqlite:///PATH or postgresql://HOST/NAME, got no URL") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and not url.query and url.database not in (None, "", ":memory:"):
        return url
    raise BadInput(f"database URL: expected sqlite:///PATH or postgresql://HOST/NAME, got {shown}")


def _configure_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # Disable the driver's transactions, which begin only at the first change and never as IMMEDIATE.
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(pragma).close()
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    record.info["file"] = (path, _identity(path))


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    run_raw(connection, "execute", "BEGIN IMMEDIATE" if writes else "BEGIN", ())


def begin_writing(connection: Connection) -> None:
    """Begin a transaction on a writing connection, also after `commit_raw`."""
    if not connection.in_transaction():
        connection.begin()
    elif connection.dialect.name == "sqlite":
        _begin_sqlite(connection)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def connect_writer(engine: Engine) -> Connection:
    """Open a connection whose transactions take SQLite's write lock when they begin, so that none fails half-way."""
    return engine.connect().execution_options(writes=True)


def keep_off_disk(connection: Connection) -> None:
    """Keep SQLite's temporary data in memory, since its temporary files are outside the home; call it before a
    transaction."""
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        raw.execute("PRAGMA temp_store = MEMORY").close()


def connect_reader(engine: Engine) -> Connection:
    """Open a connection whose transaction reads one snapshot of the database, however many statements it runs."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return connection


def discard(connection: Connection | None) -> None:
    """Close a connection in any state without returning it to the pool."""
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.invalidate()
        with suppress(SQLAlchemyError):
            connection.close()


def checkpoint_wal(connection: Connection, mode: str) -> bool:
    """Run SQLite's WAL checkpoint outside of a transaction (https://sqlite.org/pragma.html#pragma_wal_checkpoint).

    Return False if it could not complete: another connection reads an older snapshot, writes, or runs a checkpoint.
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
    """Return the database's size on disk: SQLite's file with its write-ahead log, or the whole PostgreSQL database."""
    if engine.dialect.name == "sqlite":
        path = Path(os.path.abspath(str(engine.url.database)))
        files = (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"))
        return sum(file.stat().st_size for file in files if file.exists())
    with database_errors("database"), connect_reader(engine) as connection:
        return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())


def is_current(connection: Connection) -> bool:
    """Return False if SQLite's file is no longer the one at its path; data written into a removed file would be
    lost."""
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
    """A context manager that translates errors: a rejected row is Tampered, other database or disk errors are
    Unavailable.

    It is a class because a generator would cost more in every append.
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
    """Create or upgrade all tables in one transaction; the role of the engine must own them.

    Raises:
        Conflict: the tables are those of a development build; nothing is changed.
        Tampered: the schema would differ from what the migrations create; nothing is changed.
    """
    with database_errors("migration"), begin_migration(engine) as connection:
        _refuse_development(_revision_of(connection))
        upgrade(connection)
        require_catalogue(connection)


def migrate_back(engine: Engine, revision: str) -> None:
    """Migrate the tables back to an earlier revision in one transaction; the role of the engine must own them.

    Raises:
        BadInput: no migration of this build leads from that revision.
        Conflict: a migration in between cannot be taken back. In either case nothing is changed.
    """
    from alembic import command
    from alembic.util import CommandError

    with database_errors("migration"), begin_migration(engine) as connection:
        try:
            command.downgrade(_alembic_config(connection), revision)
        except CommandError as error:
            raise BadInput(f"revision: expected one that this build migrates from, got {revision}: {error}") from None
        except NotImplementedError:
            raise Conflict(f"database: expected migrations that lead back to {revision}, got one that cannot") from None


def upgrade(connection: Connection) -> None:
    """Run the migrations within the caller's transaction, without the schema check."""
    from alembic import command

    command.upgrade(_alembic_config(connection), "head")


@contextmanager
def begin_migration(engine: Engine) -> Iterator[Connection]:
    """Begin a writing transaction on a database that may not exist; a new SQLite file is readable by its owner only."""
    if engine.dialect.name == "sqlite":
        os.close(open_file(engine))
    with connect_writer(engine) as connection:
        keep_off_disk(connection)
        with connection.begin():
            yield connection


def open_file(engine: Engine) -> int:
    """Return a descriptor of SQLite's file, which is created if it does not exist."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(os.path.abspath(str(engine.url.database)), flags, 0o600)


def check_migrated(engine: Engine) -> None:
    """Check that the database is at the revision of this code and has exactly its schema.

    Raises:
        Conflict: the revision differs.
        Tampered: tables, triggers or rights differ from those of the revision.
    """
    with database_errors("migration"), connect_reader(engine) as connection:
        got = _revision_of(connection)
        _refuse_development(got)
        if got != REVISION:
            raise Conflict(f"database, revision: expected {REVISION}, got {got or 'an empty database'}")
        require_catalogue(connection)


def read_revision(engine: Engine) -> str | None:
    """Return the revision of the tables; None in an empty database."""
    with database_errors("migration"), connect_reader(engine) as connection:
        return _revision_of(connection)


def bring_up_to_date(url: str, owner_url: str, say: Callable[[str], None]) -> None:
    """Migrate tables of an earlier build as their owner; `check_migrated` refuses tables of a later build."""
    with using_engine(url) as engine:
        revision = read_revision(engine)
    if revision in OLDER:
        say("brings its tables up to date")
        with using_engine(owner_url) as engine:
            migrate(engine)


@contextmanager
def using_engine(url: str, *, read_only: bool = False) -> Iterator[Engine]:
    """Yield an engine, and close its connections afterwards."""
    engine = open_engine(url, read_only=read_only)
    try:
        yield engine
    finally:
        engine.dispose()


def _revision_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _refuse_development(revision: str | None) -> None:
    if revision in DEVELOPMENT:
        raise Conflict(
            f"This database (revision {revision}) was made by a development build. This build cannot read it. "
            "Export its log with that build if you need it. Then begin with a new home: appliance init.",
            code="development-database",
        )


def _alembic_config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(find_folder("migrations")))
    return config


class DatabaseReader:
    """A cached connection. Concurrent callers, and all callers on PostgreSQL, get a connection of the pool."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """Yield a connection for one statement by `Prepared.ask`, which leaves no transaction open on SQLite."""
        if self._engine.dialect.name != "sqlite" or not self._lock.acquire(blocking=False):
            with connect_reader(self._engine) as connection:
                yield connection
            return
        try:
            yield self._current()
        except BaseException:
            self._drop()
            raise
        finally:
            self._lock.release()

    def _current(self) -> Connection:
        if self._connection is not None and not is_current(self._connection):
            self._drop()
        if self._connection is None:
            self._connection = connect_reader(self._engine)
        return self._connection

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        discard(connection)
