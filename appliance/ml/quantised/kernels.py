"""The compiled CPU kernels, which run in the threads of torch's OpenMP, loaded by `import torch`.

The structures are those of `_kernels.h`. The caller must keep the memory behind their pointers alive.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import torch  # noqa: F401 # before the kernels: they use its threads

from appliance.errors import Unavailable

# Must equal the values in _kernels.h.
VERSION, PARTS = 5, 3


class Product(ctypes.Structure):
    """Layers that share an input, stored contiguously."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inner", "outer")),
        *((name, ctypes.c_void_p) for name in ("table", "weights", "scales", "bias")),
    )


class KernelGroup(ctypes.Structure):
    """The same layers in the form that adapters use."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("first", "inner", "narrow", "layers")),
        ("sizes", ctypes.c_int64 * PARTS),
    )


@cache
def load_kernels() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        Unavailable: the kernels are missing or have another version.
    """
    found = find_spec("appliance.ml._kernels")
    if found is None or found.origin is None:
        raise Unavailable(
            "appliance.ml._kernels: expected the compiled kernels beside their source, got none: install again"
        )
    kernels = ctypes.CDLL(found.origin)
    version = kernels.kernels_version() if hasattr(kernels, "kernels_version") else 1
    if version != VERSION:
        raise Unavailable(
            f"appliance.ml._kernels: expected kernels of version {VERSION}, got {version}: compile them again "
            "(scripts/setup --force)"
        )
    return kernels
