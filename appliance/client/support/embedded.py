"""Starts the embedded service, detached, when the socket does not answer and no other process runs it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.client.support.door import is_answering
from appliance.client.support.program import FOLDER, isolated
from appliance.errors import NotFound, Unavailable

START_TIMEOUT_S = 30.0
"""How long a service may say nothing new before it answers."""
_POLL_S = 0.05
_TELL_S = 3.0
# What the service needs of the caller's environment beside the settings; a person's key, name and trust file are none
# of its business.
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TZ")
_KEPT_PREFIXES = ("XDG_", "CUDA_", "NVIDIA_", "OMP_", "LD_", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Place:
    """Where an appliance lives: its data folder, its door and the lock that makes one service of it. `variables`: the
    environment's names of its settings, which the service reads as its starter has."""

    home: Path
    socket: Path
    lock: Path
    logs: Path
    variables: Collection[str]


def start_service(
    place: Place, timeout_s: float = START_TIMEOUT_S, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Returns once the socket answers; Unavailable says why it does not, with the last line of the service's log.

    A service that reads a long log reports its progress, and is waited for; `tell` gets it every few seconds.
    """
    _check_own(place)
    process: subprocess.Popen[bytes] | None = None
    said = ""
    deadline, next_word = time.monotonic() + timeout_s, time.monotonic() + _TELL_S
    while not is_answering(place.socket):
        # A service that is just starting or ending holds the lock: wait for it before another is started.
        locked = is_locked(place.lock)
        if process is None and not locked:
            process = _spawn(place)
            _started.append(process)
        elif process is not None and process.poll() is not None and not locked:
            raise Unavailable(
                f"service of {place.home}: expected it to start, got exit code {process.returncode}: "
                f"{_last_line(_log(place))}; see {_log(place)}"
            )
        now = time.monotonic()
        if locked and (news := says(place.lock)) != said:
            said, deadline = news, now + timeout_s
        if said and now > next_word:
            tell(said)
            next_word = now + _TELL_S
        if now > deadline:
            raise Unavailable(
                f"service of {place.home}: expected an answer at {place.socket} within {timeout_s:.0f} s, got none; "
                f"see {_log(place)}"
            )
        time.sleep(_POLL_S)


def says(lock: Path) -> str:
    """What the holder of the lock says that it is doing: the file's second line."""
    with suppress(OSError):
        return lock.read_text("utf-8", "replace").partition("\n")[2].strip()
    return ""


_started: list[subprocess.Popen[bytes]] = []
"""The service outlives this process; its handle is kept, so that nothing reports it as a forgotten child."""


def _check_own(place: Place) -> None:
    """Only the account that owns the data folder may run its service."""
    try:
        owner = place.home.stat().st_uid
    except OSError:
        raise NotFound(
            f"appliance, {place.home}: expected a data folder, got none; make one with: appliance init, "
            "or name another with --home"
        ) from None
    if owner != os.geteuid():
        raise Unavailable(
            f"service, {place.socket}: expected it to answer, got nothing, and the data folder belongs to user id "
            f"{owner}; ask for its service to be started there: appliance serve"
        )


def is_locked(path: Path) -> bool:
    """Whether a service holds the lock. Who looks shares it for a moment, which `lock_folder` waits out."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Unavailable(f"lock, {path}: expected it to open, got {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _spawn(place: Place) -> subprocess.Popen[bytes]:
    place.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(_log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    kept = {*_KEPT, *place.variables}
    environment = {k: v for k, v in os.environ.items() if k in kept or k.startswith(_KEPT_PREFIXES)}
    try:
        return subprocess.Popen(
            isolated(sys.executable, "appliance", "--home", str(place.home), "serve", "--embedded"),
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            env=environment,
            cwd=FOLDER,
            start_new_session=True,
        )
    finally:
        os.close(handle)


def _log(place: Place) -> Path:
    return place.logs / "service.log"


def _last_line(path: Path) -> str:
    try:
        lines = path.read_bytes()[-4_096:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "no word in its log"
