# ruff: noqa: S608 - what is put into the statements are texts of this file
"""The service processes of one log on PostgreSQL: which live, under which epoch, and what each owns alone.

A process holds a name under an epoch, a number that grows each time the name is taken or taken away. Every append of
the process is committed only if its epoch is still the name's (`rows.move_head`). So a process that was paused, or cut
off from the server, can append nothing once others have taken over from it: this does not rest on any clock.

That a process lives is seen in two ways. Its session has an advisory lock that the server releases when the process
ends, so that a restart under the same name need not wait. And it writes a sign of life each second: others that have
seen none for `LOST_S`, while they themselves reached the server, take its epoch away.

A lease (`own`) names what only one process does. It belongs to a process and an epoch, and is free with them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError

from appliance.errors import Conflict, Unavailable
from appliance.store.database.claim import LOG_KEY
from appliance.store.database.engine import database_errors, discard, session_name

LOST_S = 10.0
"""Without a sign of life. A process that cannot reach the ledger answers nothing after half of it (`contact.py`)."""
BEAT_S = 1.0
STATEMENT_S = 3
"""A sign of life that takes longer is none."""

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
_BEAT = text(f"UPDATE processes SET seen = {_NOW} WHERE name = :name AND epoch = :epoch RETURNING seen")
_LIST = text("SELECT name, epoch, seen, about FROM processes WHERE about IS NOT NULL ORDER BY name")
_STANDS = text("SELECT 1 FROM processes WHERE name = :name AND epoch = :epoch AND about IS NOT NULL FOR UPDATE")
_END = text("UPDATE processes SET epoch = epoch + 1, about = NULL WHERE name = :name AND epoch = :epoch")
_LIVES = "EXISTS (SELECT 1 FROM processes p WHERE p.name = leases.process AND p.epoch = leases.epoch AND p.about <> '')"
_OWN = text(
    "INSERT INTO leases (name, process, epoch) SELECT :lease, p.name, p.epoch FROM processes p "
    "WHERE p.name = :name AND p.epoch = :epoch AND p.about <> '' FOR SHARE OF p "
    "ON CONFLICT (name) DO UPDATE SET process = :name, epoch = :epoch "
    f"WHERE NOT {_LIVES} OR (leases.process = :name AND leases.epoch = :epoch) RETURNING 1"
)
_DISOWN = text("DELETE FROM leases WHERE name = :lease AND process = :name AND epoch = :epoch")
_OWNED = text(f"SELECT name FROM leases WHERE {_LIVES}")
_MINE = text("SELECT name FROM leases WHERE process = :name AND epoch = :epoch")
_SEEN = text("SELECT seen FROM processes WHERE name = :name")
_SWEEP = text(f"DELETE FROM leases WHERE NOT {_LIVES}")


CHANNEL = "appliance_ledger"
"""On which PostgreSQL tells the other processes of a commit, as soon as it is one."""


class Fence(NamedTuple):
    """The process that appends, and the epoch in which it holds its name."""

    process: str
    epoch: int


@dataclass(frozen=True)
class About:
    """What a process says of itself to the others."""

    roles: tuple[str, ...]
    host: str
    pid: int
    code: str
    since: str


class Member(NamedTuple):
    """A process that holds a name. `seen`: its last sign of life, in milliseconds since 1970 by the server's clock."""

    name: str
    epoch: int
    seen: int
    about: About

    @property
    def place(self) -> str:
        return f"{self.name or 'without a name'} (process id {self.about.pid} on {self.about.host})"


@dataclass
class _Watched:
    """What was last seen of another process, and since when nothing else was."""

    epoch: int
    seen: int
    since: float


