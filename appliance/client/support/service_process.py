"""Start of the service and of other programs, in an interpreter that is isolated from its surroundings.

With `-I`, the working folder, the home and PYTHONPATH cannot put code before Python's own library. The program is found
in the folder that contains this package.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.client.support.connection import is_answering
from appliance.client.support.files import check_place
from appliance.errors import Conflict, NotFound, Unavailable

FOLDER = "/"
"""The working folder of a program that needs none."""
_PROGRAM_S = 300.0
_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path.insert(0, root); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def make_command(python: str, module: str, *words: str) -> list[str]:
    """Return the command by which that Python runs the module with these arguments."""
    return [python, "-I", "-c", _START, _ROOT, module, *words]


def new_folder(path: Path, what: str) -> None:
    """Create a folder.

    Raises: Conflict if it exists; BadInput if its parent is missing; Unavailable if it cannot be created.
    """
    check_place(path, what)
    try:
        path.mkdir()
    except FileExistsError:
        raise Conflict(f"{what}, {path}: expected a name that is free, got one that is taken") from None
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be writable, got {error.strerror}") from None


def run_report_program(python: str, name: str, words: list[str], data: bytes) -> None:
    """Run a program of `appliance.reports` in a temporary home, without this process's environment and folder.

    Raises: Unavailable if it fails.
    """
    # A relative path must be resolved here, since the program runs in another folder; a bare name is searched in PATH.
    python = os.path.abspath(python) if os.sep in python else python
    with tempfile.TemporaryDirectory() as scratch:
        environment = {"HOME": scratch, "MPLCONFIGDIR": scratch, "PATH": os.environ.get("PATH", os.defpath)}
        try:
            done = subprocess.run(
                make_command(python, f"appliance.reports.{name}", *words),
                input=data,
                env=environment,
                cwd=scratch,
                capture_output=True,
                timeout=_PROGRAM_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{name}, {python}: expected it to run to its end, got {type(error).__name__}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(f"{name}: expected the program to succeed, got: {last[-1]}")


START_TIMEOUT_S = 30.0
"""Seconds for which a starting service may report no progress."""
_POLL_S = 0.05
_TELL_S = 3.0
# Variables of the caller's environment that the service gets beside the settings. A person's key, name and trust file
# are withheld.
_KEPT = ("HOME", "LANG", "LC_ALL", "PATH", "TZ")
_KEPT_PREFIXES = ("XDG_", "CUDA_", "NVIDIA_", "OMP_", "LD_", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Place:
    """The paths of an appliance: its data folder, its socket, the lock that allows one service, and its logs.

    `read_variables` returns the settings in the environment, which the service gets from its starter.
    """

    home: Path
    socket: Path
    lock: Path
    logs: Path
    read_variables: Callable[[], Mapping[str, str]]


def start_service(
    place: Place, timeout_s: float = START_TIMEOUT_S, on_progress: Callable[[str], None] = lambda _: None
) -> None:
    """Start the service and return once the socket answers.

    A service that reads a long log reports its progress, and the function waits; `on_progress` gets the
    progress every few seconds.

    Raises: Unavailable, with the last line of the service's log, if it does not start.
    """
    _check_own(place)
    process: subprocess.Popen[bytes] | None = None
    activity = ""
    deadline, next_word = time.monotonic() + timeout_s, time.monotonic() + _TELL_S
    while not is_answering(place.socket):
        # A service that is starting or ending holds the lock: wait for it before starting another.
        locked = is_locked(place.lock)
        if process is None and not locked:
            process = _spawn(place)
            _started.append(process)
        elif process is not None and process.poll() is not None and not locked:
            raise Unavailable(
                f"service of {place.home}: expected it to start, got exit code {process.returncode}: "
                f"{_read_last_words(_log(place))}; see {_log(place)}"
            )
        now = time.monotonic()
        if locked and (new_activity := read_activity(place.lock)) != activity:
            activity, deadline = new_activity, now + timeout_s
        if activity and now > next_word:
            on_progress(activity)
            next_word = now + _TELL_S
        if now > deadline:
            raise Unavailable(
                f"service of {place.home}: expected an answer at {place.socket} within {timeout_s:.0f} s, got none; "
                f"see {_log(place)}"
            )
        time.sleep(_POLL_S)


def read_activity(lock: Path) -> str:
    """Return the activity that the holder of the lock reports: the file's second line."""
    with suppress(OSError):
        return lock.read_text("utf-8", "replace").partition("\n")[2].strip()
    return ""


_started: list[subprocess.Popen[bytes]] = []
"""Handles of services, which outlive this process. They are kept so that Python does not report unreaped children."""


def _check_own(place: Place) -> None:
    """Raise an error unless this account owns the data folder, since only its owner may run the service."""
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
    """Return True if a service holds the lock.

    The check shares the lock for a moment, for which `lock_folder` waits.
    """
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
    environment = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    environment |= place.read_variables()
    place.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(_log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            make_command(sys.executable, "appliance", "--home", str(place.home), "serve", "--embedded"),
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


def _read_last_words(path: Path) -> str:
    """Return the last line of the service's log, without an address in the manual, which ends an error."""
    try:
        lines = path.read_bytes()[-4_096:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if not line.startswith("manual: ")]
    return said[-1] if said else "no word in its log"


_STOP_POLL_S = 0.05
_STOP_TELL_S = 3.0


def holder_of(place: Place) -> int | None:
    """Return the process id that the lock's holder wrote, or None if no service holds it."""
    if not is_locked(place.lock):
        return None
    try:
        return int(place.lock.read_text("ascii", "replace").partition("\n")[0])
    except (OSError, ValueError):
        raise Unavailable(f"lock, {place.lock}: expected its holder's process id, got none; try again") from None


def stop_service(place: Place, timeout_s: float, on_progress: Callable[[str], None]) -> int | None:
    """Stop the service; return the process id of the ended service, or None if none ran.

    `on_progress` gets what the service is waiting for.

    Raises: Unavailable if it has not ended in time, though it continues to end; Conflict if the lock's holder is
    unclear.
    """
    pid = holder_of(place)
    if pid is None:
        return None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid if _wait_for_end(place, timeout_s, on_progress) else None
    try:
        _check_holds(place, pid)
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        pass  # the service has ended by itself
    except PermissionError:
        raise Unavailable(f"service, process {pid}: expected one of your account, got one of another account") from None
    finally:
        os.close(process)
    _wait_for_end(place, timeout_s, on_progress)
    return pid


def _check_holds(place: Place, pid: int) -> None:
    """Raise Conflict unless the process has the lock file open."""
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


def _wait_for_end(place: Place, timeout_s: float, on_progress: Callable[[str], None]) -> bool:
    began, next_word = time.monotonic(), time.monotonic() + _STOP_TELL_S
    while is_locked(place.lock):
        now = time.monotonic()
        if now - began > timeout_s:
            doing = read_activity(place.lock) or "answers its open requests"
            raise Unavailable(f"service of {place.home}: expected it to end within {timeout_s:.0f} s; it {doing}")
        if now > next_word:
            on_progress(read_activity(place.lock) or "answers its open requests")
            next_word = now + _STOP_TELL_S
        time.sleep(_STOP_POLL_S)
    return True
