"""The evaluating worker: the same held-out rows put to base and adapter, and the probe that identifies them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from appliance.worker.session import Header, Session, run_worker, take, take_path


def work(session: Session, task: Header, blob: bytes) -> Header:
    from appliance.ml import adapters, data, machine, metrics, probe, score
    from appliance.ml.base import load_base

    started, recipe = time.monotonic(), take(task, "recipe", dict)
    machine.use_determinism(recipe["seed"])
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
    )
    dataset, adapter = Path(take_path(task, "dataset")), Path(take_path(task, "adapter"))
    rows, names = data.load_rows(dataset, data.HELD_OUT), data.list_labels(dataset)
    prompts = [base.chat.encode(row.prompt) for row in rows]
    labels = [base.chat.encode(base.chat.answer(name)) for name in names]
    slots = adapters.Slots(base.model, base.device)
    config, weights = ((adapter / name).read_bytes() for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE))
    slots.load("adapter", config, weights)
    expected, found, readings = [row.label for row in rows], {}, {}
    for place, (subject, slot) in enumerate({"base": None, "adapter": "adapter"}.items()):

        def report(done: int, before: int = place * len(rows)) -> None:
            session.send({"frame": "progress", "done": before + done, "total": 2 * len(rows)})

        with slots.using(slot):
            readings[subject] = probe.read_probe(base)
            scores = score.score_rows(base, prompts, labels, report)
        found[subject] = metrics.summarize(expected, score.choose_labels(scores, names))
    return {
        **found,
        "probe": probe.encode_probe(base, readings["base"], readings["adapter"]),
        "seconds": f"{time.monotonic() - started:.3f}",
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


if __name__ == "__main__":
    sys.exit(run_worker(work))
