"""The description of a worker's sandbox, and detection of the layers that this kernel supports.

A sandbox names paths. The interpreter, the libraries and this package are added here, read-only.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import appliance
from appliance.errors import BadInput
from appliance.sandbox import launcher
from appliance.sandbox.launcher import Launch
from appliance.sandbox.mounts import VisiblePath, follow
from appliance.sandbox.processes import LAYERS

__all__ = ["LAYERS", "PACKAGE", "ResourceLimits", "Sandbox", "detect_layers", "places_of"]

PACKAGE = Path(appliance.__file__).resolve().parent

_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_FACTS = ("/etc/localtime", "/sys/devices/system/cpu", "/sys/devices/system/node")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_GPU_LIBRARIES = ("/usr/local/cuda", "/usr/local/nvidia")
DRIVER_LIBRARIES = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")
"""Folders where containers mount a GPU's driver without configuring the linker."""
_GPU_FACTS = ("/sys/bus/pci", "/sys/devices", "/sys/module")


def _installed_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ResourceLimits:
    """Resource limits of each process of the worker; None keeps the service's own limit.

    `memory_bytes` limits private writable memory (RLIMIT_DATA, since a limit of the address space would prevent CUDA).
    `processes` includes threads; the kernel does not apply it to a service that runs as root.
    """

    memory_bytes: int | None = field(default_factory=_installed_memory_bytes)
    cpu_s: int | None = None
    file_bytes: int | None = 16 << 30
    processes: int | None = 1024
    open_files: int | None = 1024

    def by_name(self) -> dict[str, int | None]:
        """Return the limits by the kernel's names."""
        return {
            "DATA": self.memory_bytes,
            "CPU": self.cpu_s,
            "FSIZE": self.file_bytes,
            "NPROC": self.processes,
            "NOFILE": self.open_files,
        }


@dataclass(frozen=True)
class Sandbox:
    """The paths that a worker sees: `read` (files or folders) and `write` (folders; the first is its HOME).

    `devices` exposes the GPU. `threads` is for OpenMP and similar libraries (None: as many as this process may use).
    `libraries` are folders of Python packages for this worker only.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    devices: bool = False
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    threads: int | None = None
    libraries: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.write:
            raise BadInput("sandbox, write paths: expected at least the worker's output folder, got none")
        for path in (*self.read, *self.write, *self.libraries):
            if not path.is_absolute() or path != Path(os.path.normpath(path)):
                raise BadInput(f"sandbox, {path}: expected an absolute path without '..'")


def _interpreter() -> Iterator[str]:
    """Yield the interpreter, its standard library and its packages: the environment and its base Python."""
    yield sys.executable
    for prefix in sorted({sys.prefix, sys.base_prefix}):
        if os.path.normpath(prefix) not in _SYSTEM_PREFIXES:
            yield prefix
            continue
        variables = {"base": prefix, "platbase": prefix, "installed_base": prefix, "installed_platbase": prefix}
        for name in ("stdlib", "platstdlib", "purelib", "platlib"):
            yield sysconfig.get_path(name, vars=variables)
    yield sysconfig.get_config_var("LIBDIR")
    # Packages outside the prefixes: Debian's dist-packages, or those of another environment whose torch is used here.
    for path in sys.path:
        if path.endswith(("/site-packages", "/dist-packages")) and path != site.getusersitepackages():
            yield path


def _system_places(sandbox: Sandbox, code: Path) -> Iterator[VisiblePath]:
    """Yield everything visible that is not the caller's own data; paths that this machine lacks are omitted."""
    libraries = [*_LIBRARIES, *(_GPU_LIBRARIES if sandbox.devices else ())]
    for path in (*libraries, *_interpreter(), str(PACKAGE), str(code), *map(str, sandbox.libraries)):
        if path and os.path.exists(path):
            yield VisiblePath(os.path.normpath(path), "run")
    for path in (*_FACTS, *(_GPU_FACTS if sandbox.devices else ())):
        if os.path.exists(path):
            yield VisiblePath(path, "read")
    graphics = sorted(str(path) for path in Path("/dev").glob("nvidia*")) if sandbox.devices else []
    for path in (*_DEVICES, *graphics):
        if os.path.exists(path):
            yield VisiblePath(path, "device")


def places_of(sandbox: Sandbox, code: Path) -> list[VisiblePath]:
    """Return all paths that the worker will see.

    Raises:
        BadInput: a path is missing, or a writable folder contains a read-only path.
    """
    shown = list(_system_places(sandbox, code))
    for path in (*sandbox.read, *sandbox.libraries):
        if not path.exists():
            raise BadInput(f"sandbox, {path}: expected a file or folder to read, got nothing there")
    for path in sandbox.read:
        shown.append(VisiblePath(str(path), "read"))
    real_shown = [Path(follow(place.path)[0]) for place in shown]
    for path in sandbox.write:
        if not path.is_dir() or path.is_symlink():
            raise BadInput(f"sandbox, {path}: expected a folder to write to")
        real = Path(follow(str(path))[0])
        for other in real_shown:
            if other.is_relative_to(real):
                raise BadInput(f"sandbox, {path}: expected a folder apart from what is only read, got {other} below it")
    return [*shown, *(VisiblePath(str(path), "write") for path in sandbox.write)]


def detect_layers() -> dict[str, bool]:
    """Build the sandbox around a process that then ends, and return which layers are in force on this machine."""
    with tempfile.TemporaryDirectory(prefix="appliance-sandbox-") as folder:
        sandbox = Sandbox(read=(), write=(Path(folder),))
        launch = Launch(
            command=None,
            environment={},
            folder=folder,
            places=places_of(sandbox, PACKAGE),
            limits=sandbox.limits.by_name(),
            devices=False,
            layers=LAYERS,
            accepted_missing=frozenset(LAYERS),
        )
        return launcher.try_sandbox(launch).layers
