"""The evaluating worker: the same held-out rows put to base and adapter, and the probe that identifies them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.worker.link import Header, Link, run_worker, take, take_path

if TYPE_CHECKING:
    from appliance.ml.inference.adapters import Slots
    from appliance.ml.model.base import Base


def work(session: Link, task: Header, blob: bytes) -> Header:
    from appliance.domain.evaluation.items import ITEMS_FILE
    from appliance.domain.recipe.methods import METHODS
    from appliance.ml.data import rows as data
    from appliance.ml.data.samples import tokenize_rows
    from appliance.ml.evaluation import evaluation, metrics
    from appliance.ml.evaluation.items import write_items
    from appliance.ml.inference import adapters, probe
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base

    started, recipe = time.monotonic(), take(task, "recipe", dict)
    machine.use_determinism(recipe["seed"])
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
        packs=METHODS[recipe["method"]].plain,
        reads=METHODS[recipe["method"]].plain,
    )
    dataset, adapter = Path(take_path(task, "dataset")), Path(take_path(task, "adapter"))
    rows, about = data.load_rows(dataset, data.HELD_OUT), data.load_about(dataset)
    samples = tokenize_rows(rows, base.chat, max_length=base.context_length)
    total, done, read, began = 2 * evaluation.count_passes(about, rows), 0, 0, time.monotonic()

    def report(more: int, tokens: int) -> None:
        nonlocal done, read
        done, read = done + more, read + tokens
        seconds = round(time.monotonic() - began, 3)
        session.send({"frame": "progress", "done": done, "total": total, "tokens": read, "seconds": seconds})

    slots, found, readings, answers = adapters.Slots(base), {}, {}, {}
    for subject in ("base", "adapter"):
        with nullcontext(slots) if subject == "base" else _trained(base, slots, recipe["method"], adapter) as wrapping:
            readings[subject] = probe.read_probe(base)
            judged = evaluation.evaluate(base, wrapping, about, rows, samples, report)
            found[subject], answers[subject] = judged.metrics, judged.answers
    items = write_items(dataset, about, rows, samples, answers["base"], answers["adapter"])
    (Path(take_path(task, "output")) / ITEMS_FILE).write_bytes(items)
    if about.task == "classification":
        found["majority"] = metrics.summarize_majority([row.answer for row in rows])
    return {
        **found,
        "probe": probe.encode_probe(base, readings["base"], readings["adapter"]),
        "seconds": f"{time.monotonic() - started:.3f}",
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


@contextmanager
def _trained(base: Base, slots: Slots, method: str, folder: Path) -> Iterator[Slots | None]:
    """What was trained, at work: in a slot, as it would be served, or for a baseline that none can hold for good. Gives
    the slots that still wrap the base."""
    from appliance.domain.recipe.methods import METHODS
    from appliance.ml.inference import adapters
    from appliance.ml.training import methods

    weights, config = ((folder / name).read_bytes() for name in methods.name_files(method))
    if METHODS[method].plain and adapters.fits_slot(config):
        slots.load("adapter", config, weights)
        with slots.using("adapter"):
            yield slots
        return
    slots.remove()
    methods.apply_trained(base, config, weights)
    yield None


if __name__ == "__main__":
    sys.exit(run_worker(work))
