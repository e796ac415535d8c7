"""The harness worker: one task of lm-eval, or one metric of Hugging Face's evaluate, from a folder of the site's own.

The folder's code runs here, and nowhere else: without a network, and with nothing to write to but this output.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.worker.link import Header, Link, run_worker, take, take_path

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARIES = ("datasets", "evaluate", "lm_eval")


def work(session: Link, task: Header, blob: bytes) -> Header:
    if task.get("packages"):
        # Last, so that what the appliance itself runs with stays what it was tested with.
        sys.path.append(take_path(task, "packages"))
    judge = {"task": _judge_task, "metric": _judge_metric}[take(task, "kind", str)]
    found = judge(task, _reporter(session))
    # What the order does not bind: another version may count otherwise.
    return {**found, "libraries": {name: version(name) for name in LIBRARIES}}


def _reporter(session: Link) -> Callable[[int, int], None]:
    done = 0

    def report(more: int, tokens: int) -> None:
        nonlocal done
        done += more
        session.send({"frame": "judging", "done": done, "tokens": tokens})

    return report


def _judge_task(task: Header, report: Callable[[int, int], None]) -> Header:
    from appliance.ml.evaluation.harness import judge_task, summarize_scores, write_task_items
    from appliance.ml.inference import adapters
    from appliance.ml.model import machine
    from appliance.worker.evaluate import load_task_base, trained

    recipe, folder, name = take(task, "recipe", dict), Path(take_path(task, "folder")), take(task, "name", str)
    machine.use_determinism(recipe["seed"])
    base = load_task_base(task, recipe)
    slots, found = adapters.Slots(base), {}
    for subject in ("base", "adapter"):
        weights = Path(take_path(task, "adapter"))
        with nullcontext(slots) if subject == "base" else trained(base, slots, recipe["method"], weights) as wrapping:
            found[subject] = judge_task(folder, name, base, wrapping, report)
    lines = write_task_items(take(task, "set", str), take(task, "digest", str), found["base"], found["adapter"])
    _write(task, lines)
    return {subject: summarize_scores([row.scores for row in rows]) for subject, rows in found.items()}


def _judge_metric(task: Header, report: Callable[[int, int], None]) -> Header:
    from appliance.domain.evaluation.items import ITEMS_FILE, parse_items
    from appliance.ml.evaluation.harness import measure_answers, summarize_scores, write_metric_items
    from appliance.ml.evaluation.sets import ANSWERS_FILE

    answered = Path(take_path(task, "answers"))
    folder, name = Path(take_path(task, "folder")), take(task, "name", str)
    items = parse_items((answered / ITEMS_FILE).read_bytes())
    answers: dict[str, dict[str, str]] = json.loads((answered / ANSWERS_FILE).read_bytes())
    rows = [answers[item.row] for item in items]
    found: dict[str, list[dict[str, int]]] = {}
    for subject in ("base", "adapter"):
        found[subject] = measure_answers(
            folder, name, [row["expected"] for row in rows], [row[subject] for row in rows]
        )
        report(len(rows), 0)
    _write(task, write_metric_items(items, found["base"], found["adapter"]))
    return {subject: summarize_scores(scores) for subject, scores in found.items()}


def _write(task: Header, lines: bytes) -> None:
    from appliance.domain.evaluation.basis import items_path

    (Path(take_path(task, "output")) / items_path(take(task, "set", str))).write_bytes(lines)


if __name__ == "__main__":
    sys.exit(run_worker(work))
