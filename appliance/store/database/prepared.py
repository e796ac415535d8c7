"""Core statements compiled once and run on the driver's own cursor: for those that every append repeats.

Core's own way through compilation cache, parameters and result costs several times what the database takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError

Values = Mapping[str, Any]
_Compiled = tuple[str, Callable[[Values], Any]]


class Prepared:
    """One statement; its parameters are a mapping with all of its names. Values go to the driver as they are."""

    def __init__(self, statement: ClauseElement | Callable[[str], ClauseElement]) -> None:
        """A function makes the statement for a dialect's name, where the dialects differ."""
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def execute(self, connection: Connection, values: Values) -> Any:
        """The driver's cursor: rows are plain tuples."""
        sql, bind = self._compiled.get(connection.dialect.name) or self._compile(connection.dialect)
        _begin(connection)
        return run_raw(connection, "execute", sql, bind(values))

    def ask(self, connection: Connection, values: Values) -> list[Any]:
        """All rows, from one moment of the database, without a transaction around them."""
        sql, bind = self._compile(connection.dialect)
        found: list[Any] = run_raw(connection, "execute", sql, bind(values)).fetchall()
        return found

    def execute_many(self, connection: Connection, rows: Sequence[Values]) -> None:
        sql, bind = self._compile(connection.dialect)
        _run_many(connection, sql, [bind(row) for row in rows])

    def insert(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows of an INSERT without more, their values in the order of the table's columns."""
        sql, _ = self._compile(connection.dialect)
        _run_many(connection, sql, rows)

    def _compile(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            statement = self._statement(dialect.name) if callable(self._statement) else self._statement
            made: Any = statement.compile(dialect=dialect if dialect.positional else _POSTGRESQL)
            compiled = self._compiled[dialect.name] = str(made), _places(made.positiontup)
        return compiled


_POSTGRESQL: Dialect = PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
"""By place, as in SQLite: SQLAlchemy's own way is by name."""


def _run_many(connection: Connection, sql: str, rows: Sequence[Any]) -> None:
    if not rows:
        return
    _begin(connection)
    if len(rows) == 1:
        run_raw(connection, "execute", sql, rows[0])
    else:
        run_raw(connection, "executemany", sql, rows)


def _places(names: Sequence[str]) -> Callable[[Values], Any]:
    """Values in the order of their places; `itemgetter` of one name would give that value alone."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: [values[name] for name in names]


def _begin(connection: Connection) -> None:
    """As before any other statement. Else SQLite would answer outside the transaction that the next one begins, and
    what a reader takes for one moment of the database would be two."""
    if not connection.in_transaction():
        connection.begin()


def run_raw(connection: Connection, method: str, sql: str, parameters: Any) -> Any:
    """One call of the driver's, without a look at the transaction; what it raises comes in SQLAlchemy's tree, as from
    any other statement."""
    # The driver's own: no listener uses the pool's.
    cursor = connection.connection.dbapi_connection.cursor()  # type: ignore[union-attr]
    try:
        getattr(cursor, method)(sql, parameters)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translated(connection, sql, error, cursor) from error
    return cursor


def commit(connection: Connection) -> None:
    """Ends the driver's transaction. SQLAlchemy does not see this: for it, the connection is always in a transaction.

    As a statement, which SQLite's driver has compiled already; its own `commit` compiles one each time.
    """
    run_raw(connection, "execute", "COMMIT", ())


def _translated(connection: Connection, sql: str, error: Exception, cursor: Any) -> DBAPIError:
    dialect: Any = connection.dialect
    lost, base = dialect.is_disconnect(error, connection.connection, cursor), dialect.loaded_dbapi.Error
    found: Any = DBAPIError.instance(sql, None, error, base, connection_invalidated=lost, dialect=dialect)
    return found  # type: ignore[no-any-return]
