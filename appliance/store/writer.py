"""The one connection that writes entries: how its transaction begins, and what is known when its commit has ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from appliance.errors import Unavailable
from appliance.store import prepared, rows
from appliance.store.engine import begin_writing, checkpoint_wal, connect_writer, is_current


class Writer:
    """Opened when it is first needed, and again after whatever made it doubtful."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def begin(self, lock: Callable[[Connection], None]) -> Connection:
        """A transaction in which `lock` has taken hold of the head; ended again where it raises."""
        try:
            return self._lock(lock)
        except DBAPIError as error:
            # A server that was restarted meanwhile: nothing has been done on this connection, so another one will do.
            self.close()
            if not error.connection_invalidated:
                raise
            return self._lock(lock)
        except BaseException:
            self.close()
            raise

    def _lock(self, lock: Callable[[Connection], None]) -> Connection:
        if self._connection is None:
            self._connection = connect_writer(self._engine)
        begin_writing(self._connection)
        lock(self._connection)
        return self._connection

    def roll_back(self) -> None:
        assert self._connection is not None
        self._connection.rollback()

    def commit(self, what: str, stands: Callable[[Connection], bool]) -> None:
        """Durable once this returns. `stands` asks whether it does, where the commit failed: its answer may have been
        lost, not the commit. Unavailable with the code `commit-unknown` where nobody can tell.

        Unavailable, and nothing was committed, where SQLite's file is no longer the one at its path.
        """
        assert self._connection is not None
        if not is_current(self._connection):
            raise Unavailable(f"{what}: expected the database file to stand, got another one or none")
        try:
            prepared.commit(self._connection)
        except SQLAlchemyError:
            if not self._ask(what, stands):
                raise

    def _ask(self, what: str, stands: Callable[[Connection], bool]) -> bool:
        self.close()
        try:
            with connect_writer(self._engine) as connection, connection.begin():
                # Waits until the lost session's transaction has ended, one way or the other.
                rows.lock_head(connection)
                return stands(connection)
        except SQLAlchemyError as error:
            raise Unavailable(
                f"{what}: expected to learn whether it was committed, got no answer", code="commit-unknown"
            ) from error

    def scrub(self) -> None:
        """Leaves nothing of removed rows in SQLite's write-ahead log; a reader of an older moment may delay that."""
        if self._connection is not None and self._connection.dialect.name == "sqlite":
            checkpoint_wal(self._connection, "TRUNCATE")

    def close(self) -> None:
        writer, self._connection = self._connection, None
        if writer is not None:
            # First of all: SQLite keeps the lock of a closed connection for as long as an error's traceback holds a
            # cursor of it.
            with suppress(SQLAlchemyError):
                writer.rollback()
            with suppress(SQLAlchemyError):
                writer.invalidate()
            with suppress(SQLAlchemyError):
                writer.close()
