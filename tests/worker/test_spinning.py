"""A worker's own setting of OpenMP's spin time is read when torch's OpenMP is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "count"), [("appliance.worker.serve, appliance.ml", "2000"), ("appliance.ml", "1000")]
)
def test_the_serving_worker_looks_longer_than_the_others(modules: str, count: str) -> None:
    program = (
        f"import os; os.environ.pop('GOMP_SPINCOUNT', None); import {modules}; print(os.environ['GOMP_SPINCOUNT'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [count]
