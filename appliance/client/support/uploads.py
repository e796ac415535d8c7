"""Bytes on their way to the service: hashed here first, so that the order binds what was read here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.client.support.door import Door
from appliance.errors import BadInput, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, encode_manifest
from appliance.formats.core.digest import Hasher, digest_bytes, digest_file

Progress = Callable[[int], None]
"""Called with the bytes that went out since the last call."""

_CHUNK_BYTES = 1 << 20
# Refused here before gigabytes are uploaded; the service refuses every name that it does not know.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Source:
    """What an import will read: a file, or a folder's files and the manifest over them. `digest` is its identity."""

    format: str
    digest: str
    files: tuple[tuple[Path, str, int], ...]
    manifest: bytes | None

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.files)


def read_base(path: Path, name: str) -> Source:
    """A GGUF file, or a model folder of safetensors; BadInput names what may not be in it."""
    if path.is_dir():
        return _read_folder(path, name)
    if path.suffix.lower() != ".gguf":
        got = f"a file with the ending {path.suffix!r}"
        raise BadInput(f"base, {path}: expected a folder of safetensors or a .gguf file, got {got}")
    return read_source(path, "gguf")


def read_source(path: Path, kind: str) -> Source:
    digest = digest_file(path)
    return Source(kind, digest, ((path, digest, path.stat().st_size),), None)


def _read_folder(path: Path, name: str) -> Source:
    files = []
    for found in sorted(path.rglob("*")):
        if found.is_symlink():
            raise BadInput(f"base, {found}: expected a regular file, got a link; import a copy without links")
        if found.is_dir():
            continue
        if found.suffix.lower() in _PICKLES:
            raise BadInput(f"base, {found}: expected safetensors, got a pickle, which runs code when it is read")
        relative = found.relative_to(path).as_posix()
        files.append((found, ManifestFile(relative, found.lstat().st_size, digest_file(found))))
    if not files:
        raise NotFound(f"base, {path}: expected the files of a model, got an empty folder")
    listed = tuple(sorted((file for _, file in files), key=lambda file: file.path))
    manifest = encode_manifest(Manifest(name, 1, listed))
    return Source("safetensors", digest_bytes(manifest), tuple((p, f.digest, f.size) for p, f in files), manifest)


def upload(door: Door, source: Source, progress: Progress) -> None:
    """Every file, then the manifest; the service hashes again and refuses what changed since it was hashed here."""
    for path, digest, size in source.files:
        answer = door.put(f"/v1/uploads/{digest}", partial(_read, path, size, progress), size)
        _check_receipt(answer, digest, str(path))
    manifest = source.manifest
    if manifest is not None:
        answer = door.put(f"/v1/uploads/{source.digest}", lambda: iter((manifest,)), len(manifest))
        _check_receipt(answer, source.digest, MANIFEST_PATH)


def _check_receipt(answer: object, digest: str, what: str) -> None:
    got = answer.get("digest") if isinstance(answer, dict) else None
    if got != digest:
        raise Tampered(f"upload, {what}: expected the service to have {digest}, got {got}")


def _read(path: Path, size: int, progress: Progress) -> Iterator[bytes]:
    """Exactly `size` bytes: a file that shrinks or grows in the meantime is refused before the service waits for it."""
    hasher = Hasher()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            if hasher.size > size:
                break
            yield chunk
            progress(len(chunk))
    if hasher.size != size:
        raise Unavailable(f"upload, {path}: expected {size} bytes, got a different size: it changed while it was read")
