"""What this machine offers a worker, and which libraries stood here: facts that recipes and records need."""

from __future__ import annotations

import contextlib
import ctypes
import os
from importlib import metadata

import torch

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers", "jinja2", "numpy")
COMPUTING = ("torch", "transformers", "peft", "bitsandbytes")
"""Those of them whose version can change a bit of an adapter."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def find_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def multiplies_bfloat16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware; where it does not, bf16 is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(bool(check()) for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


def keeps_rows_apart(device: str) -> bool:
    """Whether a row of a product of matrices has the same bits whatever rows are multiplied beside it. A GPU, and a CPU
    with AMX, may add in another order where the number of rows is another."""
    return device == "cpu" and not has_amx()


def has_amx() -> bool:
    """Whether the processor multiplies by tiles, which adds in another order than its vectors do."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return check is not None and bool(check())


def describe_machine() -> dict[str, object]:
    """The facts that resolve a recipe's `auto` values."""
    device = find_device()
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else name_cpu(),
        "bfloat16": multiplies_bfloat16(device),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def name_cpu() -> str:
    """What of the processor decides the bits of a result: its vectors, as torch names them, and its tiles."""
    return torch.backends.cpu.get_cpu_capability() + (" and AMX" if has_amx() else "")


def describe_kind(device: str) -> dict[str, object]:
    """What the bits of a result depend on, beside recipe and data. Equal kinds give equal bytes."""
    facts = describe_machine()
    libraries = {name: version for name, version in list_packages().items() if name in COMPUTING}
    cuda = {"cuda": str(torch.version.cuda)} if device == "cuda" else {}
    return {"device": device, "device_name": facts["device_name"], "threads": facts["threads"], **libraries, **cuda}


def list_packages() -> dict[str, str]:
    """The versions of the libraries that computed."""
    return {name: metadata.version(name) for name in PACKAGES}


def measure_peak_bytes(device: str) -> int:
    """The most memory used so far: the GPU's where there is one, else this process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss: that begins with the size of the process that started this one.
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:"))


def hold_memory() -> None:
    """What this process frees stays with it for its next allocation. Otherwise a step gives tens of megabytes back and
    takes them again, hundreds of times, and the kernel zeroes every page: measured, a fifteenth of the time."""
    with contextlib.suppress(AttributeError):
        # mallopt(3) of glibc; the largest that it takes for what is mapped by itself. Another libc does as it does.
        for option, bytes_ in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30)):
            ctypes.CDLL(None).mallopt(option, bytes_)


def use_determinism(seed: int, processes: int = 1, threads: int | None = None) -> None:
    """The same seed gives the same bytes on this machine with these libraries; an operation that cannot is an error.

    `processes`: so many share this machine's threads. `threads`: so many this process has, whatever the machine has.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Filling only hides reads of uninitialised memory, and takes a twentieth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # On a GPU, parts of a product are added up in float32 before they are rounded, and float32 stays what it is.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // processes))
