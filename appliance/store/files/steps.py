"""The steps of runs that are not sealed yet, a line each as they come: `steps/RUN.jsonl`.

Lines are on disk for good when the training checkpoint after them is recorded; a power failure may lose those after it,
which are trained again.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from appliance.errors import Tampered, TooLarge
from appliance.store.files import disk

MAX_BYTES = 1 << 30
_KEPT = re.compile(r"(r-[0-9]{6,})\.jsonl")


class Steps:
    """All of a home's step files. Errors of the disk are Unavailable."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "steps"
        self._lock = threading.Lock()
        """Held by a sweep, and while a run begins its file."""
        with disk.disk_errors("steps"):
            disk.make_folder(self._folder)

    def begin(self, run: str, count: int) -> bytes:
        """Leaves the first `count` lines and returns them. Tampered where there are fewer: they were on disk. The run's
        start is recorded before, so that every later sweep keeps the file."""
        with self._lock:
            return self._begin(run, count)

    def _begin(self, run: str, count: int) -> bytes:
        data = self.read(run)
        lines = data.splitlines(keepends=True)
        kept = b"".join(lines[:count])
        if len(lines) < count or not kept.endswith(b"\n" * bool(count)):
            raise Tampered(
                f"steps of {run}: expected {count} lines, those before its training checkpoint, got {len(lines)}"
            )
        with disk.disk_errors(f"steps of {run}"):
            disk.write_file(self._path(run), kept)
        return kept

    def append(self, run: str, line: bytes) -> None:
        """TooLarge where the file would be more than can be read again: a worker may tell steps without end."""
        with disk.disk_errors(f"steps of {run}"):
            descriptor = os.open(self._path(run), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size + len(line) > MAX_BYTES:
                    raise TooLarge(f"steps of {run}: expected at most {MAX_BYTES} bytes, got more")
                disk.write_all(descriptor, line)
            finally:
                os.close(descriptor)

    def sync(self, run: str) -> None:
        with disk.disk_errors(f"steps of {run}"):
            descriptor = os.open(self._path(run), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, run: str) -> bytes:
        """The bytes; none where no step was taken. The last line may be torn."""
        path = self._path(run)
        with disk.disk_errors(f"steps of {run}"):
            if not path.exists():
                return b""
            with (
                disk.open_folder(self._folder) as folder,
                disk.open_plain(folder, path.name, f"steps of {run}") as file,
            ):
                return disk.read_all(file, MAX_BYTES, f"steps of {run}")

    def sweep(self, wanted: Callable[[], frozenset[str]]) -> None:
        """Removes those of runs that `wanted` does not return, and what was half written. `wanted` is called while no
        run can begin its file."""
        with self._lock, disk.disk_errors("steps"):
            keep = wanted()
            for name in sorted(os.listdir(self._folder)):
                found = _KEPT.fullmatch(name)
                if name.startswith(disk.PARTIAL) or (found and found[1] not in keep):
                    disk.discard(self._folder / name)
            disk.sync_folder(self._folder)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.jsonl"
