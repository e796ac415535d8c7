"""The sockets of the listeners, and their TLS.

Connections are counted when they are accepted. uvicorn sees a TLS connection only after its handshake, when it already
uses a file descriptor of the service.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import resource
import socket
import ssl
import stat
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, Conflict, Denied, Unavailable
from appliance.formats.core.acl import ATTRIBUTE, is_private
from appliance.formats.core.digest import kind_of

PASSED = 0o710
"""Mode of a folder that a group can pass through but not list."""


@dataclass(frozen=True)
class SystemGroup:
    """A group of this machine."""

    name: str
    gid: int


def find_group(name: str) -> SystemGroup:
    """Return the group of this name.

    Raises: BadInput if this machine has no such group.
    """
    try:
        return SystemGroup(name, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise BadInput(
            f"settings, socket_group: expected a group of this machine, got {name!r}; make it with: groupadd {name}"
        ) from None


def let_pass(home: Path, folder: Path, group: SystemGroup) -> None:
    """Let the group reach `folder` inside the home, after closing everything else in the home.

    Raises: Denied if the group cannot pass a folder above the home, or a file cannot be closed.
    """
    home, folder = home.resolve(), folder.resolve()
    for parent in reversed(home.parents):
        _check_passable(parent, group)
    for path in sorted(home.iterdir()):
        if path != folder and not path.is_symlink():
            _close(path)
    for path in (folder, home):
        give(path, group, PASSED)


def give(path: Path, group: SystemGroup, mode: int) -> None:
    """Give a path to the group, with this mode.

    Raises: Denied if the service's account does not own the path or is not a member of the group.
    """
    try:
        os.chown(path, -1, group.gid)
        path.chmod(mode)
    except PermissionError:
        raise Denied(
            f"settings, socket_group, {path}: expected the service's account to own it and to be a member of "
            f"{group.name}, got user id {os.geteuid()}; type: usermod --append --groups {group.name} ACCOUNT"
        ) from None


def _check_passable(folder: Path, group: SystemGroup) -> None:
    """Raise Denied if the group cannot pass through this folder.

    An access control list beside the mode is accepted without reading it.
    """
    status = folder.stat()
    by_group = status.st_gid == group.gid and bool(status.st_mode & stat.S_IXGRP)
    if status.st_mode & stat.S_IXOTH or by_group or _has_acl(folder):
        return
    raise Denied(
        f"settings, socket_group: expected members of {group.name} to pass {folder}, above the home, got mode "
        f"{stat.S_IMODE(status.st_mode):04o}; put the home where they can (such as /srv/appliance), "
        f"or type: chmod o+x {folder}"
    )


def _has_acl(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, ATTRIBUTE))
    except OSError:
        return False


def _close(path: Path) -> None:
    """Remove the access of other accounts to a path inside the home."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o077:
        return
    try:
        path.chmod(mode & 0o700)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise Denied(
            f"settings, socket_group, {path}: expected nothing in the home that others can open, got mode {mode:04o}, "
            f"and {error.strerror}; type: chmod go= {path}"
        ) from None


CONNECTIONS = 512
"""Maximum concurrent connections of one listener."""
SHARE = 8
"""Divisor for the file descriptors that one listener may use. Five listeners can be open, and three eighths are left
for the rest."""
DESCRIPTORS = 4_096
"""File descriptors that the service needs for its listeners."""
ACCOUNT_SHARE = 8
"""Divisor for the connections of the people's socket that one account may use."""


def raise_descriptors() -> None:
    """Raise the limit of file descriptors to what the listeners can use, up to the host's hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LimitedSocket(socket.socket):
    """A listening socket with a limit on open connections. It closes further ones at once.

    At a Unix socket, one account may have an eighth of them, unless it is root or the service's own account.
    """

    def __init__(self, family: int, most: int, fileno: int | None = None) -> None:
        super().__init__(family, socket.SOCK_STREAM, fileno=fileno)
        self._most = most
        self._accepted: weakref.WeakKeyDictionary[socket.socket, int | None] = weakref.WeakKeyDictionary()

    def dup(self) -> LimitedSocket:
        """Return a listener at the same address, which counts its own connections."""
        return LimitedSocket(self.family, self._most, fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises: ConnectionAbortedError for one above the limit. An event loop ignores this error.
        """
        connection, address = super().accept()
        account = account_of(connection)
        # Counted from the sockets themselves, because closed connections are not reported.
        accounts = [peer for open_connection, peer in self._accepted.items() if open_connection.fileno() >= 0]
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
    """Return the user id at the other end of a Unix socket, from the kernel; None for other sockets."""
    return None if connection.family != socket.AF_UNIX else peer_of(connection)[1]


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process id and user id at the other end of a Unix socket, from the kernel."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


