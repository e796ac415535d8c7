"""A run's picture: the same bytes for the same steps, drawn by a program that is refused for what is no record."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.domain.runs.steps import StepRecord, encode_steps, record_step

pytestmark = pytest.mark.thorough


def record(count: int) -> list[StepRecord]:
    """Return steps with a loss that falls, a spike in the middle, and a validation loss now and then."""
    steps: list[StepRecord] = []
    for step in range(1, count + 1):
        loss = 8.0 if step == count // 2 else 2.0 - step / count
        told = {
            "step": step,
            "steps": count,
            "loss": loss,
            "learning_rate": 0.001,
            "grad_norm": 0.5,
            "tokens": 50 * step,
            "trained_tokens": 5 * step,
            "seconds": 0.5 * step,
            "peak_bytes": 1_000_000_000,
            "validation_loss": loss if step % 8 == 0 else None,
            "row_losses": [[7, loss]],
        }
        steps.append(record_step(told, [one.loss for one in steps]))
    return steps


def draw(folder: Path, data: bytes) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    (folder / "steps.jsonl").write_bytes(data)
    words = [sys.executable, "-m", "appliance.reports.plot", str(folder / "steps.jsonl"), str(folder), "a run"]
    environment = {**os.environ, "MPLCONFIGDIR": str(folder.parent)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_same_steps_make_the_same_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = draw(tmp_path / name, encode_steps(record(40)))
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("training.svg", "training.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    png = (tmp_path / "one" / "training.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG") and width > 1000 < height
    svg = (tmp_path / "one" / "training.svg").read_text()
    for text in ("Learning rate", "Tokens a second", "validation loss", "spike, with its rows", "row 7"):
        assert f"<!-- {text}" in svg, text
    assert not re.search(r'(href|src)="(?!#)|url\((?!#)', svg), "nothing in it is fetched"


@pytest.mark.parametrize(("data", "said"), [(b"", "expected a step at least"), (b"{}\n", "line 1")])
def test_what_is_no_record_is_not_drawn(tmp_path: Path, data: bytes, said: str) -> None:
    done = draw(tmp_path / "bad", data)
    assert done.returncode and said in done.stderr
    assert not (tmp_path / "bad" / "training.svg").exists()
