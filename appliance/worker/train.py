"""The training worker: one recipe, one base, one dataset, one adapter. It scores nothing."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from appliance.worker.session import Header, Session, run_worker, take, take_path


def work(session: Session, task: Header, blob: bytes) -> Header:
    from appliance.ml import adapters, data, machine, methods
    from appliance.ml.base import load_base
    from appliance.ml.loop import Step, train
    from appliance.ml.samples import tokenize_rows

    recipe, output = take(task, "recipe", dict), Path(take_path(task, "output"))
    machine.use_determinism(recipe["seed"])
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
    )
    rows = data.load_rows(Path(take_path(task, "dataset")), data.TRAIN)
    samples = tokenize_rows(rows, base.chat, max_length=recipe["max_length"])
    model = methods.attach_adapter(base, recipe)

    def report(step: Step) -> None:
        session.send({"frame": "step", **asdict(step)})

    steps = train(base, model, samples, recipe, report)
    weights, config = methods.encode_adapter(model, recipe["base"])
    (output / adapters.WEIGHTS_FILE).write_bytes(weights)
    (output / adapters.CONFIG_FILE).write_bytes(config)
    return {
        "steps": len(steps),
        "tokens": steps[-1].tokens,
        "trained_tokens": steps[-1].trained_tokens,
        "seconds": f"{steps[-1].seconds:.3f}",
        "peak_bytes": steps[-1].peak_bytes,
        "final_loss": f"{steps[-1].loss:.6f}",
        "losses": [f"{step.loss:.6f}" for step in steps],
        "device": recipe["device"],
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


if __name__ == "__main__":
    sys.exit(run_worker(work))
