"""The signer's record: the last checkpoint that it has signed, with the right edge of the Merkle tree at its size.

It is one row in a SQLite file of the signer, or in a database on PostgreSQL that the signers of several hosts share. It
changes by compare-and-swap. A checkpoint is durable here before its signature leaves the signer. A second table keeps
each checkpoint that the signer gave up in a step back, with the orders, as evidence. A third one has the key id of the
log's first key, so that no signer with other keys uses the record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from appliance.errors import ApplianceError, Conflict, Tampered
from appliance.formats.core.merkle import HASH_BYTES, Frontier
from appliance.store.database.engine import (
    Prepared,
    begin_migration,
    connect_writer,
    database_errors,
    discard,
    is_current,
    open_engine,
    session_name,
)
from appliance.store.database.tables import Counter

T = TypeVar("T")

FILE = "signed.db"
"""Name of the SQLite file in the signer's folder."""
_PROCESS = "signer"
"""Name of a signer in the names of its sessions on PostgreSQL."""
_METADATA = MetaData()
_TABLE = Table(
    "signed_checkpoint",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("origin", Text, nullable=False),
    Column("before_size", Counter, nullable=False),
    Column("before_edge", LargeBinary, nullable=False),
    Column("size", Counter, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("note", LargeBinary, nullable=False),
    Column("signed_ms", Counter, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("before_size <= size", name="sizes"),
)
"""A signer has one log, so there is one row, and none before the first checkpoint."""
_GIVEN_UP = Table(
    "given_up_checkpoints",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    Column("signed_ms", Counter, nullable=False),
    Column("kept_size", Counter, nullable=False),
    Column("orders", LargeBinary, nullable=False),
)
"""The last checkpoint before each step back, the entries that the log kept, and the step-back file."""
_LOG_KEY = Table(
    "first_log_key",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("keyid", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)
"""The key id of the log's first key, which every signer of this record has. It never changes."""
_READ = Prepared(select(_TABLE).where(_TABLE.c.id == bindparam("one")))
_INSERT = Prepared(insert(_TABLE))
_SWAP = Prepared(
    update(_TABLE)
    .where(
        _TABLE.c.id == bindparam("one"),
        _TABLE.c.size == bindparam("expected_size"),
        _TABLE.c.edge == bindparam("expected_edge"),
    )
    .values({column.name: bindparam(f"new_{column.name}") for column in _TABLE.c if column.name != "id"})
)
_OTHERS = text(
    "SELECT coalesce(host(client_addr), 'this machine') FROM pg_stat_activity "
    "WHERE application_name = :name AND datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1"
)
_INSERT_GIVEN_UP = Prepared(insert(_GIVEN_UP))
_READ_LOG_KEY = Prepared(select(_LOG_KEY.c.keyid).where(_LOG_KEY.c.id == bindparam("one")))
_ADD_LOG_KEY = Prepared(insert(_LOG_KEY))
_LIST_GIVEN_UP = Prepared(select(_GIVEN_UP).order_by(_GIVEN_UP.c.number))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A signed checkpoint of a log: the tree's right edge before and after it, the note, and when it was signed.

    `signed_ms` are milliseconds since 1970. It never decreases from one checkpoint to the next.
    """

    origin: str
    before: Frontier
    after: Frontier
    note: bytes
    signed_ms: int


@dataclass(frozen=True, slots=True)
class GivenUpCheckpoint:
    """A checkpoint that the signer gave up in a step back to `kept_size` entries, with the file that ordered it."""

    note: bytes
    signed_ms: int
    kept_size: int
    orders: bytes


class SignerRecord:
    """The record in a database. One thread at a time may use it."""

    def __init__(self, url: str) -> None:
        """Open the record; `url` is `sqlite:///PATH` or `postgresql://…`."""
        self._engine = open_engine(url, process=_PROCESS)
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    @classmethod
    def in_folder(cls, folder: Path) -> SignerRecord:
        """Open the record in the signer's folder."""
        return cls(f"sqlite:///{folder / FILE}")

    def create(self) -> None:
        """Create the tables; existing ones are left unchanged."""
        with database_errors("signer, record"), begin_migration(self._engine) as connection:
            _METADATA.create_all(connection)

    def read_log_key(self) -> str | None:
        """Return the key id of the log's first key, or None if the record has none or does not exist."""
        if self._engine.dialect.name == "sqlite" and not os.path.exists(str(self._engine.url.database)):
            return None

        def read(connection: Connection) -> str | None:
            if not inspect(connection).has_table(_LOG_KEY.name):
                return None
            rows = _READ_LOG_KEY.execute(connection, {"one": 1}).fetchall()
            return str(rows[0][0]) if rows else None

        with self._lock, database_errors("signer, record"):
            return self._run(read)

    def add_log_key(self, keyid: str) -> bool:
        """Store the key id of the log's first key; return False if the record has another one."""
        with self._lock, database_errors("signer, record"), suppress(IntegrityError):
            self._run(lambda connection: _ADD_LOG_KEY.execute(connection, {"id": 1, "keyid": keyid}))
        return self.read_log_key() == keyid

    def read(self) -> SignedCheckpoint | None:
        """Return the last signed checkpoint, or None before the first.

        Raises:
            Tampered: the row is not one that a signer wrote.
        """
        with self._lock, database_errors("signer, record"):
            rows = self._run(lambda connection: _READ.execute(connection, {"one": 1}).fetchall())
        if not rows:
            return None
        _, origin, before_size, before_edge, size, edge, note, signed_ms = rows[0]
        try:
            return SignedCheckpoint(
                origin, _frontier(before_size, before_edge), _frontier(size, edge), bytes(note), signed_ms
            )
        except ApplianceError as error:
            raise Tampered(f"signer, record: {error.message}") from None

    def swap(self, expected: SignedCheckpoint | None, new: SignedCheckpoint) -> bool:
        """Replace the record durably if it is still `expected`; return False if it is another."""
        with self._lock, database_errors("signer, record"):
            if expected is None:
                try:
                    self._run(lambda connection: _INSERT.execute(connection, {"id": 1, **_values(new)}))
                except IntegrityError:
                    return False
                return True
            return self._run(lambda connection: _swap(connection, expected, new))

    def step_back(self, expected: SignedCheckpoint, new: SignedCheckpoint, orders: bytes) -> bool:
        """Replace the record as `swap` does, and keep `expected` with the orders in the same transaction.

        Raises:
            Conflict: the signers of other hosts are connected. Each would treat the step as a manipulation.
        """

        def keep(connection: Connection) -> bool:
            others = _list_others(connection)
            if others:
                raise Conflict(
                    "signer: expected the signers of all hosts to be stopped, got connections to the record from "
                    f"{', '.join(others)}; stop those signers first"
                )
            if not _swap(connection, expected, new):
                return False
            number = len(_LIST_GIVEN_UP.execute(connection, {}).fetchall()) + 1
            values = {
                "number": number,
                "note": expected.note,
                "signed_ms": expected.signed_ms,
                "kept_size": new.after.size,
            }
            _INSERT_GIVEN_UP.execute(connection, {**values, "orders": orders})
            return True

        with self._lock, database_errors("signer, record"):
            return self._run(keep)

    def list_given_up(self) -> list[GivenUpCheckpoint]:
        """Return the checkpoints that the signer gave up, oldest first."""
        with self._lock, database_errors("signer, record"):
            rows = self._run(lambda connection: _LIST_GIVEN_UP.execute(connection, {}).fetchall())
        return [
            GivenUpCheckpoint(bytes(note), signed_ms, kept, bytes(orders)) for _, note, signed_ms, kept, orders in rows
        ]

    def close(self) -> None:
        """Close the connection; it is opened again on the next use."""
        self._drop()
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], T]) -> T:
        """Call `work` in a transaction of its own and commit it durably.

        After an error the connection is closed, and `work` is not repeated. The caller reads the record to find out
        whether the transaction was committed.
        """
        if self._connection is not None and not is_current(self._connection):
            self._drop()
        if self._connection is None:
            self._connection = connect_writer(self._engine)
        connection = self._connection
        try:
            with connection.begin():
                return work(connection)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        discard(connection)


def _values(signed: SignedCheckpoint) -> dict[str, Any]:
    return {
        "origin": signed.origin,
        "before_size": signed.before.size,
        "before_edge": b"".join(signed.before.hashes),
        "size": signed.after.size,
        "edge": b"".join(signed.after.hashes),
        "note": signed.note,
        "signed_ms": signed.signed_ms,
    }


def _list_others(connection: Connection) -> list[str]:
    """Return the addresses of the other connections of signers to the record. A file has none: it is on one host."""
    if connection.dialect.name == "sqlite":
        return []
    return [str(address) for (address,) in connection.execute(_OTHERS, {"name": session_name(_PROCESS)})]


def _swap(connection: Connection, expected: SignedCheckpoint, new: SignedCheckpoint) -> bool:
    at = {"one": 1, "expected_size": expected.after.size, "expected_edge": b"".join(expected.after.hashes)}
    changed = {f"new_{name}": value for name, value in _values(new).items()}
    return bool(_SWAP.execute(connection, at | changed).rowcount == 1)


def _frontier(size: int, edge: bytes) -> Frontier:
    return Frontier(size, tuple(edge[at : at + HASH_BYTES] for at in range(0, len(edge), HASH_BYTES)))
