"""The token agent: a small process beside an application, which holds its key and hands out a token that stands.

A program that opens the socket gets one line of JSON and the end: `{"token", "id", "expires_at"}`, or
`{"error": {"code", "message"}}`. Nothing is read of them. The socket is 0600, and its other end must be this account or
root.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from appliance.client.applications.renewal import Granted, Renew
from appliance.client.support.door import is_answering
from appliance.errors import ApplianceError, BadInput, Conflict, NotAuthenticated, TooMany, Unavailable
from appliance.formats.core.timestamp import encode_time

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
CHECK_S = 60.0
"""So often the service is asked whether the token still counts, as it may have been revoked."""
_POLL_S = 0.5
_SEND_S = 5.0
_CREDENTIALS = struct.Struct("iII")


_NONE: ApplianceError = Unavailable("token: expected one that stands, got none yet or one that ended", code="no-token")


class Agent:
    """`renew` asks for a token; `tell` says on the terminal what changed; `stands` says whether the service still takes
    a token. A token is renewed when half of its time has passed, and when it counts no longer. One that could not be
    renewed is handed out as long as it stands."""

    def __init__(
        self, renew: Renew, ttl_s: int, tell: Callable[[str], None], stands: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._renew, self._ttl_s, self._tell, self._stands = renew, ttl_s, tell, stands
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._granted: Granted | None = None
        self._problem = _NONE
        self.ended: ApplianceError | None = None
        """Why no token will be issued any more: the application was ended."""

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    def renew_now(self) -> None:
        """Before its time, as after a token leaked and was revoked."""
        self._wake.set()

    def run(self, path: Path) -> None:
        """Hands out tokens at the socket until it is stopped; raises where the application was ended, by the service's
        own word. BadInput or Conflict where the socket cannot be made."""
        with open_socket(path) as listener:
            thread = threading.Thread(target=self._keep, name="renewal")
            thread.start()
            try:
                while not self._stopped.is_set():
                    self._serve_one(listener)
            finally:
                self.stop()
                path.unlink(missing_ok=True)
                thread.join()
        if self.ended is not None:
            raise self.ended

    # --- renewing -----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Until it is stopped, or the application has ended."""
        retry_s = FIRST_RETRY_S
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                granted = self._renew()
            except ApplianceError as error:
                self._fail(error)
                self._wake.wait(float(error.retry_after_s) if isinstance(error, TooMany) else retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            else:
                self._take(granted)
                retry_s = FIRST_RETRY_S
                self._hold(granted)

    def _hold(self, granted: Granted) -> None:
        """Returns when the token is to be renewed: at half of its time, when asked, or when it counts no longer."""
        renew_at = time.monotonic() + self._ttl_s / 2
        while (left_s := renew_at - time.monotonic()) > 0:
            if self._wake.wait(min(CHECK_S, left_s)):
                return
            if time.monotonic() < renew_at and not self._stands(granted.token):
                self._tell(f"token {granted.id} counts no longer")
                with self._lock:
                    self._granted = None
                return

    def _take(self, granted: Granted) -> None:
        with self._lock:
            self._granted, self._problem = granted, _NONE
        self._tell(f"token {granted.id}, until {granted.expires_at}")

    def _fail(self, error: ApplianceError) -> None:
        """A token that was issued before is handed out on, except once the service says that the application ended."""
        ended = isinstance(error, NotAuthenticated) and error.code == "revoked"
        with self._lock:
            changed = error.message != self._problem.message
            self._problem = error
            if ended:
                self._granted, self.ended = None, error
        if changed and not ended:
            self._tell(f"no new token: {error.message}")
        if ended:
            self.stop()

    # --- handing out --------------------------------------------------------------------------------------------------

    def answer(self) -> dict[str, object]:
        """The token that stands, or why there is none."""
        now = encode_time(datetime.now(UTC))
        with self._lock:
            granted, problem = self._granted, self._problem
        if granted is not None and granted.expires_at > now:
            return {"token": granted.token, "id": granted.id, "expires_at": granted.expires_at}
        return {"error": {"code": problem.code, "message": problem.message}}

    def _serve_one(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection:
            connection.settimeout(_SEND_S)
            told = self.answer() if is_own(connection) else _STRANGER
            try:
                connection.sendall(json.dumps(told).encode() + b"\n")
            except OSError:
                return  # the caller has gone


_STRANGER: dict[str, object] = {
    "error": {"code": "denied", "message": "agent: expected the account that runs it or root, got another"}
}


def is_own(connection: socket.socket) -> bool:
    """By the kernel's word: the process at the other end is this account's, or root's."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid in (0, os.geteuid())


def open_socket(path: Path) -> socket.socket:
    """Listens at a new socket of mode 0600. One that nobody answers at any more makes room."""
    if len(os.fsencode(path)) > 107:
        raise BadInput(f"agent, {path}: expected a path of at most 107 bytes, as the kernel takes it, got a longer one")
    _make_room(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # from its first moment on: a mode that is set later would come too late
    try:
        listener.bind(str(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise Unavailable(f"agent, {path}: expected to make a socket there, got {error.strerror}") from None
    finally:
        os.umask(before)
    listener.settimeout(_POLL_S)
    return listener


def _make_room(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"agent, {path}: expected to look at it, got {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"agent, {path}: expected a path that is free, got something that is no socket")
    if is_answering(path):
        raise Conflict(f"agent, {path}: expected a path that is free, got one where an agent answers")
    path.unlink(missing_ok=True)


def fetch(path: Path, timeout_s: float = 10.0) -> str:
    """The token that an agent at this socket hands out now, as an application asks for it; Unavailable with the agent's
    own word where it has none."""
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        try:
            asking.connect(str(path))
            data = b""
            while chunk := asking.recv(65_536):
                data += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError("timed out")
        except OSError as error:
            raise Unavailable(f"agent, {path}: expected it to answer, got {error}") from None
    value = json.loads(data)
    if "error" in value:
        raise Unavailable(f"agent, {path}: {value['error']['message']}", code=value["error"]["code"])
    return str(value["token"])
