"""Read-only sessions of people, stored under the digest of their token so that a reader of the table cannot use
them.

A token has a MAC over its row, so that a writer of the table cannot make or change one.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, delete, insert, select

from appliance.formats.core.canonical import encode_canonical
from appliance.store.database.engine import connect_reader, connect_writer, database_errors
from appliance.store.database.tables import sessions

_WHAT = "sessions"
_AT_ONCE = 1_000
_PART_BYTES = 16
"""Length of the random part of a token, and of its MAC."""
_ROW = (sessions.c.principal, sessions.c.keyid, sessions.c.expires_at, sessions.c.entry)
"""Columns in the order of the fields of `SessionRow`."""


@dataclass(frozen=True)
class SessionRow:
    """A session.

    `expires_at` is the end that was signed when it was opened, `keyid` the key that signed it, and `entry` its entry in
    the log.
    """

    principal: str
    keyid: str
    expires_at: str
    entry: int


class Sessions:
    """The table of sessions. They are not part of the ledger or of exports, and are removed after they end."""

    def __init__(self, engine: Engine, key: bytes) -> None:
        """Use the table of this database. `key` is the service's secret, with which tokens are made."""
        self._engine = engine
        self._key = key

    def add(self, kind: str, row: SessionRow) -> str:
        """Store a session and return its secret token, which is not stored. Only holders of this kind can use it."""
        token = self._make_token(kind, row)
        values = {"digest": digest_of(kind, token), **vars(row)}
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            connection.execute(insert(sessions), values)
        return token

    def find(self, kind: str, token: str) -> SessionRow | None:
        """Return the session of this token; return None if there is none, or if its row is not as this service stored
        it."""
        wanted = select(*_ROW).where(sessions.c.digest == digest_of(kind, token))
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            found = connection.execute(wanted).one_or_none()
        row = None if found is None else SessionRow(*found)
        return row if row is not None and self._is_made(kind, token, row) else None

    def _make_token(self, kind: str, row: SessionRow) -> str:
        random = secrets.token_bytes(_PART_BYTES)
        return urlsafe_b64encode(random + self._code(kind, random, row)).decode().rstrip("=")

    def _is_made(self, kind: str, token: str, row: SessionRow) -> bool:
        try:
            data = urlsafe_b64decode(f"{token}=")
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(data[_PART_BYTES:], self._code(kind, data[:_PART_BYTES], row))

    def _code(self, kind: str, random: bytes, row: SessionRow) -> bytes:
        """Return the MAC over the kind, the random part and the row of a token."""
        content = encode_canonical({"kind": kind, "random": random.hex(), **vars(row)})
        return hmac.digest(self._key, content, "sha256")[:_PART_BYTES]

    def all(self) -> list[SessionRow]:
        """Return all sessions that were not removed, newest first; some may have ended."""
        return self._list(select(*_ROW))

    def of(self, principal: str) -> list[SessionRow]:
        """Return the sessions of one person that were not removed, newest first."""
        return self._list(select(*_ROW).where(sessions.c.principal == principal))

    def _list(self, wanted: Select[Any]) -> list[SessionRow]:
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            return [SessionRow(*row) for row in connection.execute(wanted.order_by(sessions.c.entry.desc()))]

    def move(self, kind: str, token: str, to: str) -> tuple[str, SessionRow] | None:
        """Move a session to a new token of the kind `to` and return both; return None if the old token has no session.

        Of several concurrent moves of one token, in this or another process, only one succeeds.
        """
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            found = connection.execute(_take(sessions.c.digest == digest_of(kind, token))).one_or_none()
            if found is not None and self._is_made(kind, token, row := SessionRow(*found)):
                moved = self._make_token(to, row)
                connection.execute(insert(sessions), {"digest": digest_of(to, moved), **vars(row)})
                return moved, row
        return None

    def remove_opened_by(self, entry: int) -> SessionRow | None:
        """Remove the session that this entry opened and return it; return None if there is none."""
        return self._remove_one(sessions.c.entry == entry)

    def remove(self, kind: str, token: str) -> SessionRow | None:
        """Remove the session of this token and return it; return None if there is none."""
        return self._remove_one(sessions.c.digest == digest_of(kind, token))

    def _remove_one(self, which: ColumnElement[bool]) -> SessionRow | None:
        with database_errors(_WHAT), connect_writer(self._engine) as connection, connection.begin():
            found = connection.execute(_take(which)).first()
        return None if found is None else SessionRow(*found)

    def sweep(self, is_valid: Callable[[SessionRow], bool]) -> int:
        """Remove every session that is no longer valid and return their number."""
        wanted = select(sessions.c.digest, *_ROW)
        with database_errors(_WHAT), connect_reader(self._engine) as connection:
            ended = [digest for digest, *row in connection.execute(wanted) if not is_valid(SessionRow(*row))]
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


def digest_of(kind: str, token: str) -> bytes:
    """Return the digest of a token. Looking up a digest takes equally long for any wrong token."""
    return hashlib.sha256(f"{kind}:{token}".encode()).digest()
