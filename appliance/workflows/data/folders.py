"""Sealed folders: a worker's output is read without following links, hashed, listed in a manifest and sealed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import BoundSet, Dataset, ValidationSet
from appliance.domain.data.kinds import ABOUT_FILE, InstructedDataset, parse_about
from appliance.errors import ApplianceError, BadInput, Denied, Tampered, Unavailable
from appliance.formats.artifacts.manifest import (
    MANIFEST_PATH,
    MAX_FILES,
    Manifest,
    ManifestFile,
    encode_manifest,
    parse_manifest,
)
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes, digest_file, kind_of
from appliance.workflows.core.context import LedgerContext

log = logging.getLogger("appliance")


def list_files(folder: Path, name: str, version: int) -> Manifest:
    """Return the manifest over the regular files of a flat folder.

    Raises:
        BadInput: The folder contains a link, a folder or another special file, or too many names or bytes.
    """
    files = []
    for path in _list_paths(folder):
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"output, {path.name}: expected a regular file, got {kind_of(path.lstat().st_mode)}")
        files.append(ManifestFile(path.name, path.lstat().st_size, digest_file(path)))
    return Manifest(name, version, tuple(files))


def _list_paths(folder: Path) -> list[Path]:
    """Return the sorted paths of the folder.

    It may not have more names than a manifest, or more bytes than the disk: such bytes are holes of sparse files, which
    would take too long to hash.
    """
    paths = sorted(islice(folder.iterdir(), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise BadInput(f"output: expected at most {MAX_FILES} files, got more")
    disk, size = os.statvfs(folder), sum(path.lstat().st_size for path in paths)
    if size > disk.f_blocks * disk.f_frsize:
        raise BadInput(f"output: expected no more bytes than the disk has, {disk.f_blocks * disk.f_frsize}, got {size}")
    return paths


def seal_folder(context: LedgerContext, staging: Path, name: str, version: int) -> bytes:
    """Write the manifest, seal the folder as an artifact under its digest, and return the manifest's bytes."""
    data = encode_manifest(list_files(staging, name, version))
    (staging / MANIFEST_PATH).write_bytes(data)
    context.artifacts.seal(staging, digest_bytes(data))
    return data


@contextmanager
def recording(context: LedgerContext, digest: str) -> Iterator[None]:
    """Enclose the append of the entry that names a sealed artifact, and remove the artifact if the entry is refused.

    After Unavailable it is unclear whether the entry was appended, so the artifact stays. The next start checks the
    ledger.
    """
    try:
        yield
    except Unavailable:
        raise
    except ApplianceError:
        discard_unnamed(context, digest)
        raise
    context.artifacts.settle(digest)


def discard_unnamed(context: LedgerContext, digest: str) -> None:
    """Remove a pending artifact and, if it is a dataset, the key of its rows."""
    try:
        if digest in context.artifacts.pending():
            context.keyring.destroy_secret(secret_name(digest))
            context.artifacts.discard_pending(digest)
    except Unavailable as error:
        log.critical("ALARM: a folder that no entry names stays until the next start: %s", error.message)


def destroy_unnamed_secrets(context: LedgerContext, named: frozenset[str]) -> None:
    """Destroy the keys of pending datasets that no entry names. Called at a start, before pending artifacts are
    removed.
    """
    for digest in set(context.artifacts.pending()) - named:
        context.keyring.destroy_secret(secret_name(digest))


def secret_name(dataset: str) -> str:
    """Return the name of the keyring's secret for the rows of a dataset, from the digest of the dataset's manifest."""
    return f"dataset-{dataset.removeprefix('sha256:')}"


_MAX_ABOUT_BYTES = 4_000_000


def read_training_description(context: LedgerContext, dataset: Dataset) -> InstructedDataset:
    """Return the training data's description and its instruction, or None for an erased instruction.

    Raises:
        Tampered: The folder's file differs from the one that the dataset's manifest lists.
    """
    found = disclosed_instruction(context, dataset.instruction)
    return InstructedDataset(parse_about(read_about(context, dataset)), None if found is None else found.text)


def read_about(context: LedgerContext, dataset: Dataset | ValidationSet) -> bytes:
    """Return the bytes of the folder's dataset.json, compared with the manifest that the dataset's entry binds.

    Raises:
        Tampered: The bytes differ.
    """
    data = context.artifacts.read(dataset.digest, ABOUT_FILE, _MAX_ABOUT_BYTES)
    manifest = parse_manifest(context.ledger.documents_of(dataset.index)["manifest"])
    expected = next((file.digest for file in manifest.files if file.path == ABOUT_FILE), "none in its manifest")
    if (got := digest_bytes(data)) != expected:
        name = versioned(dataset.name, dataset.version)
        raise Tampered(f"{name}, {ABOUT_FILE}: expected {expected}, got {got}")
    return data


def check_labels(context: LedgerContext, name: str, sets: Iterable[BoundSet]) -> None:
    """Check that the validation sets have only labels of the dataset of this name, since no answer could match another
    one.

    Raises:
        Denied: A set has other labels. The error gives only their number, because the set may be blind.
    """
    state = context.ledger.state
    dataset = state.datasets.get(name)
    known = set() if dataset is None else set(parse_about(read_about(context, dataset)).labels)
    for bound in sets:
        found = state.validation_sets.get(bound.validation_set)
        if found is None:
            continue  # the rules refuse an unknown set
        others = set(parse_about(read_about(context, found)).labels) - known
        if others:
            said = f"expected labels of the dataset {name} alone, got {len(others)} others"
            raise Denied(f"validation set {bound.validation_set}: {said}")


def disclosed_instruction(context: LedgerContext, commitment: str) -> Disclosure | None:
    """Return the instruction's text, or None if it was erased. Every call reads the database, so erasures apply at
    once.
    """
    return context.ledger.disclosures([commitment]).get(commitment)
