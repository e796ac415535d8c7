"""The harness worker, which runs one lm-eval task or one metric of Hugging Face's evaluate from a folder of the site.

The code in that folder runs only here, without a network; the only folder that it can write to is this worker's output.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.worker.link import Header, WorkerLink, run_worker, take, take_path

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARIES = ("datasets", "evaluate", "lm_eval")


def work(session: WorkerLink, task: Header, blob: bytes) -> Header:
    """Evaluate the task or the metric for base and adapter, and write the items."""
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
    from appliance.ml.evaluation.harness import evaluate_task, summarize_scores, write_task_items
    from appliance.ml.inference import adapters
    from appliance.ml.model import machine
    from appliance.worker.evaluate import load_task_base, trained

    recipe, folder, name = take(task, "recipe", dict), Path(take_path(task, "folder")), take(task, "name", str)
    machine.use_determinism(recipe["seed"])
    base = load_task_base(task, recipe)
    slots, results = adapters.AdapterSlots(base), {}
    for subject in ("base", "adapter"):
        weights = Path(take_path(task, "adapter"))
        with nullcontext(slots) if subject == "base" else trained(base, slots, recipe["method"], weights) as wrapping:
            results[subject] = evaluate_task(folder, name, base, wrapping, report)
    lines = write_task_items(take(task, "set", str), take(task, "digest", str), results["base"], results["adapter"])
    _write(task, lines)
    return {subject: summarize_scores([row.scores for row in rows]) for subject, rows in results.items()}


def _evaluate_metric(task: Header, report: Callable[[int, int], None]) -> Header:
    from appliance.domain.evaluation.items import ITEMS_FILE, parse_items
    from appliance.ml.evaluation.harness import measure_answers, summarize_scores, write_metric_items
    from appliance.ml.evaluation.sets import ANSWERS_FILE

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
    from appliance.domain.evaluation.basis import items_path

    (Path(take_path(task, "output")) / items_path(take(task, "set", str))).write_bytes(lines)


if __name__ == "__main__":
    sys.exit(run_worker(work))
