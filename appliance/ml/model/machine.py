"""Properties of this machine and versions of its libraries, for recipes and records."""

from __future__ import annotations

import contextlib
import ctypes
import os
from importlib import metadata

import torch

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers", "jinja2", "numpy")
COMPUTING = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages whose version can change the bits of an adapter."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def find_device() -> str:
    """Return `cuda` if a GPU is available, otherwise `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def multiplies_bfloat16(device: str) -> bool:
    """Return True if the device multiplies bf16 matrices in hardware; otherwise bf16 is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(bool(check()) for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


def has_independent_rows(device: str) -> bool:
    """Return True if the bits of a row in a matrix product do not depend on the other rows.

    A GPU, and a CPU with AMX, may add in another order for another number of rows.
    """
    return device == "cpu" and not has_amx()


def has_amx() -> bool:
    """Return True if the processor multiplies by tiles (AMX), which add in another order than its vectors."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return check is not None and bool(check())


def describe_machine() -> dict[str, object]:
    """Return the facts that resolve a recipe's `auto` values."""
    device = find_device()
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else name_cpu(),
        "bfloat16": multiplies_bfloat16(device),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def name_cpu() -> str:
    """Return the processor's vector units, by torch's name, and its tiles, which decide the bits of a result."""
    return torch.backends.cpu.get_cpu_capability() + (" and AMX" if has_amx() else "")


def describe_kind(device: str) -> dict[str, object]:
    """Return the facts, besides recipe and data, that determine the bits of a result. Equal kinds give equal bytes."""
    facts = describe_machine()
    libraries = {name: version for name, version in list_packages().items() if name in COMPUTING}
    cuda = {"cuda": str(torch.version.cuda)} if device == "cuda" else {}
    return {"device": device, "device_name": facts["device_name"], "threads": facts["threads"], **libraries, **cuda}


def list_packages() -> dict[str, str]:
    """Return the versions of the libraries that compute results."""
    return {name: metadata.version(name) for name in PACKAGES}


def measure_peak_bytes(device: str) -> int:
    """Return the peak memory use in bytes: the GPU's if there is one, otherwise this process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss: it starts from the size of the parent process.
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:"))


def hold_memory() -> None:
    """Keep freed memory in this process for its next allocations.

    Otherwise a step returns tens of megabytes and takes them again hundreds of times, and the kernel zeroes every page,
    which takes a fifteenth of the time.
    """
    with contextlib.suppress(AttributeError):
        # mallopt(3) of glibc, with the largest threshold that it accepts for mmap. Other libcs are left as they are.
        for option, bytes_ in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30)):
            ctypes.CDLL(None).mallopt(option, bytes_)


def use_determinism(seed: int, processes: int = 1, threads: int | None = None) -> None:
    """Make computations deterministic: the same seed gives the same bytes on this machine with these libraries.

    An operation without a deterministic version raises an error. `processes` is the number of processes that share this
    machine's threads. `threads` is the number of this process's threads; None for its share.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # The fill only hides reads of uninitialised memory, and takes a twentieth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # On a GPU, accumulate partial products in float32 before rounding, and do not replace float32 by TF32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // processes))
