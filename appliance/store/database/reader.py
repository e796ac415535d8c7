"""A connection that is kept for questions of one statement, which cost less than to take one from the pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from appliance.store.database.engine import connect_reader, discard, is_current


class Reader:
    """A caller that comes while it is in use, and every caller on PostgreSQL, gets one of the pool's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """For one statement, by `Prepared.ask`: nothing is left open that could hold SQLite to an older moment."""
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
        kept, self._connection = self._connection, None
        discard(kept)
