"""The service processes of one log on PostgreSQL: which are alive, under which epoch, and which leases each holds.

A process holds a name under an epoch, a number that grows each time the name is taken or taken away. An append is
committed only if the epoch of its process is still current (`rows.move_head`). So a process that was paused, or cut off
from the server, cannot append after others took over from it. This does not depend on any clock.

Liveness is detected in two ways. The session of a process holds an advisory lock, which the server releases when the
process ends, so that a restart under the same name need not wait. And the process sends a heartbeat each second: other
processes that have seen none for `LOST_S`, although they reached the server, take its epoch away.

A lease (`acquire_lease`) names work that only one process does. It belongs to a process and an epoch until they end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError

from appliance.errors import Conflict, Unavailable
from appliance.store.database.engine import connection_parameters, database_errors, discard, open_file, session_name

LOG_LOCK = int.from_bytes(b"applianc") >> 1
"""Key of the log's advisory lock. Advisory locks are per database, and a database holds one log.

A founder and a migration take the lock exclusively; the processes that serve the log share it.
"""


@contextmanager
def claim_database(engine: Engine) -> Iterator[None]:
    """Reserve the database until the block or the process ends; a missing SQLite file is created.

    Raises:
        Conflict: another process founds, migrates or serves there (code `locked`).
    """
    try:
        with _claim_server(engine) if engine.dialect.name == "postgresql" else _claim_file(engine):
            yield
    except _Claimed:
        raise Conflict(
            "database: expected one that no other process uses, got one in which another process starts or serves "
            "an appliance; nothing was changed: stop it, or give this home a database of its own",
            code="locked",
        ) from None
    finally:
        engine.dispose()


class _Claimed(Exception):
    """The database is claimed by another process."""


@contextmanager
def _claim_server(engine: Engine) -> Iterator[None]:
    """Claim the database by an advisory lock in a session of its own, which the server ends with its process."""
    connection: Connection | None = None
    try:
        with database_errors("claim of the database"):
            connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            taken = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOG_LOCK}).scalar_one()
        if not taken:
            raise _Claimed
        yield
    finally:
        discard(connection)


@contextmanager
def _claim_file(engine: Engine) -> Iterator[None]:
    """Claim SQLite's file by flock, which SQLite itself does not use.

    The descriptor is opened before and closed after every connection, since closing one releases SQLite's locks on the
    file.
    """
    with database_errors("database"):
        descriptor = open_file(engine)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise _Claimed from None
    finally:
        os.close(descriptor)


# ruff: noqa: S608 - only texts of this file are inserted into the statements


LOST_S = 10.0
"""Seconds without a heartbeat after which a process counts as lost.

