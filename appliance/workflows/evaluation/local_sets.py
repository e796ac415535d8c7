"""Sets of rows that are in no log: which there are here, and what their worker makes of base and adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from appliance.domain.core.records.data import LocalSet
from appliance.domain.core.records.runs import Run
from appliance.domain.data.local_sets import HARNESS, METRIC, SHIPPED
from appliance.domain.evaluation.basis import count_judged_locally, items_path
from appliance.domain.evaluation.items import ITEMS_FILE, MOST_BYTES
from appliance.domain.evaluation.judging import count_local_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.domain.runs.training import Train
from appliance.errors import Denied, Unavailable
from appliance.runners.output import read_output
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.halt import check_standing
from appliance.workflows.core.workers import carry_out, check_walls, worker

ANSWERS_FILE = "answers.json"
LIBRARIES = {HARNESS: "lm_eval", METRIC: "evaluate"}


def list_local(context: Context, dataset: str) -> list[dict[str, Any]]:
    """Those that a run on the dataset can be judged on, with what its order binds; `items` is null where only its files
    say how many there are."""
    state = context.ledger.state
    found = state.datasets.get(dataset)
    facts: Mapping[str, object] = {} if found is None else found.facts
    sets = [*(LocalSet(set=name, digest=digest_set(name)) for name in SHIPPED), *context.local_sets.list()]
    return [
        {
            **one.model_dump(mode="json"),
            "items": count_local_items(one, facts),
            "judged_before": count_judged_locally(state, one, dataset),
        }
        for one in sets
    ]


def check_local(context: Context, order: Train) -> None:
    """Denied where a set that the order binds is not here with that digest, Unavailable where its library is missing:
    both would fail the run when its training has ended."""
    here = {one["set"]: one["digest"] for one in list_local(context, order.recipe.dataset)} if order.local_sets else {}
    for bound in order.local_sets:
        if here.get(bound.set) != bound.digest:
            got = here.get(bound.set, "none")
            raise Denied(f"set {bound.set}: expected {bound.digest}, which the order binds, got {got}")
        if bound.set not in SHIPPED:
            _check_library(context, LIBRARIES[_kind(bound.set)])


def _check_library(context: Context, module: str) -> None:
    packages = context.local_sets.packages
    if importlib.util.find_spec(module) is None and (packages is None or not (packages / module).is_dir()):
        place = "no setting harness_packages" if packages is None else str(packages)
        raise Unavailable(
            f"{module}: expected this library in the appliance's Python or in the folder of harness_packages, got none "
            f"({place}): pip install 'appliance[harness]'",
            code="harness-missing",
        )


def judge_local(
    context: Context,
    run: Run,
    order: Train,
    base: Path,
    adapter: Path,
    answered: Path,
    publish: Callable[[Frame], None],
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The items of each task and metric by path, which nobody has checked, and what each model is measured as by set.

    `answered`: the folder with the held-out rows' items, and what each model answered to them.
    """
    items: dict[str, bytes] = {}
    told: dict[str, Any] = {}
    for bound in run.local_sets:
        if bound.set not in SHIPPED:
            path = items_path(bound.set)
            items[path], told[bound.set] = _judge(context, run, order, bound, base, adapter, answered, publish)
    return items, told


def _judge(
    context: Context,
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
            # Of what the evaluation wrote this alone: the code of a metric sees no other set's items.
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
            check_walls(started)
            check_standing(context, run)
            # Its own words alone: the code of a task could say anything.
            said = {"frame": "judging", "set": bound.set}
            result = carry_out(started, task, on_frame=lambda frame: publish(said))
        return read_output(output, items_path(bound.set), MOST_BYTES), {
            name: result[name] for name in ("base", "adapter", "libraries")
        }


def needs_answers(run: Run) -> bool:
    """Whether what the models wrote is needed beside their scores."""
    return any(one.set.startswith(METRIC) for one in run.local_sets)


def _kind(name: str) -> str:
    return METRIC if name.startswith(METRIC) else HARNESS
