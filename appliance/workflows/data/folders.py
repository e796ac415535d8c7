"""A worker's output folder becomes an artifact: opened without following links, hashed, listed, sealed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from appliance.errors import ApplianceError, BadInput, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, MAX_FILES, Manifest, ManifestFile, encode_manifest
from appliance.formats.core.digest import digest_bytes, digest_file, kind_of
from appliance.workflows.core.context import Context

log = logging.getLogger("appliance")


def list_files(folder: Path, name: str, version: int) -> Manifest:
    """The manifest over a flat folder's regular files; BadInput for a link, a folder or anything else in it."""
    files = []
    for path in _list_paths(folder):
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"output, {path.name}: expected a regular file, got {kind_of(path.lstat().st_mode)}")
        files.append(ManifestFile(path.name, path.lstat().st_size, digest_file(path)))
    return Manifest(name, version, tuple(files))


def _list_paths(folder: Path) -> list[Path]:
    """BadInput where hashing them would not end: more names than a manifest has, or more bytes than the disk, which are
    holes."""
    paths = sorted(islice(folder.iterdir(), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise BadInput(f"output: expected at most {MAX_FILES} files, got more")
    disk, size = os.statvfs(folder), sum(path.lstat().st_size for path in paths)
    if size > disk.f_blocks * disk.f_frsize:
        raise BadInput(f"output: expected no more bytes than the disk has, {disk.f_blocks * disk.f_frsize}, got {size}")
    return paths


def seal_folder(context: Context, staging: Path, name: str, version: int) -> bytes:
    """Writes the manifest, makes the folder an artifact under its digest, and returns the manifest's bytes."""
    data = encode_manifest(list_files(staging, name, version))
    (staging / MANIFEST_PATH).write_bytes(data)
    context.artifacts.seal(staging, digest_bytes(data))
    return data


@contextmanager
def recording(context: Context, digest: str) -> Iterator[None]:
    """Around the append of the entry that names a sealed artifact: where it is refused, the artifact is removed.

    Unavailable does not say whether the entry was appended; the next start asks the ledger.
    """
    try:
        yield
    except Unavailable:
        raise
    except ApplianceError:
        discard_unnamed(context, digest)
        raise
    context.artifacts.settle(digest)


def discard_unnamed(context: Context, digest: str) -> None:
    """Removes a pending artifact and, where it is a dataset, the key of its rows."""
    try:
        if digest in context.artifacts.pending():
            context.keyring.destroy_secret(secret_name(digest))
            context.artifacts.discard_pending(digest)
    except Unavailable as error:
        log.critical("ALARM: a folder that no entry names stays until the next start: %s", error.message)


def destroy_unnamed_secrets(context: Context, named: frozenset[str]) -> None:
    """At a start, before pending artifacts are removed: the keys of datasets that no entry names."""
    for digest in set(context.artifacts.pending()) - named:
        context.keyring.destroy_secret(secret_name(digest))


def secret_name(dataset: str) -> str:
    """Under which the keyring holds the key of a dataset's rows, by the digest of its manifest."""
    return f"dataset-{dataset.removeprefix('sha256:')}"
