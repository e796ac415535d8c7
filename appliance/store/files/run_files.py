"""Files of runs: training checkpoints, step records and calibrations.

A training checkpoint is `checkpoints/<hex>`, named by the digest of its bytes. It is renamed to this name once its
bytes are on disk. Readers do not trust the name and hash the file again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from appliance.domain.planning.shape import MachineCalibration
from appliance.errors import NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import Hasher, digest_bytes, parse_digest
from appliance.store.files import disk

MAX_BYTES = 2 << 30
_KEPT = re.compile(r"[0-9a-f]{64}")


class Checkpoints:
    """The training checkpoints of a home. Disk errors are Unavailable."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "checkpoints"
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()
        """Names that a sweep must keep: partial files, and files that are about to be recorded."""
        with disk.disk_errors("training checkpoints"):
            disk.make_folder(self._folder)

    @contextmanager
    def keep(self, source: int, max_bytes: int = MAX_BYTES) -> Iterator[str]:
        """Copy a file durably from its descriptor and yield the digest of the copy.

        No sweep removes the file before the block ends, so record the digest within the block.

        Raises:
            TooLarge: the file exceeds `max_bytes`.
        """
        partial = self._folder / f"{disk.PARTIAL}{secrets.token_hex(8)}"
        with self._spared(partial.name):
            try:
                with disk.disk_errors("training checkpoint"):
                    digest = _copy(source, partial, max_bytes)
                path = self._path(digest)
                with self._spared(path.name):
                    with disk.disk_errors("training checkpoint"):
                        os.rename(partial, path)
                        disk.sync_folder(self._folder)
                    yield digest
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Protect a name from sweeps during the block; wait for a sweep in progress."""
        with self._lock:
            self._pending[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._pending[name] -= 1
                self._pending += Counter()

    def read(self, digest: str) -> bytes:
        """Return the verified bytes of a checkpoint.

        Raises:
            NotFound: the file is gone.
            Tampered: its bytes have another digest.
        """
        what = f"training checkpoint {digest}"
        data = disk.read_plain(self._folder, self._path(digest).name, MAX_BYTES, what)
        if digest_bytes(data) != digest:
            raise Tampered(f"{what}: expected these bytes, got those of {digest_bytes(data)}")
        return data

    def find(self, digest: str) -> bytes | None:
        """Return the verified bytes, or None if the file is gone."""
        try:
            return self.read(digest)
        except NotFound:
            return None

    def size(self, digest: str) -> int:
        """Return the size in bytes, or 0 if the file is gone."""
        try:
            return self._path(digest).lstat().st_size
        except FileNotFoundError:
            return 0

    def sweep(self, wanted: Callable[[], frozenset[str]]) -> tuple[str, ...]:
        """Remove partial files and checkpoints whose digests `wanted` does not return; return the removed digests.

        `wanted` is called while no file can get its final name, so that it includes all that were recorded meanwhile.
        """
        with self._lock, disk.disk_errors("training checkpoints"):
            spared = frozenset(self._pending)
            keep = wanted()
            names = [name for name in sorted(os.listdir(self._folder)) if name not in spared]
            gone = [name for name in names if _KEPT.fullmatch(name) and f"sha256:{name}" not in keep]
            for name in (*gone, *(name for name in names if name.startswith(disk.PARTIAL))):
                disk.discard(self._folder / name)
            disk.sync_folder(self._folder)
        return tuple(f"sha256:{name}" for name in gone)

    def _path(self, digest: str) -> Path:
        return self._folder / parse_digest(digest).removeprefix("sha256:")


def _copy(source: int, target: Path, max_bytes: int) -> str:
    """Copy into a new file durably and return the digest of the copy."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    hasher = Hasher()
    with open(os.open(target, flags, 0o400), "wb", buffering=0) as file:
        while chunk := os.read(source, disk.CHUNK_BYTES):
            hasher.update(chunk)
            if hasher.size > max_bytes:
                raise TooLarge(f"training checkpoint: expected at most {max_bytes} bytes, got more")
            disk.write_all(file.fileno(), chunk)
        os.fsync(file.fileno())
    return hasher.digest()


