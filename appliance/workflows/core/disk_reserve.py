"""No worker takes the last room on the disk: the ledger needs it, and could not even record how the worker ended.

How much a worker holds cannot be seen, since a file that was removed and is still open has no name. So the workers of
jobs are ended first, whichever of them took the room, and an engine, which writes nothing, only when that did not help.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import ApplianceError, Unavailable
from appliance.runners.running import Running
from appliance.workflows.core.defects import DISK

log = logging.getLogger("appliance")

RESERVE_BYTES = 1 << 30
_SHARE = 20
"""On a small disk the reserve is this part of it."""
_ENGINE_SHARE = 8
"""Of the reserve: with so little left engines are ended too."""
_LOOK_S = 0.25


def reserve_of(folder: Path) -> tuple[int, int, int]:
    """Of the folder's disk: its bytes, those that are free, and those of them that the ledger needs."""
    found = os.statvfs(folder)
    whole = found.f_blocks * found.f_frsize
    return whole, found.f_bavail * found.f_frsize, min(RESERVE_BYTES, whole // _SHARE)


def disk_shortage(folder: Path, *, engine: bool) -> str | None:
    """Why a worker that writes below this folder is to end; None while there is room."""
    _, free, reserve = reserve_of(folder)
    reserve //= _ENGINE_SHARE if engine else 1
    if free >= reserve:
        return None
    return (
        f"worker, disk: expected {reserve} bytes free beside what it writes, got {free}; make room and order it again"
    )


@contextmanager
def kept_free(started: Running, folder: Path, *, engine: bool) -> Iterator[None]:
    """Ends the worker when the disk of this folder has too little room; what follows from that is Unavailable
    (`disk`)."""
    over, why = threading.Event(), ""

    def look() -> None:
        nonlocal why
        while not over.wait(_LOOK_S):
            try:
                why = disk_shortage(folder, engine=engine) or ""
            except OSError:
                continue  # the disk is missing, and the code that uses it reports that
            if why:
                log.critical("ALARM: a worker is ended: %s", why)
                started.kill()
                return

    thread = threading.Thread(target=look, name=f"disk-reserve-{started.pid}", daemon=True)
    thread.start()
    try:
        yield
    except ApplianceError as error:
        if why:
            raise Unavailable(why, code=DISK) from error
        raise
    finally:
        over.set()
        thread.join()
