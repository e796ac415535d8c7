"""The harness worker, which runs one lm-eval task or one metric of Hugging Face's evaluate from a folder of the site.

The code in that folder runs only here, without a network; the only folder that it can write to is this worker's output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.items import ITEMS_FILE, parse_items
from appliance.ml.evaluation.harness import (
    evaluate_task,
    measure_answers,
    summarize_scores,
    write_metric_items,
    write_task_items,
)
from appliance.ml.evaluation.sets import ANSWERS_FILE
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.model import machine
from appliance.ml.model.base import load_for
from appliance.worker.evaluate import apply_trained_adapter
from appliance.worker.link import Header, WorkerLink, take, take_path

LIBRARIES = ("datasets", "evaluate", "lm_eval")


def work(session: WorkerLink) -> Header:
    """Evaluate the task or the metric for base and adapter, and write the items."""
    task, _ = session.expect("go")
    if task.get("packages"):
        # Last in the path, so that the service's own packages keep the versions that they were tested with.
        sys.path.append(take_path(task, "packages"))
    evaluate = {"task": _evaluate_task, "metric": _evaluate_metric}[take(task, "kind", str)]
    results = evaluate(task, _reporter(session))
    # The order does not bind these versions, and another version may compute other scores.
    return {**results, "libraries": {name: version(name) for name in LIBRARIES}}


def _reporter(session: WorkerLink) -> Callable[[int, int], None]:
    done = 0

    def report(more: int, tokens: int) -> None:
        nonlocal done
        done += more
        session.send({"frame": "evaluating", "done": done, "tokens": tokens})

    return report


def _evaluate_task(task: Header, report: Callable[[int, int], None]) -> Header:
    recipe, folder, name = take(task, "recipe", dict), Path(take_path(task, "folder")), take(task, "name", str)
    machine.use_determinism(recipe["seed"])
    base = load_for(Path(take_path(task, "base")), recipe)
    slots, results = AdapterSlots(base), {}
    for subject in ("base", "adapter"):
        weights = Path(take_path(task, "adapter"))
        applied = (
            nullcontext(slots) if subject == "base" else apply_trained_adapter(base, slots, recipe["method"], weights)
        )
        with applied as wrapping:
            results[subject] = evaluate_task(folder, name, base, wrapping, report)
    lines = write_task_items(take(task, "set", str), take(task, "digest", str), results["base"], results["adapter"])
    _write(task, lines)
    return {subject: summarize_scores([row.scores for row in rows]) for subject, rows in results.items()}


def _evaluate_metric(task: Header, report: Callable[[int, int], None]) -> Header:
    answers_folder = Path(take_path(task, "answers"))
    folder, name = Path(take_path(task, "folder")), take(task, "name", str)
    items = parse_items((answers_folder / ITEMS_FILE).read_bytes())
    answers: dict[str, dict[str, str]] = json.loads((answers_folder / ANSWERS_FILE).read_bytes())
    rows = [answers[item.row] for item in items]
    results: dict[str, list[dict[str, int]]] = {}
    for subject in ("base", "adapter"):
        results[subject] = measure_answers(
            folder, name, [row["expected"] for row in rows], [row[subject] for row in rows]
        )
        report(len(rows), 0)
    _write(task, write_metric_items(items, results["base"], results["adapter"]))
    return {subject: summarize_scores(scores) for subject, scores in results.items()}


def _write(task: Header, lines: bytes) -> None:
    (Path(take_path(task, "output")) / items_path(take(task, "set", str))).write_bytes(lines)
