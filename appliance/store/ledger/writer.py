"""The one connection that writes entries: how its transaction begins, and what is known when its commit has ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from appliance.errors import Unavailable
from appliance.store.database import prepared
from appliance.store.database.engine import (
    begin_writing,
    checkpoint_wal,
    connect_reader,
    connect_writer,
    database_errors,
    discard,
    is_current,
    keep_off_disk,
)
from appliance.store.ledger import rows
from appliance.store.ledger.staging import Batch, Staged


class Writer:
    """Opened when it is first needed, and again after an error on it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._scrub_owed = False
        """Removed rows may still be in SQLite's write-ahead log."""
        self._removed = False

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
            keep_off_disk(self._connection)
        begin_writing(self._connection)
        lock(self._connection)
        return self._connection

    def roll_back(self) -> None:
        assert self._connection is not None
        self._connection.rollback()

    def commit(self, connection: Connection, batch: Batch) -> None:
        """Durable once this returns. Where the commit failed, the database is asked whether the batch was committed,
        because perhaps only its answer was lost. Unavailable with the code `commit-unknown` where this cannot be found
        out.

        Unavailable, and nothing was committed, where SQLite's file is no longer the one at its path.
        """
        last = batch.staged[-1]
        what = f"ledger, entry {last.entry.index}"
        if not is_current(connection):
            raise Unavailable(f"{what}: expected the database file that was opened, got none or a new one at its path")
        self._removed = any(one.draft.erased for one in batch.staged)
        # Before the commit, whose end may never be seen.
        self._scrub_owed |= self._removed
        try:
            prepared.commit(connection)
        except SQLAlchemyError:
            if not self._stands(last, what):
                raise

    def _stands(self, last: Staged, what: str) -> bool:
        self.close()
        try:
            with connect_writer(self._engine) as connection, connection.begin():
                # Waits until the lost session's transaction has ended, one way or the other.
                rows.lock_head(connection)
                return rows.read_entry_bytes(connection, last.entry.index) == last.data
        except SQLAlchemyError as error:
            raise Unavailable(
                f"{what}: expected to find out whether it was committed, got no answer", code="commit-unknown"
            ) from error

    def scrub_after(self) -> None:
        """Scrubs where the last commit has removed anything: its entries are committed in any case."""
        if self._removed:
            self.scrub()

    def scrub(self) -> None:
        """Leaves nothing of removed rows in SQLite's write-ahead log. Where a reader of an older snapshot or the disk
        prevents this, it raises nothing, and `write_back` tries again."""
        # First: a commit meanwhile needs a scrub of its own.
        self._scrub_owed = False
        if not self._checkpoint("TRUNCATE"):
            self._scrub_owed = True

    def write_back(self) -> None:
        """Copies what SQLite has written ahead into the database itself, while others append and read, and scrubs where
        a scrub is due; does nothing on PostgreSQL. An append only has to do it where a thousand pages have come
        together.

        Where the database does not answer, the next append raises the error.
        """
        if self._scrub_owed:
            self.scrub()
        else:
            self._checkpoint("PASSIVE")

    def _checkpoint(self, mode: str) -> bool:
        """Whether it ended; PostgreSQL needs none. On a connection apart from the writer's, as any thread may do it."""
        if self._engine.dialect.name != "sqlite":
            return True
        with suppress(Unavailable), database_errors("write-ahead log"), connect_reader(self._engine) as connection:
            return checkpoint_wal(connection, mode)
        return False

    def close(self) -> None:
        writer, self._connection = self._connection, None
        if writer is not None:
            # First of all: SQLite keeps the lock of a closed connection for as long as an error's traceback holds a
            # cursor of it.
            with suppress(SQLAlchemyError):
                writer.rollback()
        discard(writer)