@contextlib.contextmanager
def open_people(home: Path, path: Path, group: str | None) -> Iterator[socket.socket]:
    """Open the people's socket below the home, for the service's own account and, if given, for a group.

    The group's access to the folder is opened last. Without a group, the folder is closed again.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    found_group = None if group is None else find_group(group)
    with open_unix(path, found_group) as listener:
        if found_group is not None:
            let_pass(home, folder, found_group)
        yield listener


@contextlib.contextmanager
def open_unix(path: Path, group: SystemGroup | None = None) -> Iterator[socket.socket]:
    """Open a Unix socket with mode 0600 from the beginning, and remove it at the end.

    The file of an earlier service is replaced. With a group, the mode is 0660 and the file is the group's, as soon as
    it is bound.
    """
    listener = _bind_unix(path)
    try:
        if group is not None:
            give(path, group, 0o660)
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _bind_unix(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.fsencode(path)) > 100:
        raise Unavailable(f"socket {path}: expected a path of at most 100 bytes; choose a shorter APPLIANCE_HOME")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(mode := path.lstat().st_mode):
            raise Conflict(f"socket {path}: expected nothing or a socket there, got {kind_of(mode)}")
        path.unlink()
    listener = LimitedSocket(socket.AF_UNIX, _most_connections())
    # bind gives the file the mode of the descriptor. The umask is that of all threads, which may create folders now.
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def open_tcp(listen: tuple[str, int], what: str = "units' port", setting: str = "listen") -> socket.socket:
    """Return a bound TCP socket that does not listen yet.

    Clients are refused, and do not wait, until `listen` is called.

    Raises: Unavailable if the address cannot be bound.
    """
    host, port = listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = LimitedSocket(family, _most_connections())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"{what}, {host}:{port}: expected to listen there, got {error.strerror}; "
            f"end the program that listens there, or name another address in the setting {setting}"
        ) from None
    return listener


def _most_connections() -> int:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(CONNECTIONS, descriptors // SHARE)


def listen(listener: socket.socket, what: str = "units' port") -> socket.socket:
    """Begin to listen on a bound socket.

    Raises: Unavailable if that fails.
    """
    try:
        listener.listen(128)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise Unavailable(f"{what}, {host}:{port}: expected to listen there, got {error.strerror}") from None
    return listener


CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Cipher suites of TLS 1.2. All of TLS 1.3 are of these kinds."""
_MAX_BYTES = 65_536
"""Maximum bytes of a private file."""


def open_tls(chain: Path, key: Path, client_ca: Path | None, not_of: Path | None = None) -> ssl.SSLContext:
    """Return the TLS context of a listener.

    With `client_ca`, only clients with a certificate of that CA are accepted. It has to differ from the CA in `not_of`,
    whose hosts use another listener.

    Raises: BadInput for files that do not fit together; Denied for a key that other accounts can read.
    """
    read_private(key, "certificate key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    load_certificate(context, chain, key)
    try:
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
            if not_of is not None and client_ca.read_bytes() == not_of.read_bytes():
                raise BadInput(
                    f"certificate, {client_ca}: expected a CA other than that of the units' hosts, got the same one"
                )
    except OSError as error:  # an SSLError is one too
        raise BadInput(f"certificate, {client_ca}: expected a PEM file, got: {error.args[-1]}") from None
    return context


def load_certificate(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    """Have the context use this certificate in later handshakes.

    Raises: BadInput for files that do not fit together.
    """
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except OSError as error:  # an SSLError is one too
        got = error.args[-1]
        raise BadInput(f"certificate, {chain} and {key}: expected PEM files that fit together, got: {got}") from None


def _no_password() -> str:
    raise BadInput("certificate, key: expected one without a passphrase in a file of mode 0600, got an encrypted one")


def read_private(path: Path, what: str) -> bytes:
    """Return the bytes of a small file that only the service's account or root can read.

    Raises: BadInput if there is no such file, or another kind of file; Denied if others can read it.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe could block the service for ever
                raise BadInput(f"{what}, {path}: expected a regular file, got {kind_of(status.st_mode)}")
            data = stream.read(_MAX_BYTES)
            is_closed = is_private(stream.fileno(), os.geteuid())
    except OSError as error:
        raise BadInput(f"{what}, {path}: expected a file, got: {error.strerror}") from None
    if not is_closed or status.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"{what}, {path}: expected the service's own file, mode 0600 or 0400, "
            f"got mode {status.st_mode & 0o777:04o} of user id {status.st_uid}"
        )
    return data
