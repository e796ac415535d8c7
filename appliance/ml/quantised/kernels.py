"""The compiled kernels for the CPU. They run in the threads of torch's OpenMP, which `import torch` has loaded.

The structures are those of `_kernels.h`; whoever fills one keeps alive what its pointers name.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec

import torch  # noqa: F401 # before the kernels: they use its threads

from appliance.errors import Unavailable

# As in _kernels.h.
VERSION, PARTS = 5, 3


class Product(ctypes.Structure):
    """Layers that read one input, behind one another."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inner", "outer")),
        *((name, ctypes.c_void_p) for name in ("table", "weights", "scales", "bias")),
    )


class Group(ctypes.Structure):
    """The same layers, as adapters see them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("first", "inner", "narrow", "layers")),
        ("sizes", ctypes.c_int64 * PARTS),
    )


@cache
def load_kernels() -> ctypes.CDLL:
    """Unavailable where there are none, or those of another source."""
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
