"""Writes a finished run as a Weights & Biases offline run: `python -m appliance.reports.wandb_run FOLDER < run.json`.

A program of its own, started by the client under a Python where wandb is installed: it needs the standard library and
wandb alone, is given no key and no session, and tells no server. `wandb sync` sends the run where a site wants it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = ("loss", "learning_rate", "grad_norm", "validation_loss", "margin", "accuracy", "seconds")
COUNTED = ("tokens", "trained_tokens", "peak_bytes")


def row(step: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A step's values under the names that they have in the record, and its pace."""
    values: dict[str, Any] = {name: float(step[name]) for name in SHOWN if step.get(name) is not None}
    values |= {name: step[name] for name in COUNTED}
    passed = float(step["seconds"]) - (float(before["seconds"]) if before else 0.0)
    if passed > 0:
        values["tokens_per_second"] = (step["tokens"] - (before["tokens"] if before else 0)) / passed
    if step["spike"] is not None:
        values["spike_rows"] = ", ".join(map(str, step["spike"]))
    return values


def write(run: Mapping[str, Any], folder: Path) -> None:
    """`run`: id, name, config, summary, steps (the lines of steps.jsonl)."""
    # No server is asked, no machine or code is described, nothing is printed.
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    try:
        import wandb
    except ImportError:
        sys.exit("wandb: expected it to be installed for this Python, got none")
    settings = wandb.Settings(
        console="off", disable_git=True, save_code=False, silent=True, x_disable_machine_info=True, x_disable_stats=True
    )
    told = wandb.init(
        mode="offline",
        dir=str(folder),
        project="appliance",
        id=run["id"],
        name=run["name"],
        config=run["config"],
        settings=settings,
    )
    before = None
    for step in run["steps"]:
        told.log(row(step, before), step=step["step"])
        before = step
    for name, value in run["summary"].items():
        told.summary[name] = value
    told.finish()


def main(words: Sequence[str]) -> int:
    write(json.load(sys.stdin), Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
