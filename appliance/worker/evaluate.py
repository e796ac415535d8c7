"""The evaluating worker: the same held-out rows put to base and adapter, and the probe that identifies them."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.worker.session import Header, Session, run_worker, take, take_path

if TYPE_CHECKING:
    from appliance.ml.adapters import Slots
    from appliance.ml.base import Base


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
    slots, expected, found, readings = adapters.Slots(base.model, base.device), [row.label for row in rows], {}, {}
    for place, subject in enumerate(("base", "adapter")):

        def report(done: int, before: int = place * len(rows)) -> None:
            session.send({"frame": "progress", "done": before + done, "total": 2 * len(rows)})

        with _trained(base, slots, recipe["method"], adapter) if place else nullcontext():
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


def _trained(base: Base, slots: Slots, method: str, folder: Path) -> AbstractContextManager[None]:
    """What was trained, at work: in a slot, as it would be served, or for a baseline that none can hold for good."""
    from appliance.domain.methods import METHODS
    from appliance.ml import methods

    weights, config = ((folder / name).read_bytes() for name in methods.name_files(method))
    if METHODS[method].plain:
        slots.load("adapter", config, weights)
        return slots.using("adapter")
    slots.remove()
    methods.apply_trained(base, config, weights)
    return nullcontext()


if __name__ == "__main__":
    sys.exit(run_worker(work))