A process that cannot reach the ledger stops answering after half of this time (`contact.py`).
"""
BEAT_S = 1.0
STATEMENT_S = 3
"""Maximum seconds of a heartbeat; a slower one does not count."""

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_SHARE = text("SELECT pg_try_advisory_lock_shared(:log)")
_TAKE = text("SELECT pg_try_advisory_lock(:key)")
_END_SESSIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = :sessions AND datname = current_database() AND pid <> pg_backend_pid()"
)
_END_HOLDER = text(
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = :pid "
    "AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = :key"
)
_LOCK_HEAD = text("SELECT 1 FROM head WHERE id = 1 FOR UPDATE")
_JOIN = text(
    f"INSERT INTO processes (name, epoch, seen, about) VALUES (:name, 1, {_NOW}, :about) "
    f"ON CONFLICT (name) DO UPDATE SET epoch = processes.epoch + 1, seen = {_NOW}, about = :about "
    "RETURNING epoch, seen"
)
_BEAT = text(f"UPDATE processes SET seen = {_NOW} WHERE name = :name AND epoch = :epoch AND about <> '' RETURNING seen")
_LIST = text("SELECT name, epoch, seen, about FROM processes WHERE about IS NOT NULL ORDER BY name")
_LOCK_HOLDER = text("SELECT 1 FROM processes WHERE name = :name AND epoch = :epoch AND about IS NOT NULL FOR UPDATE")
_END = text("UPDATE processes SET epoch = epoch + 1, about = NULL WHERE name = :name AND epoch = :epoch")
_IS_ALIVE = (
    "EXISTS (SELECT 1 FROM processes p WHERE p.name = leases.process AND p.epoch = leases.epoch AND p.about <> '')"
)
_OWN = text(
    "INSERT INTO leases (name, process, epoch) SELECT :lease, p.name, p.epoch FROM processes p "
    "WHERE p.name = :name AND p.epoch = :epoch AND p.about <> '' FOR SHARE OF p "
    "ON CONFLICT (name) DO UPDATE SET process = :name, epoch = :epoch "
    f"WHERE NOT {_IS_ALIVE} OR (leases.process = :name AND leases.epoch = :epoch) RETURNING 1"
)
_DISOWN = text("DELETE FROM leases WHERE name = :lease AND process = :name AND epoch = :epoch")
_OWNED = text(f"SELECT name FROM leases WHERE {_IS_ALIVE}")
_OWN_LEASES = text("SELECT name FROM leases WHERE process = :name AND epoch = :epoch")
_SEEN = text("SELECT seen FROM processes WHERE name = :name")
_SWEEP = text(f"DELETE FROM leases WHERE NOT {_IS_ALIVE}")


CHANNEL = "appliance_ledger"
"""Channel on which PostgreSQL notifies the other processes of each commit."""


class Fence(NamedTuple):
    """An appending process and the epoch under which it holds its name."""

    process: str
    epoch: int


@dataclass(frozen=True)
class ProcessDescription:
    """The description of a process that the other processes read.

    `version` names its build. Processes of one log have the same `compatibility` (`appliance.build`).
    """

    roles: tuple[str, ...]
    host: str
    pid: int
    since: str
    version: str = "unknown"
    compatibility: int = 0


class Member(NamedTuple):
    """A process that holds a name; `seen` is its last heartbeat, in milliseconds since 1970 by the server's clock."""

    name: str
    epoch: int
    seen: int
    about: ProcessDescription

    @property
    def place(self) -> str:
        """Return the process's name, process id and host for a message."""
        return f"{self.name or 'without a name'} (process id {self.about.pid} on {self.about.host})"


@dataclass
class _Watched:
    """The last epoch and heartbeat that were seen of another process, and since when they are unchanged."""

    epoch: int
    seen: int
    since: float


