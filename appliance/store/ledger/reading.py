"""Reads the log as bytes: for the ledger, beside its appends, and for a verification in another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from appliance.errors import NotFound, Tampered
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.store.database.engine import connect_reader, database_errors, open_engine
from appliance.store.ledger import checks, rows
from appliance.store.ledger.fold import Seen

_PAGE = 256


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One moment of the database."""
    with database_errors("ledger"), connect_reader(engine) as connection:
        yield connection


def read_log(engine: Engine, start: int, stop: int | None) -> Iterator[bytes]:
    """The bytes of the entries [start, stop) in order, a page at a time; without `stop`, to the head of now."""
    with reading(engine) as connection:
        size = rows.read_head(connection).size
    last = size if stop is None else min(stop, size)
    for first in range(start, last, _PAGE):
        with reading(engine) as connection:
            page = rows.read_bytes(connection, first, min(first + _PAGE, last))
        yield from (data for _, data in page)


def find_document(engine: Engine, digest: str) -> bytes:
    """The bytes of this digest, hashed again on the way out."""
    with reading(engine) as connection:
        data = rows.read_document(connection, raw_digest(digest))
    if data is None:
        raise NotFound(f"document {digest}: expected one that an entry binds, got none")
    if digest_bytes(data) != digest:
        raise Tampered(f"document {digest}: expected the bytes of its digest, got {digest_bytes(data)}")
    return data


class LogReader:
    """A log in a database that is opened for reading alone."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url, read_only=True)

    def entries(self, size: int) -> Iterator[bytes]:
        return read_log(self._engine, 0, size)

    def document(self, digest: str) -> bytes:
        return find_document(self._engine, digest)

    def check_projections(self, seen: Seen) -> list[str]:
        with reading(self._engine) as connection:
            return checks.check_projections(connection, seen)

    def check_guards(self) -> list[str]:
        with reading(self._engine) as connection:
            return checks.check_guards(connection)

    def close(self) -> None:
        self._engine.dispose()
