"""One service a log. Appends are safe while others append. But slots, open requests and runs have one owner: a service
that starts empties the slots and closes the requests and runs that it finds, because it takes them for those of the
last service."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import Conflict
from appliance.store.database.engine import database_errors, discard, open_file

_KEY = int.from_bytes(b"applianc") >> 1
"""PostgreSQL counts advisory locks by database, and a database holds one log."""
_ENDED = text(
    "SELECT pg_terminate_backend(pid) FROM pg_locks "
    "WHERE locktype = 'advisory' AND granted AND pid = :pid AND objid::bigint = :key"
)


class Claim:
    """On PostgreSQL a separate session has the claim. The server ends the session when the service ends, or within a
    minute after its host fails. A SQLite file is in the folder that is locked already, or was given to two services on
    purpose.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self.is_lost = False
        """Another service has the claim, so this one must end."""
        self._backend = 0
        """The server's process of the session that held it last: where only our end of it was lost, it holds it yet."""

    def hold(self) -> None:
        """Takes it, or takes it again where the server has ended the session. Conflict while another service has it."""
        if self._engine.dialect.name != "postgresql" or self._is_held():
            return
        with database_errors("claim of the log"):
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not (_take(connection) or self._end_our_own(connection)):
                connection.close()
                self.is_lost = True
                raise Conflict("database: expected no other service on its log, got one that is running", code="locked")
            self._connection = connection
            self._backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    def _end_our_own(self, connection: Connection) -> bool:
        """Whether it was ours all the time, in a session that is gone at this end alone."""
        backend, self._backend = self._backend, 0
        if not connection.execute(_ENDED, {"pid": backend, "key": _KEY & 0xFFFFFFFF}).scalar():
            return False
        for _ in range(20):
            if _take(connection):
                return True
            time.sleep(0.1)
        return False

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
        discard(connection)

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


@contextmanager
def claim_founding(engine: Engine) -> Iterator[None]:
    """Only this founder has the database, until it is done or its process ends; Conflict, at once, while another has
    it. A SQLite file that does not exist is made."""
    with ExitStack() as stack:
        try:
            stack.enter_context(Claim(engine) if engine.dialect.name == "postgresql" else _claim_file(engine))
        except Conflict:
            raise Conflict(
                "database: expected one that no other process uses, got one in which another process starts or serves "
                "an appliance; nothing was created: give this home a database of its own",
                code="locked",
            ) from None
        yield


@contextmanager
def _claim_file(engine: Engine) -> Iterator[None]:
    """By a lock of its own kind, which SQLite does not take. Opened before and closed after every connection: to close
    a descriptor lets go of what SQLite has locked of the file in this process."""
    with database_errors("database"):
        descriptor = open_file(engine)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Conflict("database: expected one that no other process uses, got a locked one") from None
    finally:
        os.close(descriptor)


def _take(connection: Connection) -> bool:
    return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}).scalar_one())