@dataclass
class Processes:
    """This process among those of its log. On SQLite it is the only one, and everything is its own.

    `name` "": it has none, and is the only one of its log. `about` None: it only looks.
    """

    engine: Engine | None = None
    name: str = ""
    about: About | None = None
    prepare: Callable[[], None] = lambda: None
    """Called once the name is held and nobody else can be in the way: brings the tables up to date."""
    epoch: int = 0
    started: threading.Event = field(default_factory=threading.Event)
    """The service gives its signs of life itself, or has ended."""
    is_lost: bool = False
    """The name was taken away: this process can append nothing any more, and must end."""
    members: tuple[Member, ...] = ()
    """Those that lived when it last looked, itself among them."""
    server_ms: int = 0
    """The server's clock at the last sign of life."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ahead_ms: int | None = None
    """How far this host's clock was ahead of the server's then; None without a name."""
    _connection: Connection | None = None
    _has_lock: bool = False
    _backend: int = 0
    """The server's process of the session that held the name last: where only our end of it was lost, it holds it
    yet."""
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _looked: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def alone(self) -> bool:
        """Whether no other process can be on this log."""
        return self.engine is None or self.engine.dialect.name != "postgresql"

    @property
    def _server(self) -> Engine:
        assert self.engine is not None
        return self.engine

    @property
    def fence(self) -> Fence | None:
        """What each append of this process is committed under."""
        return None if self.alone else Fence(self.name, self.epoch)

    @property
    def others(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.name != self.name)

    # --- the name -----------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Takes the name. Conflict (`locked`) while another process has it, or one that cannot be beside this one."""
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
                    # Sessions of a holder that lost its lock alone may be in the middle of an append.
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
        """Gives signs of life while the service starts, until it gives them itself."""
        if not self.alone:
            threading.Thread(target=self._keep_alive, name="sign of life", daemon=True).start()

    def _keep_alive(self) -> None:
        while not self.started.wait(BEAT_S) and not self.is_lost:
            with suppress(Unavailable):
                self.beat()

    def _take(self, connection: Connection) -> None:
        if not connection.execute(_SHARE, {"log": LOG_KEY}).scalar_one():
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
        """Processes beside each other have names, and are of one build: rules and policies are in it."""
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
            if other.about.code != self.about.code:
                raise Conflict(
                    f"build: expected that of the other processes, {other.about.code} of {other.place}, got "
                    f"{self.about.code}; install one build everywhere, and stop all processes before an upgrade",
                    code="other-build",
                )

    def beat(self) -> None:
        """A sign of life, and a look at the others. Unavailable while the server is not reached; where the name was
        taken away, `is_lost` is set."""
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
            # The server's clock was read between the question and the answer.
            self.ahead_ms = round((sent + self._milliseconds()) / 2) - seen

    def _connect_again(self) -> Connection:
        """A new session in the place of one that was lost."""
        connection = self._connect()
        try:
            connection.execute(_SHARE, {"log": LOG_KEY})
            # Where only our end of the old session was lost, the server's still has the lock.
            connection.execute(_END_HOLDER, {"pid": self._backend, "key": _key(self.name)})
        except BaseException:
            discard(connection)
            raise
        self._has_lock = False
        return self._keep(connection)

    def _take_again(self, connection: Connection) -> None:
        """Whose the name is, the epoch alone says: where another process has the lock, it has another epoch too."""
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
            # This process did not reach the server itself, or was paused: nothing follows from what it did not see.
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
        """Others without a sign of life for so long that they are lost."""
        now = time.monotonic()
        return tuple(
            member
            for member in self.others
            if (watched := self._watched.get(member.name)) is not None and now - watched.since >= LOST_S
        )

    def end(self, member: Member) -> bool:
        """Takes its epoch away, once every append of it has ended: from here on it can commit none. False where
        somebody else did, or it has come back."""
        given = {"name": member.name, "epoch": member.epoch}
        with database_errors("processes of the log"), self._server.connect() as connection, connection.begin():
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'"))
            if connection.execute(_STANDS, given).scalar() is None:
                return False
            if connection.execute(_SEEN, given).scalar_one() != member.seen:
                return False
            connection.execute(_END_SESSIONS, {"sessions": session_name(member.name)})
            connection.execute(_LOCK_HEAD)
            connection.execute(_END, given)
            return True

    # --- leases -------------------------------------------------------------------------------------------------------

    def own(self, lease: str) -> bool:
        """Whether this process alone has it now; taken where it is free. False, too, where its name was taken away."""
        if self.alone:
            return True
        return self._change(_OWN, lease) is not None

    def disown(self, lease: str) -> None:
        if not self.alone:
            self._change(_DISOWN, lease)

    def _change(self, statement: Any, lease: str) -> object:
        given = {"lease": lease, "name": self.name, "epoch": self.epoch}
        with database_errors("leases"), self._server.connect() as connection, connection.begin():
            result = connection.execute(statement, given)
            return result.scalar() if result.returns_rows else None

    def owned(self) -> frozenset[str]:
        """The leases of all processes that live."""
        if self.alone:
            return frozenset()
        with database_errors("leases"), self._server.connect() as connection:
            return frozenset(connection.execute(_OWNED).scalars())

    def mine(self) -> frozenset[str]:
        if self.alone:
            return frozenset()
        with database_errors("leases"), self._server.connect() as connection:
            return frozenset(connection.execute(_MINE, {"name": self.name, "epoch": self.epoch}).scalars())

    def look(self) -> tuple[Member, ...]:
        """Those that live now."""
        return () if self.engine is None else list_members(self.engine)

    def news(self, every_s: float) -> Generator[bool, None, None]:
        """True whenever another process has committed, as the server tells it, and False after so long without that.
        Unavailable where the server is not reached."""
        url = self._server.url.set(drivername="postgresql").render_as_string(hide_password=False)
        options = f"-c application_name={session_name(self.name)}"
        try:
            with psycopg.connect(url, autocommit=True, options=options, connect_timeout=int(LOST_S)) as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                while True:
                    yield next(connection.notifies(timeout=every_s, stop_after=1), None) is not None
        except psycopg.Error as error:
            raise Unavailable(f"news of the ledger: expected a database that answers, got {error}") from error

    def last_seen(self, name: str) -> int | None:
        """When that process gave its last sign of life, also where it has ended."""
        with database_errors("processes of the log"), self._server.connect() as connection:
            found: int | None = connection.execute(_SEEN, {"name": name}).scalar_one_or_none()
            return found

    # --- the end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Gives the name and everything that it owns free. Where the server is not reached, the others see that."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self._dispose()

    def _dispose(self) -> None:
        if self.engine is not None:
            self.engine.dispose()


def list_members(engine: Engine) -> tuple[Member, ...]:
    """The processes that hold a name, for who only looks; none on SQLite."""
    if engine.dialect.name != "postgresql":
        return ()
    with database_errors("processes of the log"), engine.connect() as connection:
        return tuple(_list(connection))


def _list(connection: Connection) -> list[Member]:
    return [Member(name, epoch, seen, _parse(about)) for name, epoch, seen, about in connection.execute(_LIST)]


def _list_if_there(connection: Connection) -> list[Member]:
    """None where the tables are those of an earlier build."""
    try:
        return _list(connection)
    except ProgrammingError:
        return []
    finally:
        connection.rollback()


def _parse(about: str) -> About:
    try:
        value: Mapping[str, Any] = json.loads(about)
        return About(**{**value, "roles": tuple(value["roles"])})
    except (ValueError, TypeError, KeyError):
        raise Unavailable(f"processes of the log: expected what a process says of itself, got {about[:80]!r}") from None


def _key(name: str) -> int:
    """Of the advisory lock that holds the name; positive, and never the log's own."""
    return int.from_bytes(hashlib.sha256(f"appliance process {name}".encode()).digest()[:8]) >> 2