@dataclass
class Processes:
    """This process among the processes of its log. On SQLite it is the only one and holds every lease.

    `name` is "" for a process without a name, which must be the only one of its log. `about` is None for an observer.
    """

    engine: Engine | None = None
    name: str = ""
    about: ProcessDescription | None = None
    prepare: Callable[[], None] = lambda: None
    """Function that brings the tables up to date, called once the name is held and no other process can interfere."""
    epoch: int = 0
    started: threading.Event = field(default_factory=threading.Event)
    """Event that is set once the service sends its heartbeats itself, or has ended."""
    is_lost: bool = False
    """True once the name was taken away: this process can no longer append and must end."""
    members: tuple[Member, ...] = ()
    """Processes that were alive at the last heartbeat, including this one."""
    server_ms: int = 0
    """The server's clock at the last heartbeat, in milliseconds since 1970."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ahead_ms: int | None = None
    """Milliseconds by which this host's clock was ahead of the server's at that time; None without a name."""
    _connection: Connection | None = None
    _has_lock: bool = False
    _backend: int = 0
    """Server process id of the session that last held the name; it may still hold it if only our end was lost."""
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _looked: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def alone(self) -> bool:
        """Return True if no other process can use this log."""
        return self.engine is None or self.engine.dialect.name != "postgresql"

    @property
    def _server(self) -> Engine:
        assert self.engine is not None
        return self.engine

    @property
    def fence(self) -> Fence | None:
        """Return the fence under which each append of this process is committed, or None on SQLite."""
        return None if self.alone else Fence(self.name, self.epoch)

    @property
    def others(self) -> tuple[Member, ...]:
        """Return the other processes that were alive at the last heartbeat."""
        return tuple(member for member in self.members if member.name != self.name)

    # --- the name -----------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Take the name.

        Raises:
            Conflict: another process holds it, or one is running that is not compatible with this one.
        """
        if self.alone:
            self.prepare()
            return
        assert self.about is not None
        about = json.dumps({**vars(self.about), "roles": list(self.about.roles)}, sort_keys=True)
        with self._lock, database_errors("processes of the log"):
            connection = self._connect()
            try:
                self._take(connection)
                self._check_beside(_list_if_there(connection))
                self.prepare()
                with connection.begin():
                    self._check_beside(_list(connection))
                    # Sessions of a previous holder that lost only its lock may be in the middle of an append.
                    connection.execute(_END_SESSIONS, {"sessions": session_name(self.name)})
                    connection.execute(_LOCK_HEAD)
                    sent = self._milliseconds()
                    row = connection.execute(_JOIN, {"name": self.name, "about": about}).one()
                    self.epoch = row.epoch
                    self._compare(sent, row.seen)
                    connection.execute(_SWEEP)
            except BaseException:
                discard(connection)
                raise
            self._keep(connection)
            self.members = tuple(_list(connection))
            self._end_transaction(connection)

    def keep_alive(self) -> None:
        """Send heartbeats from a thread while the service starts, until it sends them itself."""
        if not self.alone:
            threading.Thread(target=self._keep_alive, name="sign of life", daemon=True).start()

    def _keep_alive(self) -> None:
        while not self.started.wait(BEAT_S) and not self.is_lost:
            with suppress(Unavailable):
                self.beat()

    def _take(self, connection: Connection) -> None:
        if not connection.execute(_SHARE, {"log": LOG_LOCK}).scalar_one():
            raise Conflict("database: expected one that is not being founded, got one that is", code="locked")
        self._has_lock = connection.execute(_TAKE, {"key": _key(self.name)}).scalar_one()
        self._end_transaction(connection)
        if not self._has_lock:
            raise self._held(connection)

    def _held(self, connection: Connection) -> Conflict:
        holder = next((member for member in _list_if_there(connection) if member.name == self.name), None)
        who = "one that is running" if holder is None else holder.place
        what = "no other service on its log" if not self.name else f"no other process named {self.name}"
        return Conflict(
            f"database: expected {what}, got {who}; several processes on one log need a name each: "
            "process in appliance.toml",
            code="locked",
        )

    def _check_beside(self, found: Iterable[Member]) -> None:
        """Check that each of several processes has a name and that all have the same compatibility number."""
        assert self.about is not None
        for other in found:
            if other.name == self.name:
                continue
            if not (self.name and other.name):
                raise Conflict(
                    "process: expected a name for each of several processes on one log (process in appliance.toml), "
                    f"got none for {'this one' if not self.name else other.place} beside {other.place}",
                    code="locked",
                )
            if other.about.compatibility != self.about.compatibility:
                raise Conflict(
                    f"build: {self.about.version} has compatibility number {self.about.compatibility}, and "
                    f"{other.about.version} of {other.place} has {other.about.compatibility}; stop all processes, "
                    "install one build everywhere, and start them again",
                    code="other-build",
                )

    def beat(self) -> None:
        """Send a heartbeat and read the other processes; set `is_lost` if the name was taken away.

        Raises:
            Unavailable: the server cannot be reached.
        """
        if self.alone or self.is_lost:
            return
        with self._lock, database_errors("processes of the log"):
            try:
                seen, members = self._beat()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was restarted, or ended the session.
                seen, members = self._beat()
            if seen is None:
                self.is_lost = True
                return
            self.members = members
            self._watch()

    def _beat(self) -> tuple[int | None, tuple[Member, ...]]:
        connection = self._connection or self._connect_again()
        try:
            self._take_again(connection)
            sent = self._milliseconds()
            seen = connection.execute(_BEAT, {"name": self.name, "epoch": self.epoch}).scalar_one_or_none()
            if seen is not None:
                self._compare(sent, seen)
            members = tuple(_list(connection))
            self._end_transaction(connection)
        except BaseException:
            self._drop()
            raise
        return seen, members

    def _milliseconds(self) -> float:
        return self.clock().timestamp() * 1000

    def _compare(self, sent: float, seen: int) -> None:
        self.server_ms = seen
        if self.name:
            # The server read its clock between the query and its result.
            self.ahead_ms = round((sent + self._milliseconds()) / 2) - seen

    def _connect_again(self) -> Connection:
        """Open a new session in place of a lost one."""
        connection = self._connect()
        try:
            connection.execute(_SHARE, {"log": LOG_LOCK})
            # If only our end of the old session was lost, the server's end still holds the lock.
            connection.execute(_END_HOLDER, {"pid": self._backend, "key": _key(self.name)})
        except BaseException:
            discard(connection)
            raise
        self._has_lock = False
        return self._keep(connection)

    def _take_again(self, connection: Connection) -> None:
        """Take the name's advisory lock again. The epoch alone decides who holds the name."""
        if not self._has_lock:
            self._has_lock = bool(connection.execute(_TAKE, {"key": _key(self.name)}).scalar_one())

    def _connect(self) -> Connection:
        connection = self._server.connect()
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_S}s'"))
        connection.commit()
        return connection

    def _keep(self, connection: Connection) -> Connection:
        self._backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        self._end_transaction(connection)
        self._connection = connection
        return connection

    def _end_transaction(self, connection: Connection) -> None:
        if connection.in_transaction():
            connection.commit()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        discard(connection)

    # --- the others ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOST_S / 3:
            # This process could not reach the server, or was paused, so missing heartbeats prove nothing.
            self._watched.clear()
        self._looked = now
        names = {member.name for member in self.others}
        self._watched = {name: watched for name, watched in self._watched.items() if name in names}
        for member in self.others:
            watched = self._watched.get(member.name)
            if watched is None or (watched.epoch, watched.seen) != (member.epoch, member.seen):
                self._watched[member.name] = _Watched(member.epoch, member.seen, now)

    @property
    def silent(self) -> tuple[Member, ...]:
        """Return the others that sent no heartbeat for `LOST_S`. Time in which this process did not look proves
        nothing."""
        looked = self._looked
        if time.monotonic() - looked > LOST_S / 3:
            return ()
        since = {name: watched.since for name, watched in self._watched.items()}
        return tuple(member for member in self.others if looked - since.get(member.name, looked) >= LOST_S)

    def end(self, member: Member) -> bool:
        """Take another process's epoch away once all of its appends have ended; from then on it cannot commit any.

        Return False if another process did so first, or the process came back.
        """
        values = {"name": member.name, "epoch": member.epoch}
        with database_errors("processes of the log"), self._server.connect() as connection, connection.begin():
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'"))
            if connection.execute(_LOCK_HOLDER, values).scalar() is None:
                return False
            if connection.execute(_SEEN, values).scalar_one() != member.seen:
                return False
            connection.execute(_END_SESSIONS, {"sessions": session_name(member.name)})
            connection.execute(_LOCK_HEAD)
            connection.execute(_END, values)
            return True

    def withdraw(self, name: str, epoch: int) -> None:
        """Take the name away from the process that holds it in this epoch, if one does; it can commit nothing more."""
        with database_errors("processes of the log"), self._server.connect() as connection, connection.begin():
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'"))
            connection.execute(_LOCK_HEAD)
            connection.execute(_END, {"name": name, "epoch": epoch})

    # --- leases -------------------------------------------------------------------------------------------------------

    def acquire_lease(self, lease: str) -> bool:
        """Take the lease if it is free; return True if this process holds it. Return False if this process lost its
        name."""
        if self.alone:
            return True
        return self._change(_OWN, lease) is not None

    def release_lease(self, lease: str) -> None:
        """Release the lease."""
        if not self.alone:
            self._change(_DISOWN, lease)

    def _change(self, statement: Any, lease: str) -> object:
        values = {"lease": lease, "name": self.name, "epoch": self.epoch}
        with database_errors("leases"), self._server.connect() as connection, connection.begin():
            result = connection.execute(statement, values)
            return result.scalar() if result.returns_rows else None

    def list_leases(self) -> frozenset[str]:
        """Return the leases of all live processes."""
        if self.alone:
            return frozenset()
        with database_errors("leases"), self._server.connect() as connection:
            return frozenset(connection.execute(_OWNED).scalars())

    def list_own_leases(self) -> frozenset[str]:
        """Return the leases that this process holds."""
        if self.alone:
            return frozenset()
        with database_errors("leases"), self._server.connect() as connection:
            return frozenset(connection.execute(_OWN_LEASES, {"name": self.name, "epoch": self.epoch}).scalars())

    def list_live(self) -> tuple[Member, ...]:
        """Return the processes that are alive now."""
        return () if self.engine is None else list_members(self.engine)

    def watch_commits(self, every_s: float) -> Generator[bool, None, None]:
        """Yield True after each commit of another process, by the server's notification, and False after `every_s`
        without one.

        Raises:
            Unavailable: the server cannot be reached.
        """
        parameters = connection_parameters(self._server.url)
        parameters |= {"options": f"-c application_name={session_name(self.name)}", "connect_timeout": int(LOST_S)}
        try:
            with psycopg.connect(autocommit=True, **parameters) as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                while True:
                    yield next(connection.notifies(timeout=every_s, stop_after=1), None) is not None
        except psycopg.Error as error:
            raise Unavailable(f"notifications of the ledger: expected a database that answers, got {error}") from error

    def read_last_heartbeat(self, name: str) -> int | None:
        """Return the last heartbeat of a process, also of one that has ended, in milliseconds since 1970; None if
        unknown."""
        with database_errors("processes of the log"), self._server.connect() as connection:
            found: int | None = connection.execute(_SEEN, {"name": name}).scalar_one_or_none()
            return found

    # --- the end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Release the name and all leases. If the server cannot be reached, the other processes detect the missing
        heartbeats."""
        self.started.set()
        with self._lock:
            connection = self._connection
            if connection is not None and not self.is_lost:
                try:
                    connection.execute(_END, {"name": self.name, "epoch": self.epoch})
                    self._end_transaction(connection)
                except SQLAlchemyError:
                    pass
            self._drop()

    def __enter__(self) -> Self:
        try:
            self.join()
            self.keep_alive()
        except BaseException:
            self._dispose()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._dispose()

    def _dispose(self) -> None:
        if self.engine is not None:
            self.engine.dispose()


def list_members(engine: Engine) -> tuple[Member, ...]:
    """Return the processes that hold a name, for an observer; none on SQLite."""
    if engine.dialect.name != "postgresql":
        return ()
    with database_errors("processes of the log"), engine.connect() as connection:
        return tuple(_list(connection))


def _list(connection: Connection) -> list[Member]:
    return [Member(name, epoch, seen, _parse(about)) for name, epoch, seen, about in connection.execute(_LIST)]


def _list_if_there(connection: Connection) -> list[Member]:
    """Return the processes, or an empty list if the tables are those of an earlier build."""
    try:
        return _list(connection)
    except ProgrammingError:
        return []
    finally:
        connection.rollback()


def _parse(about: str) -> ProcessDescription:
    try:
        value: Mapping[str, Any] = json.loads(about)
        # Another build may have more or fewer fields.
        known = {name: value[name] for name in ProcessDescription.__dataclass_fields__ if name in value}
        return ProcessDescription(**{**known, "roles": tuple(value["roles"])})
    except (ValueError, TypeError, KeyError):
        raise Unavailable(f"processes of the log: expected what a process says of itself, got {about[:80]!r}") from None


def _key(name: str) -> int:
    """Return the key of the advisory lock for a name; it is positive and differs from the log's key."""
    return int.from_bytes(hashlib.sha256(f"appliance process {name}".encode()).digest()[:8]) >> 2
