"""One founder a database: whoever makes an appliance has it alone until the first entry stands."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from appliance.errors import Conflict
from appliance.store.database.engine import database_errors, discard, open_file

LOG_KEY = int.from_bytes(b"applianc") >> 1
"""PostgreSQL counts advisory locks by database, and a database holds one log. A founder has it alone; the processes
that serve the log share it."""


@contextmanager
def claim_founding(engine: Engine) -> Iterator[None]:
    """Only this founder has the database, until it is done or its process ends; Conflict, at once, while another
    process founds or serves there. A SQLite file that does not exist is made."""
    try:
        with _claim_database(engine) if engine.dialect.name == "postgresql" else _claim_file(engine):
            yield
    except _Claimed:
        raise Conflict(
            "database: expected one that no other process uses, got one in which another process starts or serves "
            "an appliance; nothing was created: give this home a database of its own",
            code="locked",
        ) from None
    finally:
        engine.dispose()


class _Claimed(Exception):
    """Another process has it."""


@contextmanager
def _claim_database(engine: Engine) -> Iterator[None]:
    """By a session of its own, which the server ends with its process."""
    connection: Connection | None = None
    try:
        with database_errors("claim of the database"):
            connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOG_KEY}).scalar_one()
        if not taken:
            raise _Claimed
        yield
    finally:
        discard(connection)


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
        raise _Claimed from None
    finally:
        os.close(descriptor)
