"""Whether this machine can do the work: kernel, memory, disk, the compiled kernel, and what its environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.runners.local import OFFLINE
from appliance.runners.sandbox import PACKAGE, detect_layers
from appliance.runners.walls import landlock
from appliance.workflows.core.disk_reserve import RESERVE_BYTES, disk_shortage
from appliance.workflows.operations.findings import Finding, judge
from appliance.workflows.runs.planning import host_memory

LEAST_ABI = 3
"""Of Landlock: before it a file could be emptied that could not be written."""
LEAST_BYTES = 2 << 30
"""Of memory: what a worker with a small base takes."""
_KERNEL_WORDS = (
    "a Linux kernel of 6.2 or later with user namespaces, Landlock and seccomp; see docs/adr/0002-sandbox.md"
)


def check_machine(folder: Path, accepted_missing: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Finding]:
    """`folder`: where the data are or would be."""
    yield from _layers(accepted_missing)
    yield _landlock(accepted_missing)
    yield _memory()
    yield _disk(folder)
    yield _compiled()
    yield _offline(environment)


def _layers(accepted: tuple[str, ...]) -> Iterator[Finding]:
    try:
        layers = detect_layers()
    except (ApplianceError, OSError) as error:
        yield Finding("kernel layers", "fail", str(error), "a sandbox around a process", f"use {_KERNEL_WORDS}")
        return
    missing = sorted(name for name, stands in layers.items() if not stands)
    for name in missing:
        yield Finding(
            f"kernel layer {name}",
            "warn" if name in accepted else "fail",
            "it cannot be built here" + (", which policy accepts" if name in accepted else ""),
            "this layer around each worker",
            f"use {_KERNEL_WORDS}, or have the policy set name it in accepted_missing_layers",
        )
    if not missing:
        yield Finding("kernel layers", "ok", f"all {len(layers)} stand: {', '.join(sorted(layers))}", "all of them")


def _landlock(accepted: tuple[str, ...]) -> Finding:
    try:
        version = landlock.abi()
    except OSError:
        version = 0
    return judge(
        "Landlock",
        version >= LEAST_ABI,
        f"ABI {version}" if version else "none",
        f"ABI {LEAST_ABI} or newer",
        f"use {_KERNEL_WORDS}",
        otherwise="warn" if version or "landlock" in accepted else "fail",
    )


def _memory() -> Finding:
    whole, free = host_memory(now=False), host_memory(now=True)
    return judge(
        "memory",
        free >= LEAST_BYTES,
        f"{free >> 20} MiB available of {whole >> 20} MiB",
        f"{LEAST_BYTES >> 20} MiB available at least",
        "end other programs, or give the machine or its control group more; `appliance run plan` says what a run takes",
        otherwise="warn",
    )


def _disk(folder: Path) -> Finding:
    """Of the nearest folder that is there already."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    why = disk_shortage(folder, engine=False)
    return judge(
        "disk",
        why is None,
        f"{found.f_bavail * found.f_frsize >> 20} MiB free at {folder}",
        f"more than {min(RESERVE_BYTES, found.f_blocks * found.f_frsize // 20) >> 20} MiB",
        "make room: `appliance storage` says what takes it; workers are ended while there is less, and nothing acts "
        "once the ledger cannot be written",
    )


def _compiled() -> Finding:
    """The kernel for adapters: it needs torch's libraries to be loaded, so its header alone is looked at."""
    files = sorted((PACKAGE / "ml").glob("_kernels*.so"))
    fits = [path.name for path in files if _kind_of(path) == _kind_of(Path("/proc/self/exe"))]
    return judge(
        "compiled kernel",
        bool(fits),
        fits[0] if fits else f"{files[0].name}, for another processor" if files else "none",
        "the compiled appliance.ml._kernels for this processor",
        "install the appliance's wheel for this machine",
    )


def _kind_of(path: Path) -> tuple[bytes, bytes]:
    """An ELF file's class and byte order, and its processor (elf(5))."""
    with path.open("rb") as file:
        header = file.read(20)
    return header[:6], header[18:20]


def _offline(environment: Mapping[str, str]) -> Finding:
    """Workers always have them; these are for a library that is loaded outside a worker."""
    other = [name for name in OFFLINE if environment.get(name, "1") not in ("1", "ON", "YES", "TRUE")]
    unset = [name for name in OFFLINE if name not in environment]
    found = f"another value than 1: {', '.join(other)}" if other else "set here" if not unset else "not set here"
    return judge(
        "offline variables",
        not other,
        f"{found}; every worker gets them",
        f"{', '.join(OFFLINE)} = 1, or unset",
        "set them to 1, or unset them",
        otherwise="warn",
    )
