"""The loader for a unit's own host: it verifies an exported adapter by the service's rules and loads it.

    from appliance.loader import load_approved
    model = load_approved("export", base="smollm2", trust="trust.json", unit="legal", served_model="labels")

It needs no service, network or database. Its inputs are the folder that `appliance release export` wrote, the base's
folder as the service sealed it, and the trust file, which must be obtained in another way.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.domain.releases.adapters import SIGNATURE_FILES
from appliance.domain.releases.exports import ApprovedAdapter, ExportedFolder, check_exported
from appliance.errors import BadInput, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes, digest_file, kind_of
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import parse_trust

MAX_BYTES = 2 << 30
"""Largest size of a file in an export, in bytes."""


def load_approved(
    folder: str | Path,
    base: str | Path,
    trust: str | Path,
    *,
    unit: str,
    served_model: str,
    device: str = "cpu",
    now: datetime | None = None,
) -> Any:
    """Return the peft model in evaluation mode, if all checks succeed.

    `unit` is the unit whose host this is, and `served_model` the name under which the adapter is served.

    Raises: Tampered if bytes, signatures, proofs or the logit fingerprint are invalid; Denied if the export is for
    another unit or served model or has expired, or its approvals do not suffice; BadInput or NotFound if the export,
    the base or the trust file is malformed or missing.
    """
    approved, received = check_folder(
        Path(folder), Path(trust), now or datetime.now(UTC), unit=unit, served_model=served_model
    )
    check_base(Path(base), approved)
    from appliance.ml.serving.exported_adapter import load_exported

    return load_exported(Path(base), received.files, device)


def check_folder(
    folder: Path, trust: Path, now: datetime, *, unit: str, served_model: str
) -> tuple[ApprovedAdapter, ExportedFolder]:
    """Return what the unit may load for the served model, and until when, with the verified bytes."""
    names = sorted(os.listdir(_require_folder(folder / "adapter")))
    received = ExportedFolder(
        proofs=_read(folder / "proofs.json"),
        state_rows=_read(folder / "state-rows.json"),
        signatures=tuple(_read(folder / name) for name in SIGNATURE_FILES if os.path.lexists(folder / name)),
        files={name: _read(folder / "adapter" / name) for name in names},
    )
    return check_exported(
        received, parse_trust(_read(trust)), encode_time(now), unit=unit, served_model=served_model
    ), received


def check_base(folder: Path, approved: ApprovedAdapter) -> None:
    """Raise Tampered unless every byte of the base is that of the base that the adapter was evaluated on."""
    data, adapter = _read(_require_folder(folder) / MANIFEST_PATH), approved.adapter
    if digest_bytes(data) != adapter.base_digest:
        raise Tampered(f"base {adapter.base}: expected {adapter.base_digest}, got {digest_bytes(data)}")
    listed = {file.path: file.digest for file in parse_manifest(data).files}
    found = set(os.listdir(folder)) - {MANIFEST_PATH}
    if found != set(listed):
        raise Tampered(f"base {adapter.base}, files: expected {sorted(listed)}, got {sorted(found)}")
    for name, digest in listed.items():
        _require_regular_file(folder / name)
        if digest_file(folder / name) != digest:
            raise Tampered(f"base {adapter.base}, {name}: expected {digest}, got {digest_file(folder / name)}")


def _require_folder(path: Path) -> Path:
    if path.is_symlink() or not path.is_dir():
        raise NotFound(f"{path}: expected a folder, got none")
    return path


def _require_regular_file(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        raise NotFound(f"{path}: expected a file, got none") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: expected a regular file, got {kind_of(mode)}")


def _read(path: Path) -> bytes:
    _require_regular_file(path)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadInput(f"{path}: expected at most {MAX_BYTES} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: expected to read it, got {error.strerror}") from None
