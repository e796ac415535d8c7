"""Local sets, whose rows are in no log: the list of those on this machine, and the evaluation on them by a worker."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from appliance.api import runs
from appliance.domain.core.records.data import LocalSet
from appliance.domain.core.records.runs import Run
from appliance.domain.data.kinds import HARNESS, METRIC, SHIPPED
from appliance.domain.evaluation.basis import count_evaluations, items_path, rows_of_local
from appliance.domain.evaluation.items import ITEMS_FILE, MOST_BYTES
from appliance.domain.evaluation.rules import count_local_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.domain.runs.training import Train
from appliance.errors import Denied, Unavailable
from appliance.sandbox.output import read_output
from appliance.workflows.core.context import Frame, RunContext
from appliance.workflows.core.retry import check_run_valid
from appliance.workflows.core.workers import carry_out, check_sandbox, worker

ANSWERS_FILE = "answers.json"
"""File with the answers of each model to the held-out rows."""
LIBRARIES = {HARNESS: "lm_eval", METRIC: "evaluate"}
"""Python library by kind of set."""


def list_local(context: RunContext, dataset: str) -> tuple[runs.LocalSet, ...]:
    """Return the local sets on which a run on the dataset can be evaluated, with the values that an order binds.

    `items` is null if only the set's files define how many there are.
    """
    state = context.ledger.state
    found = state.datasets.get(dataset)
    facts: Mapping[str, object] = {} if found is None else found.facts
    sets = [*(LocalSet(set=name, digest=digest_set(name)) for name in SHIPPED), *context.local_sets.list()]
    return tuple(
        runs.LocalSet(
            **dict(one),
            items=count_local_items(one, facts),
            evaluated_before=count_evaluations(state, rows_of_local(state, one, dataset)),
        )
        for one in sets
    )


def check_local(context: RunContext, order: Train) -> None:
    """Check the local sets of an order now, since a missing one would fail the run only after its training.

    Raises:
        Denied: A set is not here with the digest that the order binds.
        Unavailable: The library of a set is missing.
    """
    here = {one.set: one.digest for one in list_local(context, order.recipe.dataset)} if order.local_sets else {}
    for bound in order.local_sets:
        if here.get(bound.set) != bound.digest:
            got = here.get(bound.set, "none")
            raise Denied(f"set {bound.set}: expected {bound.digest}, which the order binds, got {got}")
        if bound.set not in SHIPPED:
            _check_library(context, LIBRARIES[_kind(bound.set)])


def _check_library(context: RunContext, module: str) -> None:
    packages = context.local_sets.packages
    if importlib.util.find_spec(module) is None and (packages is None or not (packages / module).is_dir()):
        place = "no setting harness_packages" if packages is None else str(packages)
        raise Unavailable(
            f"{module}: expected this library in the appliance's Python or in the folder of harness_packages, got none "
            f"({place}): pip install 'appliance[harness]'",
            code="harness-missing",
        )


def evaluate_local_sets(
    context: RunContext,
    run: Run,
    order: Train,
    base: Path,
    adapter: Path,
    answered: Path,
    publish: Callable[[Frame], None],
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the unchecked items of each task and metric by path, and the measurements of each model by set.

    `answered`: the folder with the items of the held-out rows and each model's answers to them.
    """
    items: dict[str, bytes] = {}
    measured: dict[str, Any] = {}
    for bound in run.local_sets:
        if bound.set not in SHIPPED:
            path = items_path(bound.set)
            items[path], measured[bound.set] = _evaluate_local_set(
                context, run, order, bound, base, adapter, answered, publish
            )
    return items, measured


def _evaluate_local_set(
    context: RunContext,
    run: Run,
    order: Train,
    bound: LocalSet,
    base: Path,
    adapter: Path,
    answered: Path,
    publish: Callable[[Frame], None],
) -> tuple[bytes, dict[str, Any]]:
    kind, packages = _kind(bound.set), context.local_sets.packages
    with ExitStack() as stack:
        folder, output, answers = (stack.enter_context(context.artifacts.staging()) for _ in range(3))
        context.local_sets.copy(bound, folder)
        task: dict[str, Any] = {
            "kind": "task" if kind == HARNESS else "metric",
            "set": bound.set,
            "digest": bound.digest,
            "name": bound.set.removeprefix(kind),
            "folder": str(folder),
            "output": str(output),
            "packages": "" if packages is None else str(packages),
        }
        if kind == HARNESS:
            read: tuple[Path, ...] = (base, adapter, folder)
            task |= {"recipe": order.recipe.model_dump(mode="json"), "base": str(base), "adapter": str(adapter)}
        else:
            # Only these files of the evaluation are given: the code of a metric must not read the items of other sets.
            for name in (ITEMS_FILE, ANSWERS_FILE):
                (answers / name).write_bytes(read_output(answered, name, MOST_BYTES))
            read = (answers, folder)
            task["answers"] = str(answers)
        with worker(
            context,
            f"{run.id}:evaluate",
            "appliance.worker.harness",
            read=read,
            write=(output,),
            gpu=kind == HARNESS and order.recipe.device == "cuda",
            libraries=() if packages is None else (packages,),
        ) as started:
            check_sandbox(started)
            check_run_valid(context, run)
            # A fixed frame is published, because the code of a task could write anything into its frames.
            frame_to_publish = {"frame": "evaluating", "set": bound.set}
            result = carry_out(started, task, on_frame=lambda frame: publish(frame_to_publish))
        return read_output(output, items_path(bound.set), MOST_BYTES), {
            name: result[name] for name in ("base", "adapter", "libraries")
        }


def needs_answers(run: Run) -> bool:
    """Return True if the run needs the models' answers besides their scores."""
    return any(one.set.startswith(METRIC) for one in run.local_sets)


def _kind(name: str) -> str:
    return METRIC if name.startswith(METRIC) else HARNESS
