"""The evaluation worker, which gives the same rows to the base, the released version and the adapter.

It also computes the logit fingerprints of base and adapter.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from appliance.domain.evaluation.gates import HELD_OUT
from appliance.domain.evaluation.items import Answer
from appliance.domain.recipe.methods import METHODS
from appliance.ml.data import rows as data
from appliance.ml.evaluation import metrics, sets
from appliance.ml.evaluation.sets import EvaluatedRows, ShippedSet
from appliance.ml.inference import adapters, reading
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_for
from appliance.ml.training import methods
from appliance.worker.link import EvaluationProgress, Header, WorkerLink, take, take_path

Rows = EvaluatedRows | ShippedSet
Answers = dict[str, list[Answer]]
"""Answers by the name of their set."""
LOADING_FIELDS = ("quantisation", "compute_dtype", "method")
"""Recipe fields that determine how the base is loaded into memory."""


def work(session: WorkerLink) -> Header:
    """Evaluate base, adapter and released version, write the items, and return the metrics."""
    task, _ = session.expect("go")
    started, recipe, output = time.monotonic(), take(task, "recipe", dict), Path(take_path(task, "output"))
    machine.use_determinism(recipe["seed"])
    released = task.get("released")
    results = _Results(session)
    evaluated, answers = _evaluate_run(task, recipe, results)
    for name, one in evaluated.items():
        one.write(output, answers["base"][name], answers["adapter"][name])
    if released is not None:
        # Collect the old base before a fresh one is loaded: it may have been changed, and its modules form cycles.
        gc.collect()
        chosen = [evaluated[name] for name in take(released, "sets", list)]
        theirs = _evaluate_released(task, released, chosen, results)
        for one in chosen:
            one.write(output, answers["base"][one.name], theirs[one.name], released=True)
    return {
        **results.metrics,
        "sets": results.sets,
        "seconds": f"{time.monotonic() - started:.3f}",
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


class _Results:
    """The results so far: `metrics` of the held-out rows by model, and `sets` by the name of the set."""

    def __init__(self, session: WorkerLink) -> None:
        self.metrics: dict[str, Any] = {}
        self.sets: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, tuple[str, ...]] = {}
        self.progress = EvaluationProgress(session)

    def evaluate(self, base: LoadedBase, slots: AdapterSlots | None, sets: Iterable[Rows], subject: str) -> Answers:
        """Evaluate one model on every set and return its answers."""
        answers = {}
        for one in sets:
            evaluated = one.evaluate(base, slots, self.progress.report)
            answers[one.name] = evaluated.answers
            if one.name == HELD_OUT and subject != "released":
                self.metrics[subject], self.texts[subject] = evaluated.metrics, evaluated.texts
            else:
                self.sets[one.name][subject] = one.disclose(evaluated.metrics)
        return answers


def _evaluate_run(
    task: Header, recipe: Mapping[str, Any], results: _Results
) -> tuple[dict[str, Rows], dict[str, Answers]]:
    """Evaluate the base and then the adapter, each with its logit fingerprint, and measure the adapter's noise
    floor."""
    base, dataset = load_for(Path(take_path(task, "base")), recipe), Path(take_path(task, "dataset"))
    about = data.load_about(dataset)
    own = sets.load_set(HELD_OUT, dataset, base, about)
    imported = {HELD_OUT: own}
    for one in take(task, "sets", list):
        name = take(one, "name", str)
        imported[name] = sets.load_set(
            name, Path(take_path(one, "folder")), base, about, blind=take(one, "blind", bool)
        )
    results.sets |= sets.count_overlaps(dataset, list(imported.values()))
    evaluated: dict[str, Rows] = dict(imported)
    for name in take(task, "shipped", list):
        evaluated[name] = sets.load_shipped(name, base)
        results.sets[name] = {"rows": len(evaluated[name].rows)}
    released = [] if task.get("released") is None else take(task["released"], "sets", list)
    passes = {name: one.passes for name, one in evaluated.items()}
    results.progress.total = 2 * sum(passes.values()) + sum(passes[name] for name in released)
    slots, readings, answers = adapters.AdapterSlots(base), {}, dict[str, Answers]()
    for subject in ("base", "adapter"):
        folder = Path(take_path(task, "adapter"))
        applied = (
            nullcontext(slots) if subject == "base" else apply_trained_adapter(base, slots, recipe["method"], folder)
        )
        with applied as wrapping:
            readings[subject] = reading.read_fingerprint(base)
            answers[subject] = results.evaluate(base, wrapping, evaluated.values(), subject)
            if subject == "adapter":
                noise = sets.measure_noise(base, wrapping, own, answers[subject][HELD_OUT], recipe["seed"])
                results.metrics["noise"] = noise
    if take(task, "answers", bool):
        own.write_texts(Path(take_path(task, "output")), results.texts["base"], results.texts["adapter"])
    if about.dataset_kind == "classification":
        results.metrics["majority"] = metrics.summarize_majority([row.answer for row in own.rows])
    results.metrics["logit_fingerprint"] = reading.encode_fingerprint(base, readings["base"], readings["adapter"])
    return evaluated, answers


def _evaluate_released(task: Header, released: Header, sets: list[Rows], results: _Results) -> Answers:
    """Evaluate the currently released version on a base that is loaded again as that version's run loaded it."""
    recipe = take(released, "recipe", dict)
    settings = {**task["recipe"], **{name: recipe[name] for name in LOADING_FIELDS}}
    base = load_for(Path(take_path(task, "base")), settings)
    slots = adapters.AdapterSlots(base)
    with apply_trained_adapter(base, slots, recipe["method"], Path(take_path(released, "folder"))) as wrapping:
        return results.evaluate(base, wrapping, sets, "released")


@contextmanager
def apply_trained_adapter(
    base: LoadedBase, slots: AdapterSlots, method: str, folder: Path
) -> Iterator[AdapterSlots | None]:
    """Apply a trained adapter while the block runs and yield the slots that wrap the base.

    An adapter is loaded into a slot, as when serving. A baseline that no slot can hold changes the base permanently;
    then None is yielded.
    """
    weights, config = ((folder / name).read_bytes() for name in methods.name_files(method))
    if METHODS[method].plain and adapters.fits_slot(config):
        slots.load("adapter", config, weights)
        with slots.using("adapter"):
            yield slots
        return
    slots.remove()
    methods.apply_trained(base, config, weights)
    yield None
