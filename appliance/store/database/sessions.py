"""People's reading sessions: stored under the digest of their token, so that a reader of the table cannot use them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, delete, insert, select

from appliance.store.database.engine import connect_reader, connect_writer, database_errors
from appliance.store.database.tables import sessions

_WHAT = "sessions"
_AT_ONCE = 1_000
_ROW = (sessions.c.principal, sessions.c.keyid, sessions.c.expires_at, sessions.c.entry)
"""As `SessionRow` takes them."""


@dataclass(frozen=True)
class SessionRow:
    """`expires_at`: the end that its opening signed. `keyid`: the key that signed it. `entry`: where the log has it."""

    principal: str
    keyid: str
    expires_at: str
    entry: int


class Sessions:
    """Not part of the ledger: these rows are in no export, and are removed after they end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, token: str, row: SessionRow) -> None:
        values = {"digest": digest_of(token), **vars(row)}
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            connection.execute(insert(sessions), values)

    def find(self, token: str) -> SessionRow | None:
        wanted = select(*_ROW).where(sessions.c.digest == digest_of(token))
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            found = connection.execute(wanted).one_or_none()
        return None if found is None else SessionRow(*found)

    def all(self) -> list[SessionRow]:
        """Those that were not removed, the newest first; some may have ended."""
        return self._list(select(*_ROW))

    def of(self, principal: str) -> list[SessionRow]:
        """The same of one person."""
        return self._list(select(*_ROW).where(sessions.c.principal == principal))

    def _list(self, wanted: Select[Any]) -> list[SessionRow]:
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            return [SessionRow(*row) for row in connection.execute(wanted.order_by(sessions.c.entry.desc()))]

    def move(self, token: str, to: str) -> SessionRow | None:
        """The session, under another token from here on; None where the first one opens none. Of several moves of one
        token at once, here or by another process, one finds it."""
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            found = connection.execute(_take(sessions.c.digest == digest_of(token))).one_or_none()
            if found is not None:
                row = SessionRow(*found)
                connection.execute(insert(sessions), {"digest": digest_of(to), **vars(row)})
                return row
        return None

    def remove_opened_by(self, entry: int) -> SessionRow | None:
        """The session that this entry opened, which is gone now; None where there is none."""
        return self._remove_one(sessions.c.entry == entry)

    def remove(self, token: str) -> SessionRow | None:
        """The same of the session that this token opened."""
        return self._remove_one(sessions.c.digest == digest_of(token))

    def _remove_one(self, which: ColumnElement[bool]) -> SessionRow | None:
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            found = connection.execute(_take(which)).first()
        return None if found is None else SessionRow(*found)

    def sweep(self, stands: Callable[[SessionRow], bool]) -> int:
        """Removes every session that has ended; returns how many."""
        wanted = select(sessions.c.digest, *_ROW)
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            ended = [digest for digest, *row in connection.execute(wanted) if not stands(SessionRow(*row))]
        # A statement has a bounded number of parameters.
        for first in range(0, len(ended), _AT_ONCE):
            self._remove(ended[first : first + _AT_ONCE])
        return len(ended)

    def _remove(self, digests: list[bytes]) -> None:
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            connection.execute(delete(sessions).where(sessions.c.digest.in_(digests)))

    def close(self) -> None:
        self._engine.dispose()


def _take(which: ColumnElement[bool]) -> Any:
    return delete(sessions).where(which).returning(*_ROW)


def digest_of(token: str) -> bytes:
    """Also where one is looked up: that takes as long for any wrong token."""
    return hashlib.sha256(token.encode()).digest()