MAX_STEPS_BYTES = 1 << 30
_KEPT_STEPS = re.compile(r"(r-[0-9]{6,})\.jsonl")


class StepStore:
    """The step records of a home's runs. Disk errors are Unavailable."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "steps"
        self._lock = threading.Lock()
        """Lock that is held by a sweep, and while a run begins its file."""
        with disk.disk_errors("steps"):
            disk.make_folder(self._folder)

    def begin(self, run: str, count: int) -> bytes:
        """Truncate the file to its first `count` lines and return them.

        The start of the run must have been recorded, so that later sweeps keep the file.

        Raises:
            Unavailable: the file has vanished.
            Tampered: it has fewer lines.
        """
        with self._lock:
            return self._begin(run, count)

    def _begin(self, run: str, count: int) -> bytes:
        data = self.read(run)
        if count and not self._path(run).exists():
            raise Unavailable(f"steps of {run}: expected {count} lines, got no file; see that its disk is mounted")
        lines = data.splitlines(keepends=True)
        first_lines = b"".join(lines[:count])
        if len(lines) < count or not first_lines.endswith(b"\n" * bool(count)):
            raise Tampered(
                f"steps of {run}: expected {count} lines, those before its training checkpoint, got {len(lines)}"
            )
        with disk.disk_errors(f"steps of {run}"):
            disk.write_file(self._path(run), first_lines)
        return first_lines

    def append(self, run: str, line: bytes) -> None:
        """Append a line.

        Raises:
            TooLarge: the file would become too large to be read; a worker may report any number of steps.
        """
        with disk.disk_errors(f"steps of {run}"):
            descriptor = os.open(self._path(run), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size + len(line) > MAX_STEPS_BYTES:
                    raise TooLarge(f"steps of {run}: expected at most {MAX_STEPS_BYTES} bytes, got more")
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
        """Return the bytes, empty if there are no steps. The last line may be incomplete."""
        try:
            return disk.read_plain(self._folder, self._path(run).name, MAX_STEPS_BYTES, f"steps of {run}")
        except NotFound:
            return b""

    def sweep(self, wanted: Callable[[], frozenset[str]]) -> None:
        """Remove partial files and those of runs that `wanted` does not return.

        `wanted` is called while no run can begin its file.
        """
        with self._lock, disk.disk_errors("steps"):
            keep = wanted()
            for name in sorted(os.listdir(self._folder)):
                found = _KEPT_STEPS.fullmatch(name)
                if name.startswith(disk.PARTIAL) or (found and found[1] not in keep):
                    disk.discard(self._folder / name)
            disk.sync_folder(self._folder)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.jsonl"


MOST = 64
"""Maximum number of calibrations; older ones are dropped."""
_MAX_CALIBRATIONS_BYTES = 4 << 20


class CalibrationStore:
    """The calibrations of a home. Disk errors are Unavailable; an unreadable file counts as empty."""

    def __init__(self, home: Path) -> None:
        self._path = home / "calibrations.json"

    def read(self) -> tuple[MachineCalibration, ...]:
        try:
            data = disk.read_plain(self._path.parent, self._path.name, _MAX_CALIBRATIONS_BYTES, "calibrations")
            return tuple(MachineCalibration.model_validate(one) for one in json.loads(data))
        except (ValueError, TypeError, ValidationError, NotFound, Tampered, TooLarge):
            return ()

    def keep(self, made: MachineCalibration) -> None:
        """Store a calibration in place of an earlier one of the same base, method and machine."""
        others = [one for one in self.read() if _key(one) != _key(made)]
        values = [one.model_dump(mode="json") for one in (*others[1 - MOST :], made)]
        with disk.disk_errors("calibrations"):
            disk.write_file(self._path, json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")


def _key(one: MachineCalibration) -> tuple[str, ...]:
    return one.host, one.base, one.method, one.quantisation, one.compute_dtype
