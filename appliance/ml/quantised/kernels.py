"""The compiled kernels for the CPU. They run in the threads of torch's OpenMP, which `import torch` has loaded."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

import torch  # noqa: F401 # before the kernels: they use its threads

from appliance.errors import Unavailable


def load_kernels() -> ctypes.CDLL:
    found = find_spec("appliance.ml._kernels")
    if found is None or found.origin is None:
        raise Unavailable(
            "appliance.ml._kernels: expected the compiled kernels beside their source, got none: install again"
        )
    return ctypes.CDLL(found.origin)
