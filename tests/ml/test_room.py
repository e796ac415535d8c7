"""Settings that `appliance.ml` makes before its libraries are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

QUIET = """
import sys
import appliance.ml.model.base, appliance.ml.training.methods, appliance.ml.training.checkpoint
print(*(name for name in ("kernels", "torch._inductor.compile_fx") if sys.modules.get(name) is not None))
from bitsandbytes.backends.default import ops
print(ops._optimizer_update_32bit.__name__, hasattr(ops._optimizer_update_32bit, "__wrapped__"))
"""


@pytest.mark.thorough
def test_neither_fetched_kernels_nor_a_compiler_are_loaded() -> None:
    # Another test of this process may have imported what speaks to vLLM, which switches torch's compiler off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHDYNAMO_")}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True, env=environment)
    loaded, left_alone = done.stdout.splitlines()
    assert loaded == ""
    # A function that torch compiled has one of bitsandbytes' wrappers around it.
    assert left_alone.endswith(" False"), left_alone
