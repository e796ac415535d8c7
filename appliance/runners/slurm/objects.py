"""Files that cross the shared folder, each under the digest of its bytes: hashed when it is put there, and by its
reader while it is copied away, so that what is used is what was hashed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import Hasher, parse_digest
from appliance.runners.output import open_output
from appliance.runners.slurm.spool import SHARED, shared_errors

PARTIAL = ".partial-"
_CHUNK_BYTES = 1 << 20


def put_file(source: int, objects: Path) -> tuple[str, int]:
    """Copies an open file there; its digest and size. One that is there already is written anew: it may have rotted."""
    hasher, partial = Hasher(), objects / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        with shared_errors(objects.name), _new(partial) as target:
            while chunk := os.read(source, _CHUNK_BYTES):
                hasher.update(chunk)
                _write(target, chunk)
            os.fsync(target)
            os.rename(partial, objects / hasher.digest().removeprefix("sha256:"))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return hasher.digest(), hasher.size


def has_file(objects: Path, digest: str, size: int) -> bool:
    """Whether these bytes are there, all of them hashed."""
    try:
        _copy(objects, digest, size, None)
    except (NotFound, Tampered, TooLarge):
        return False
    return True


def get_file(objects: Path, digest: str, size: int, target: Path, mode: int = 0o600) -> None:
    """Makes `target` of it. Tampered for other bytes, and nothing is left; Unavailable where there are none."""
    try:
        with shared_errors(f"a copy of {digest}"), _new(target, mode) as written:
            _copy(objects, digest, size, written)
    except NotFound:
        target.unlink(missing_ok=True)
        raise Unavailable(f"shared folder, {digest}: expected its bytes, got none", code=SHARED) from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(objects: Path, digest: str, size: int, target: int | None) -> None:
    name, hasher = parse_digest(digest).removeprefix("sha256:"), Hasher()
    with shared_errors(digest):
        source = open_output(objects, name)
        try:
            while chunk := os.read(source, _CHUNK_BYTES):
                hasher.update(chunk)
                if hasher.size > size:
                    raise Tampered(f"shared folder, {digest}: expected {size} bytes, got more")
                if target is not None:
                    _write(target, chunk)
        finally:
            os.close(source)
    if hasher.digest() != digest:
        raise Tampered(f"shared folder, {digest}: expected these bytes, got {hasher.digest()}")


@contextmanager
def _new(path: Path, mode: int = 0o600) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(target: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(target, rest) :]
