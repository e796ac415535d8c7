"""The evaluating worker: the same rows put to base, released version and adapter, and the probe that identifies two."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from appliance.worker.link import Header, Link, run_worker, take, take_path

if TYPE_CHECKING:
    from appliance.domain.evaluation.items import Answer
    from appliance.ml.evaluation.sets import JudgedSet
    from appliance.ml.evaluation.shipped import ShippedSet
    from appliance.ml.inference.adapters import Slots
    from appliance.ml.model.base import Base

Rows = Union["JudgedSet", "ShippedSet"]
Answers = dict[str, "list[Answer]"]
"""By the name of a set."""
HELD_AS = ("quantisation", "compute_dtype", "method")
"""What of a recipe says how its base is held."""


def work(session: Link, task: Header, blob: bytes) -> Header:
    from appliance.ml.model import machine

    started, recipe, output = time.monotonic(), take(task, "recipe", dict), Path(take_path(task, "output"))
    machine.use_determinism(recipe["seed"])
    released = task.get("released")
    found = _Found(session)
    judged, answers = _evaluate_run(task, recipe, found)
    for name, one in judged.items():
        one.write(output, answers["base"][name], answers["adapter"][name])
    if released is not None:
        # What changed the base has left none to go on with; modules refer to each other, so that it is collected first.
        gc.collect()
        chosen = [judged[name] for name in take(released, "sets", list)]
        theirs = _evaluate_released(task, released, chosen, found)
        for one in chosen:
            one.write(output, answers["base"][one.name], theirs[one.name], released=True)
    return {
        **found.metrics,
        "sets": found.sets,
        "seconds": f"{time.monotonic() - started:.3f}",
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


class _Found:
    """What was found: `metrics` of the held-out rows by model, `sets` of each set by its name. It tells the service how
    far the evaluation is."""

    def __init__(self, session: Link) -> None:
        from appliance.domain.evaluation.gates import HELD_OUT

        self.own = HELD_OUT
        self.metrics: dict[str, Any] = {}
        self.sets: dict[str, dict[str, Any]] = {}
        self.total = 0
        self.texts: dict[str, tuple[str, ...]] = {}
        self._session, self._done, self._read, self._began = session, 0, 0, time.monotonic()

    def report(self, more: int, tokens: int) -> None:
        self._done, self._read = self._done + more, self._read + tokens
        seconds = round(time.monotonic() - self._began, 3)
        frame = {"frame": "progress", "done": self._done, "total": self.total}
        self._session.send({**frame, "tokens": self._read, "seconds": seconds})

    def evaluate(self, base: Base, slots: Slots | None, sets: Iterable[Rows], subject: str) -> Answers:
        """What one model makes of every set."""
        answers = {}
        for one in sets:
            evaluated = one.evaluate(base, slots, self.report)
            answers[one.name] = evaluated.answers
            if one.name == self.own and subject != "released":
                self.metrics[subject], self.texts[subject] = evaluated.metrics, evaluated.texts
            else:
                self.sets[one.name][subject] = one.tell(evaluated.metrics)
        return answers


def _evaluate_run(task: Header, recipe: Mapping[str, Any], found: _Found) -> tuple[dict[str, Rows], dict[str, Answers]]:
    """The base before and the adapter after, each with its probe; the adapter's noise floor."""
    from appliance.ml.data import rows as data
    from appliance.ml.evaluation import metrics, sets, shipped
    from appliance.ml.inference import adapters, probe

    base, dataset = load_task_base(task, recipe), Path(take_path(task, "dataset"))
    about = data.load_about(dataset)
    own = sets.load_set(found.own, dataset, base, about)
    imported = {found.own: own}
    for one in take(task, "sets", list):
        name = take(one, "name", str)
        imported[name] = sets.load_set(
            name, Path(take_path(one, "folder")), base, about, blind=take(one, "blind", bool)
        )
    found.sets |= sets.count_overlaps(dataset, list(imported.values()))
    judged: dict[str, Rows] = dict(imported)
    for name in take(task, "shipped", list):
        judged[name] = shipped.load_shipped(name, base)
        found.sets[name] = {"rows": len(judged[name].rows)}
    released = [] if task.get("released") is None else take(task["released"], "sets", list)
    found.total = 2 * sum(one.passes for one in judged.values()) + sum(judged[name].passes for name in released)
    slots, readings, answers = adapters.Slots(base), {}, dict[str, Answers]()
    for subject in ("base", "adapter"):
        folder = Path(take_path(task, "adapter"))
        with nullcontext(slots) if subject == "base" else trained(base, slots, recipe["method"], folder) as wrapping:
            readings[subject] = probe.read_probe(base)
            answers[subject] = found.evaluate(base, wrapping, judged.values(), subject)
            if subject == "adapter":
                noise = sets.measure_noise(base, wrapping, own, answers[subject][found.own], recipe["seed"])
                found.metrics["noise"] = noise
    if take(task, "answers", bool):
        own.write_texts(Path(take_path(task, "output")), found.texts["base"], found.texts["adapter"])
    if about.task == "classification":
        found.metrics["majority"] = metrics.summarize_majority([row.answer for row in own.rows])
    found.metrics["probe"] = probe.encode_probe(base, readings["base"], readings["adapter"])
    return judged, answers


def _evaluate_released(task: Header, released: Header, sets: list[Rows], found: _Found) -> Answers:
    """The version that is released now, on a base that is loaded anew and held as its own run held it."""
    from appliance.ml.inference import adapters

    recipe = take(released, "recipe", dict)
    base = load_task_base(task, {**task["recipe"], **{name: recipe[name] for name in HELD_AS}})
    slots = adapters.Slots(base)
    with trained(base, slots, recipe["method"], Path(take_path(released, "folder"))) as wrapping:
        return found.evaluate(base, wrapping, sets, "released")


def load_task_base(task: Header, recipe: Mapping[str, Any]) -> Base:
    from appliance.domain.recipe.methods import METHODS
    from appliance.ml.model.base import load_base

    return load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
        packs=METHODS[recipe["method"]].plain,
        reads=METHODS[recipe["method"]].plain,
    )


@contextmanager
def trained(base: Base, slots: Slots, method: str, folder: Path) -> Iterator[Slots | None]:
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
