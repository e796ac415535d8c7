"""What a launcher fetches from the shared folder before its workers start: each file is hashed while it is copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.runners.slurm import folder as names
from appliance.runners.slurm.folder import Description, Input
from appliance.runners.slurm.objects import get_file


def fetch_inputs(
    folder: Path, described: Description, scratch: Path, told: Callable[[int], None] = lambda size: None
) -> list[Path]:
    """The sealed folders that a worker of this job reads; `told` gets the size of each file that was copied."""
    return [_fetch(folder, one, scratch / one.name, told) for one in described.inputs]


def _fetch(folder: Path, one: Input, target: Path, told: Callable[[int], None]) -> Path:
    for file in one.files:
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        get_file(folder.parent.parent / names.OBJECTS, file.digest, file.size, path, 0o400)
        told(file.size)
    return target


def read_blob(folder: Path, described: Any, scratch: Path) -> bytes:
    """The training checkpoint that `go` names; empty where it names none."""
    if described is None:
        return b""
    path = scratch / "blob"
    get_file(folder / names.OBJECTS, described["digest"], described["size"], path)
    data = path.read_bytes()
    path.unlink()
    return data
