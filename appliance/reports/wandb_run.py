"""Program that writes a finished run as an offline run of Weights & Biases.

`python -m appliance.reports.wandb_run FOLDER < run.json`. The client starts it as a separate process under a Python
that has wandb. It needs only the standard library and wandb, gets no key and no session, and contacts no server. `wandb
sync` uploads the run to the server of the site's choice.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHOWN = ("loss", "learning_rate", "grad_norm", "validation_loss", "margin", "accuracy", "seconds")
COUNTED = ("tokens", "trained_tokens", "peak_bytes")


def row(step: SimpleNamespace, before: SimpleNamespace | None) -> dict[str, Any]:
    """Return the values of a step under the names of the record, with its tokens a second."""
    values: dict[str, Any] = {name: float(found) for name in SHOWN if (found := getattr(step, name, None)) is not None}
    values |= {name: getattr(step, name) for name in COUNTED}
    passed = float(step.seconds) - (float(before.seconds) if before else 0.0)
    if passed > 0:
        values["tokens_per_second"] = (step.tokens - (before.tokens if before else 0)) / passed
    if step.spike is not None:
        values["spike_rows"] = ", ".join(map(str, step.spike))
    return values


def write(run: SimpleNamespace, folder: Path) -> None:
    """Write a run. `run` has id, name, config, summary and steps (the lines of steps.jsonl)."""
    # Contact no server, record neither machine nor code, and print nothing.
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    try:
        import wandb
    except ImportError:
        sys.exit("wandb: expected it to be installed for this Python, got none")
    settings = wandb.Settings(
        console="off", disable_git=True, save_code=False, silent=True, x_disable_machine_info=True, x_disable_stats=True
    )
    wandb_run = wandb.init(
        mode="offline",
        dir=str(folder),
        project="appliance",
        id=run.id,
        name=run.name,
        config=run.config,
        settings=settings,
    )
    before = None
    for step in (SimpleNamespace(**fields) for fields in run.steps):
        wandb_run.log(row(step, before), step=step.step)
        before = step
    for name, value in run.summary.items():
        wandb_run.summary[name] = value
    wandb_run.finish()


def main(words: Sequence[str]) -> int:
    """Run the program with its arguments, and return its exit code."""
    write(SimpleNamespace(**json.load(sys.stdin)), Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
