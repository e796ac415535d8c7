"""What uses the disk, in bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from appliance.workflows.core.context import Context
from appliance.workflows.runs import checkpoints


def storage(context: Context) -> dict[str, Any]:
    """By kind: the things of that kind, and together. `disk`: of the home, in all and free."""
    state, home = context.ledger.state, context.logs.parent
    folder = context.artifacts.path
    kinds = {
        "bases": [(name, size_of(folder(base.digest))) for name, base in state.bases.items()],
        "datasets": [(name, size_of(folder(dataset.digest))) for name, dataset in state.datasets.items()],
        "validation sets": [(name, size_of(folder(one.digest))) for name, one in state.validation_sets.items()],
        "adapters": [(name, size_of(folder(adapter.manifest))) for name, adapter in state.adapters.items()],
        # Without their digests: until its import is ordered, anyone who knows a file's digest could have it checked.
        "uploads": [(f"upload {place}", size) for place, (_, size) in enumerate(_files(home / "uploads"), start=1)],
        "logs": _files(home / "logs"),
        "steps": _files(home / "steps"),
    }
    found = os.statvfs(home)
    shown: dict[str, Any] = {
        kind: _kind({"name": name, "bytes": size} for name, size in things) for kind, things in kinds.items()
    }
    shown["training checkpoints"] = _kind(_checkpoints(context))
    shown["database"] = _kind([{"name": context.ledger.dialect, "bytes": context.ledger.stored_bytes()}])
    return {
        "kinds": shown,
        "bytes": sum(kind["bytes"] for kind in shown.values()),
        "disk": {"bytes": found.f_blocks * found.f_frsize, "free_bytes": found.f_bavail * found.f_frsize},
    }


def size_of(path: Path) -> int:
    """Of a file, or of all files below a folder; no link is followed. 0 where nothing is."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(size_of(below) for below in path.iterdir())
    except OSError:
        return 0  # swept meanwhile


def _files(folder: Path) -> list[tuple[str, int]]:
    try:
        return sorted((path.name, size_of(path)) for path in folder.iterdir())
    except OSError:
        return []


def _checkpoints(context: Context) -> list[dict[str, Any]]:
    """By run, with why and until when they are kept; two runs that made the same bytes share a file."""
    keeping, counted = checkpoints.list_kept(context), set[str]()
    found: dict[str, dict[str, Any]] = {}
    for made in context.ledger.state.training_checkpoints.values():
        if made.digest in counted:
            continue
        counted.add(made.digest)
        size = context.checkpoints.size(made.digest)
        if size:
            why = keeping.get(made.run)
            row = found.setdefault(
                made.run,
                {
                    "name": made.run,
                    "bytes": 0,
                    "files": 0,
                    "kept_for": "the next sweep" if why is None else why.why,
                    "kept_until": None if why is None else why.until,
                },
            )
            row["bytes"], row["files"] = row["bytes"] + size, row["files"] + 1
    return list(found.values())


def _kind(things: Iterable[dict[str, Any]]) -> dict[str, Any]:
    listed = list(things)
    return {"bytes": sum(thing["bytes"] for thing in listed), "things": listed}
