"""Training checkpoints: files named by the digest of their bytes, `checkpoints/<hex>`.

A file gets its digest as name by one rename, after its bytes are on disk. The name alone is not trusted: each reader
hashes the file again.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import NotFound, Tampered, TooLarge
from appliance.formats.core.digest import Hasher, digest_bytes, parse_digest
from appliance.store.files import disk

MAX_BYTES = 2 << 30
_KEPT = re.compile(r"[0-9a-f]{64}")


class Checkpoints:
    """All of a home's training checkpoints. Errors of the disk are Unavailable."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "checkpoints"
        self._lock = threading.Lock()
        self._pending: Counter[str] = Counter()
        """Names in the folder that a sweep spares: half-written files, and files that are about to be recorded."""
        with disk.disk_errors("training checkpoints"):
            disk.make_folder(self._folder)

    @contextmanager
    def keep(self, source: int, max_bytes: int = MAX_BYTES) -> Iterator[str]:
        """Copies a file from its descriptor, durably, and yields the digest of what was copied. TooLarge over the
        limit. No sweep removes the file before the `with` block ends: record its digest within the block."""
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
        """Waits for a sweep that is under way."""
        with self._lock:
            self._pending[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._pending[name] -= 1
                self._pending += Counter()

    def read(self, digest: str) -> bytes:
        """The bytes in one buffer, hashed; NotFound where they are gone, Tampered where they are others."""
        what = f"training checkpoint {digest}"
        with (
            disk.disk_errors(what),
            disk.open_folder(self._folder) as folder,
            disk.open_plain(folder, self._path(digest).name, what) as file,
        ):
            data = disk.read_all(file, MAX_BYTES, what)
        if digest_bytes(data) != digest:
            raise Tampered(f"{what}: expected these bytes, got those of {digest_bytes(data)}")
        return data

    def find(self, digest: str) -> bytes | None:
        """The same, or None where they are gone."""
        try:
            return self.read(digest)
        except NotFound:
            return None

    def size(self, digest: str) -> int:
        """In bytes; 0 where they are gone."""
        try:
            return self._path(digest).lstat().st_size
        except FileNotFoundError:
            return 0

    def sweep(self, wanted: Callable[[], frozenset[str]]) -> tuple[str, ...]:
        """Removes the files whose digests `wanted` does not return, and what was half written; the digests of what was
        removed. `wanted` is called while no file can get its name, so that it cannot miss one that was recorded
        meanwhile."""
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
    """Durably, into a new file; the digest of what was copied."""
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
