"""Training checkpoints: files named by the digest of their bytes, `checkpoints/<hex>`.

A file gets its digest as name by one rename, after its bytes are on disk. The name alone is not trusted: each reader
hashes the file again.
"""

from __future__ import annotations

import os
import re
import secrets
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
        with disk.disk_errors("training checkpoints"):
            disk.make_folder(self._folder)

    def keep(self, source: int, max_bytes: int = MAX_BYTES) -> str:
        """Copies a file from its descriptor, durably; the digest of what was copied. TooLarge over the limit."""
        partial = self._folder / f"{disk.PARTIAL}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        hasher = Hasher()
        with disk.disk_errors("training checkpoint"):
            try:
                with open(os.open(partial, flags, 0o400), "wb", buffering=0) as file:
                    while chunk := os.read(source, disk.CHUNK_BYTES):
                        hasher.update(chunk)
                        if hasher.size > max_bytes:
                            raise TooLarge(f"training checkpoint: expected at most {max_bytes} bytes, got more")
                        disk.write_all(file.fileno(), chunk)
                    os.fsync(file.fileno())
                os.rename(partial, self._path(hasher.digest()))
                disk.sync_folder(self._folder)
            finally:
                partial.unlink(missing_ok=True)
        return hasher.digest()

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

    def sweep(self, keep: frozenset[str]) -> tuple[str, ...]:
        """Removes what `keep` does not hold, and what was half written; the digests of what was removed."""
        with disk.disk_errors("training checkpoints"):
            names = sorted(os.listdir(self._folder))
            gone = [name for name in names if _KEPT.fullmatch(name) and f"sha256:{name}" not in keep]
            for name in (*gone, *(name for name in names if name.startswith(disk.PARTIAL))):
                disk.discard(self._folder / name)
            disk.sync_folder(self._folder)
        return tuple(f"sha256:{name}" for name in gone)

    def _path(self, digest: str) -> Path:
        return self._folder / parse_digest(digest).removeprefix("sha256:")
