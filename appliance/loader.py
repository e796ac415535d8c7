"""What a unit's own host calls: an exported adapter is decided over as the appliance decides, and loaded, or refused.

    from appliance.loader import load_approved
    model = load_approved("export", base="smollm2", trust="trust.json", unit="legal", task="labels")

No service, no network and no database: the folder that `appliance release export` wrote, the base's folder as the
appliance sealed it, and the trust file, which came another way.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.domain.releases.exports import Approved, ExportedAdapter, check_exported
from appliance.errors import BadInput, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes, digest_file, kind_of
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import parse_trust

MAX_BYTES = 2 << 30


def load_approved(
    folder: str | Path,
    base: str | Path,
    trust: str | Path,
    *,
    unit: str,
    task: str,
    device: str = "cpu",
    now: datetime | None = None,
) -> Any:
    """The peft model in evaluation mode, once everything holds. `unit`: whose host this is; `task`: what it answers.

    Tampered where bytes, signatures, proofs or the probe's logits do not hold; Denied where the export is for another
    unit or task or has expired, or its approvals do not suffice; BadInput or NotFound for what is no export, no base or
    no trust file.
    """
    approved, received = check_folder(Path(folder), Path(trust), now or datetime.now(UTC), unit=unit, task=task)
    check_base(Path(base), approved)
    from appliance.ml.serving.exported_adapter import load_exported

    return load_exported(Path(base), received.files, device)


def check_folder(folder: Path, trust: Path, now: datetime, *, unit: str, task: str) -> tuple[Approved, ExportedAdapter]:
    """What the unit may load for the task, and until when; the bytes that were checked."""
    names = sorted(os.listdir(_folder(folder / "adapter")))
    received = ExportedAdapter(
        proofs=_read(folder / "proofs.json"),
        standing=_read(folder / "standing.json"),
        signature=_read(folder / "signature.json"),
        files={name: _read(folder / "adapter" / name) for name in names},
    )
    return check_exported(received, parse_trust(_read(trust)), encode_time(now), unit=unit, task=task), received


def check_base(folder: Path, approved: Approved) -> None:
    """Every byte of the base is what the adapter was judged on."""
    data, adapter = _read(_folder(folder) / MANIFEST_PATH), approved.adapter
    if digest_bytes(data) != adapter.base_digest:
        raise Tampered(f"base {adapter.base}: expected {adapter.base_digest}, got {digest_bytes(data)}")
    listed = {file.path: file.digest for file in parse_manifest(data).files}
    found = set(os.listdir(folder)) - {MANIFEST_PATH}
    if found != set(listed):
        raise Tampered(f"base {adapter.base}, files: expected {sorted(listed)}, got {sorted(found)}")
    for name, digest in listed.items():
        _check_plain(folder / name)
        if digest_file(folder / name) != digest:
            raise Tampered(f"base {adapter.base}, {name}: expected {digest}, got {digest_file(folder / name)}")


def _folder(path: Path) -> Path:
    if path.is_symlink() or not path.is_dir():
        raise NotFound(f"{path}: expected a folder, got none")
    return path


def _check_plain(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        raise NotFound(f"{path}: expected a file, got none") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: expected a regular file, got {kind_of(mode)}")


def _read(path: Path) -> bytes:
    _check_plain(path)
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadInput(f"{path}: expected at most {MAX_BYTES} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: expected to read it, got {error.strerror}") from None
