"""Bytes from a client, hashed while they are written: they get their name when they have proved to be it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.errors import BadInput, TooLarge
from appliance.formats.core.digest import Hasher
from appliance.store.files import disk


class Upload:
    """One upload under way. Left without `finish`, it leaves nothing."""

    def __init__(self, folder: Path, digest: str, size: int) -> None:
        self._digest = digest
        self._size = size
        self._target = folder / digest.removeprefix("sha256:")
        self._partial = folder / f"{disk.PARTIAL}{secrets.token_hex(8)}"
        self._hasher = Hasher()
        self._descriptor = -1

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk.disk_errors(f"upload {self._digest}"):
            self._descriptor = os.open(self._partial, flags, 0o600)
        return self

    def write(self, chunk: bytes) -> None:
        """TooLarge as soon as there is more than was announced."""
        if self._hasher.size + len(chunk) > self._size:
            raise TooLarge(f"upload {self._digest}: expected {self._size} bytes, got more")
        self._hasher.update(chunk)
        with disk.disk_errors(f"upload {self._digest}"):
            disk.write_all(self._descriptor, chunk)

    def finish(self) -> Path:
        """Makes the bytes durable under their digest; BadInput when they are others."""
        got = self._hasher.digest()
        if got != self._digest:
            raise BadInput(f"upload: expected the bytes of {self._digest}, got those of {got}")
        with disk.disk_errors(f"upload {self._digest}"):
            os.fsync(self._descriptor)
            os.rename(self._partial, self._target)
            disk.sync_folder(self._target.parent)
        return self._target

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk.disk_errors(f"upload {self._digest}"):
            os.close(self._descriptor)
            self._partial.unlink(missing_ok=True)
