"""LoRA over a GPTQ base, in gptqmodel's own environment: the gradient is there, and the loss falls."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.gptq.conftest import PYTHON

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.outside
@pytest.mark.timeout(300)
def test_a_lora_on_a_gptq_base_gets_its_gradient_and_lowers_the_loss(tmp_path: Path) -> None:
    """After an evaluation too: the kernel that gptqmodel takes for a CPU by itself gives none then, silently."""
    command = [str(PYTHON), "-m", "tests.gptq.lora", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["layer"] == "TorchLinear"
    assert (found["weights"], found["without_gradient"]) == (12, 0)
    assert found["losses"][-1] < found["losses"][0] / 2
