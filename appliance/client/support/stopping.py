"""Asks the service of a data folder to end, and waits until it has: by the process that holds its lock.

The process id in a file is not trusted, because a new process may have the same id. The signal goes only to a process
that has this lock file open, through a descriptor of that process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from appliance.client.support.embedded import Place, is_locked, says
from appliance.errors import Conflict, Unavailable

_POLL_S = 0.05
_TELL_S = 3.0


def holder_of(place: Place) -> int | None:
    """The process id that the lock's holder wrote; None while no service holds it."""
    if not is_locked(place.lock):
        return None
    try:
        return int(place.lock.read_text("ascii", "replace").partition("\n")[0])
    except (OSError, ValueError):
        raise Unavailable(f"lock, {place.lock}: expected its holder's process id, got none; try again") from None


def stop_service(place: Place, timeout_s: float, tell: Callable[[str], None]) -> int | None:
    """The process id of the service that has ended; None where none ran. `tell` gets what it waits for. Unavailable
    where it has not ended in time; it continues to end.
    """
    pid = holder_of(place)
    if pid is None:
        return None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid if _wait(place, timeout_s, tell) else None
    try:
        _check_holds(place, pid)
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended by itself
    except PermissionError:
        raise Unavailable(f"service, process {pid}: expected one of your account, got one of another account") from None
    finally:
        os.close(process)
    _wait(place, timeout_s, tell)
    return pid


def _check_holds(place: Place, pid: int) -> None:
    """Conflict unless the process has the lock file open."""
    lock = os.stat(place.lock)
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        raise ProcessLookupError from None
    for name in names:
        with suppress(FileNotFoundError):
            found = os.stat(f"/proc/{pid}/fd/{name}")
            if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                return
    raise Conflict(
        f"lock, {place.lock}: expected the process that holds it, got process id {pid}, which does not have it open; "
        "no signal was sent"
    )


def _wait(place: Place, timeout_s: float, tell: Callable[[str], None]) -> bool:
    began, next_word = time.monotonic(), time.monotonic() + _TELL_S
    while is_locked(place.lock):
        now = time.monotonic()
        if now - began > timeout_s:
            doing = says(place.lock) or "answers its open requests"
            raise Unavailable(f"service of {place.home}: expected it to end within {timeout_s:.0f} s; it {doing}")
        if now > next_word:
            tell(says(place.lock) or "answers its open requests")
            next_word = now + _TELL_S
        time.sleep(_POLL_S)
    return True
