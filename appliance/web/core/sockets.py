"""The sockets of the listeners. Connections are counted from their accept on. Over TLS the protocol sees one only after
its handshake, when it has already taken a descriptor of the service."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.errors import Conflict, Unavailable
from appliance.formats.core.digest import kind_of
from appliance.web.core.reach import Group, find_group, give, let_pass

CONNECTIONS = 512
"""At once, at one door."""
SHARE = 8
"""One door has at most this part of the descriptors: five can be open, and three eighths stay for the rest."""
DESCRIPTORS = 4_096
ACCOUNT_SHARE = 8
"""One account has at most this part of the connections at the people's socket."""


def raise_descriptors() -> None:
    """As many descriptors as the listeners can use, up to the host's hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Bounded(socket.socket):
    """Listens, and has so many connections open at once, whatever they do; one that comes over that is closed. At a
    Unix socket an account has an eighth of them, unless it is the service's own or root."""

    def __init__(self, family: int, most: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._most = most
        self._accepted: weakref.WeakKeyDictionary[socket.socket, int | None] = weakref.WeakKeyDictionary()

    def accept(self) -> tuple[socket.socket, Any]:
        """ConnectionAbortedError, which an event loop passes over, for one too many."""
        connection, address = super().accept()
        account = account_of(connection)
        # Counted from the sockets themselves, since nothing reports a closed one.
        accounts = [one for taken, one in self._accepted.items() if taken.fileno() >= 0]
        most = self._most // ACCOUNT_SHARE
        if len(accounts) >= self._most:
            connection.close()
            raise ConnectionAbortedError(f"connections: expected at most {self._most} at once, got one more")
        if account not in (None, 0, os.geteuid()) and accounts.count(account) >= most:
            connection.close()
            raise ConnectionAbortedError(f"connections: expected at most {most} of user id {account}, got one more")
        self._accepted[connection] = account
        return connection, address


def account_of(connection: socket.socket) -> int | None:
    """The user id at the other end of a Unix socket, as the kernel says; None of any other."""
    return None if connection.family != socket.AF_UNIX else peer_of(connection)[1]


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The process id and user id at the other end of a Unix socket, as the kernel says."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


@contextlib.contextmanager
def open_people(home: Path, path: Path, group: str | None) -> Iterator[socket.socket]:
    """The people's door below the home, for the service's own account or for a group besides. The way to it is opened
    last, and closed again where no group is named any more."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = None if group is None else find_group(group)
    with open_unix(path, found) as door:
        if found is not None:
            let_pass(home, folder, found)
        yield door


@contextlib.contextmanager
def open_unix(path: Path, group: Group | None = None) -> Iterator[socket.socket]:
    """The people's door, mode 0600 from its first moment, gone with the service; one that an ended service left is
    replaced. With a group it is 0660 and the group's, as soon as it is bound."""
    door = _bind_unix(path)
    try:
        if group is not None:
            give(path, group, 0o660)
        yield door
    finally:
        door.close()
        path.unlink(missing_ok=True)


def _bind_unix(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.fsencode(path)) > 100:
        raise Unavailable(f"socket {path}: expected a path of at most 100 bytes; choose a shorter APPLIANCE_HOME")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(mode := path.lstat().st_mode):
            raise Conflict(f"socket {path}: expected nothing or a socket there, got {kind_of(mode)}")
        path.unlink()
    door = Bounded(socket.AF_UNIX, _most_connections())
    before = os.umask(0o177)
    try:
        door.bind(str(path))
    finally:
        os.umask(before)
    door.listen(128)
    return door


def open_tcp(listen: tuple[str, int], what: str = "units' port") -> socket.socket:
    """Bound, and not listening before `listen`: until then who connects is refused instead of kept waiting."""
    host, port = listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = Bounded(family, _most_connections())
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise Unavailable(f"{what}, {host}:{port}: expected to listen there, got {error.strerror}") from None
    return door


def _most_connections() -> int:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(CONNECTIONS, descriptors // SHARE)


def listen(door: socket.socket, what: str = "units' port") -> socket.socket:
    try:
        door.listen(128)
    except OSError as error:
        host, port = door.getsockname()[:2]
        raise Unavailable(f"{what}, {host}:{port}: expected to listen there, got {error.strerror}") from None
    return door
