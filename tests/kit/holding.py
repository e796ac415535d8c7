"""Files that say where a process under test waits, and small pipes, so that a worker cannot run ahead of who waits."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from appliance.sandbox import local

HOLD, HELD = "hold", "held"
"""`hold` names a point; `held` has a line for each who waits there: when `hold` was written, and its process id."""
LOOK_S = 0.02
PIPE_BYTES = 4096


def write_hold(folder: Path, point: str) -> None:
    """Let who comes to this point wait from now on, and let go who waits."""
    written = folder / f"{HOLD}.new"
    written.write_text(point)
    written.rename(folder / HOLD)


def remove_hold(folder: Path) -> None:
    (folder / HOLD).unlink(missing_ok=True)


def read_hold(folder: Path) -> tuple[str, int]:
    """Return the point and when it was written, or an empty text. Each `write_hold` gives another value."""
    return read_dated(folder / HOLD)


def read_dated(path: Path) -> tuple[str, int]:
    """Return a file's text and when it was written, or an empty text."""
    try:
        with path.open() as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return "", 0


def say_held(folder: Path, since: int) -> None:
    """Say that this process waits at the point that was written at `since`."""
    with (folder / HELD).open("a") as file:
        file.write(f"{since} {os.getpid()}\n")


def count_held(folder: Path) -> int:
    """Return how many processes wait, or have waited, at the point that was written last."""
    since = read_hold(folder)[1]
    lines = (folder / HELD).read_text().splitlines() if (folder / HELD).exists() else []
    return len({line for line in lines if line.startswith(f"{since} ")})


def shrink_pipes() -> None:
    """From here on a worker of this process writes few frames that nobody has received: one page of them."""
    open_pipe = local.open_pipe

    def open_small_pipe(**stacks: Any) -> tuple[int, int]:
        read, write = open_pipe(**stacks)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return read, write

    module: Any = local
    module.open_pipe = open_small_pipe
