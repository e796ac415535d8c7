"""One service a log. Appends are safe whoever else appends; slots, open requests and runs have one owner: the service
that starts empties and closes what it finds, as the last one's leavings."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import Conflict
from appliance.store.engine import database_errors

_KEY = int.from_bytes(b"applianc") >> 1
"""PostgreSQL counts advisory locks by database, and a database holds one log."""


class Claim:
    """Held on PostgreSQL by a session of its own, which the server ends when the service dies, however it dies. A file
    of SQLite lies in the folder that is locked already, or is given to two services on purpose."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def hold(self) -> None:
        """Takes it, or takes it again where the server has ended the session. Conflict while another service has it."""
        if self._engine.dialect.name != "postgresql" or self._is_held():
            return
        with database_errors("claim of the log"):
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar_one():
                connection.close()
                raise Conflict("database: expected no other service of its log, got one", code="locked")
            self._connection = connection

    def _is_held(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self.release()
            return False
        return True

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
            with suppress(SQLAlchemyError):
                connection.close()

    def __enter__(self) -> Self:
        try:
            self.hold()
        except BaseException:
            self._engine.dispose()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        self._engine.dispose()
