"""Starts the site's own program that carries notices: by its path alone, without a shell and without walls.

It runs as the service's account and could read what the service reads, so its file must be root's or the service's own
and nobody else may write to it. It gets one line on its standard input, a neutral folder and an environment of two
variables, and has ten seconds. What it prints goes nowhere.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.errors import BadInput, Denied, Unavailable

LIMIT_S = 10.0
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def check_hook(words: Sequence[str]) -> None:
    """BadInput where there is no such program; Denied where somebody else could change it."""
    path = Path(words[0])
    try:
        status = path.stat()
    except OSError as error:
        raise BadInput(f"notice command, {path}: expected a program, got: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK):
        raise BadInput(f"notice command, {path}: expected a program that the service may run, got another file")
    if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"notice command, {path}: expected a file of root or of the service's account that nobody else can write "
            f"to, got mode {stat.S_IMODE(status.st_mode):04o} of user id {status.st_uid}"
        )


def run_hook(words: Sequence[str], line: bytes, limit_s: float = LIMIT_S) -> None:
    """Unavailable unless it ends with 0 in time; then it, and what it started, is ended."""
    check_hook(words)
    try:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"notice command: expected it to start, got: {error.strerror}") from None
    with process:
        try:
            process.communicate(line, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"notice command: expected its end within {limit_s:.0f} s, got none") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Unavailable(f"notice command: expected exit code 0, got {process.returncode}")
