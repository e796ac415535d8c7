"""A second worker judges what the first one made, on the held-out rows and the validation sets: the base before, the
adapter after, and the released version where no record has its answers to the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.runs import Run
from appliance.domain.data.local_sets import SHIPPED, is_local
from appliance.domain.evaluation.basis import Basis, find_basis, find_released, items_path, sets_by_name
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.recipe.parsing import parse_resolved
from appliance.domain.runs.training import Train
from appliance.errors import Denied, NotFound, Tampered
from appliance.formats.core.canonical import parse_canonical
from appliance.runners.output import read_output
from appliance.workflows.core.context import Context
from appliance.workflows.core.halt import check_standing
from appliance.workflows.core.workers import carry_out, check_walls, worker
from appliance.workflows.evaluation.local_sets import judge_local, needs_answers
from appliance.workflows.evaluation.other_engines import judge_elsewhere

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Evaluation:
    """`result`: the worker's frame (metrics, probe). `walls`: what it probed. `items`: the bytes of its files by path,
    which nobody has checked. `released`: the version that it evaluated, if any."""

    result: dict[str, Any]
    walls: dict[str, str]
    items: Mapping[str, bytes]
    released: str | None


def evaluate(
    context: Context, run: Run, order: Train, base: Path, dataset: Path, adapter: Path, scratch: Path
) -> Evaluation:
    """Denied where a validation set was revoked or the released version changed, Tampered where its bytes did."""
    sets, basis = _open_sets(context, run), basis_of(context, run)
    released = _open_released(context, run) if basis.unrecorded else None
    read = [base, dataset, adapter, *sets.values()]
    with worker(
        context,
        f"{run.id}:evaluate",
        "appliance.worker.evaluate",
        read=tuple(read if released is None else [*read, released.folder]),
        write=(scratch,),
        gpu=order.recipe.device == "cuda",
    ) as started:
        walls = check_walls(started)
        check_standing(context, run)
        task = {
            "recipe": order.recipe.model_dump(mode="json"),
            "base": str(base),
            "dataset": str(dataset),
            "adapter": str(adapter),
            "output": str(scratch),
            "sets": [
                {"name": name, "folder": str(folder), "blind": _is_blind(context, run, name)}
                for name, folder in sets.items()
            ],
            "shipped": [bound.set for bound in run.local_sets if bound.set in SHIPPED],
            "answers": needs_answers(run),
            "released": None if released is None else {**released.task, "sets": list(basis.unrecorded)},
        }
        publish = partial(context.progress.publish, run.id)
        result = carry_out(started, task, on_frame=lambda frame: publish({**frame, "stage": "evaluate"}))
    paths = [items_path(name) for name in basis.sets if not is_local(name) or name in SHIPPED]
    paths += [items_path(name, released=True) for name in basis.unrecorded]
    items = {path: read_output(scratch, path, MOST_BYTES) for path in paths}
    more, told = judge_local(context, run, order, base, adapter, scratch, publish)
    items, result = items | more, {**result, "sets": {**result["sets"], **told}}
    if engines := judge_elsewhere(context, run, order, base, dataset, adapter, result["probe"]):
        result["engines"] = engines
    return Evaluation(result, walls, items, None if released is None else released.adapter.manifest)


def still_compares(context: Context, run: Run, evaluation: Evaluation) -> bool:
    """Whether the version that is released now is the one that was evaluated, where one had to be."""
    basis = basis_of(context, run)
    if not {items_path(name, released=True) for name in basis.unrecorded} <= evaluation.items.keys():
        return False
    with context.ledger.lock:
        now = find_released(context.ledger.state, run.name, run.dataset, run.base_digest)
    return not basis.unrecorded or (now is not None and now.manifest == evaluation.released)


def basis_of(context: Context, run: Run) -> Basis:
    """What the run's verdict rests on, in the log as it is now."""
    gates = None if run.gates is None else parse_gates(context.ledger.documents_of(run.index)["gates"])
    with context.ledger.lock:
        return find_basis(context.ledger.state, run, gates)


def _open_sets(context: Context, run: Run) -> dict[str, Path]:
    """The folders of the run's validation sets by name, hashed again."""
    digests = {bound.validation_set: bound.digest for bound in run.sets}
    found = {}
    for name, version in sets_by_name(run).items():
        context.artifacts.check(digests[version])
        found[name] = context.artifacts.path(digests[version])
    return found


def _is_blind(context: Context, run: Run, name: str) -> bool:
    found = context.ledger.state.validation_sets.get(sets_by_name(run)[name])
    if found is None:
        raise NotFound(f"validation set: expected an imported one, got {name}")
    return found.blind


@dataclass(frozen=True)
class _Released:
    adapter: Adapter
    folder: Path
    task: dict[str, Any]


def _open_released(context: Context, run: Run) -> _Released:
    """The version of this name that answers a unit now, its bytes hashed again."""
    with context.ledger.lock:
        adapter = find_released(context.ledger.state, run.name, run.dataset, run.base_digest)
    if adapter is None:
        raise Denied(f"run {run.id}: expected a released version to compare with, got one that is released no more")
    context.artifacts.check(adapter.manifest)
    recipe = parse_resolved(parse_canonical(context.artifacts.read(adapter.manifest, RECIPE)))
    if recipe.base != run.base:
        raise Tampered(
            f"adapter {adapter.name}@{adapter.version}, recipe: expected the base {run.base}, got {recipe.base}"
        )
    folder = context.artifacts.path(adapter.manifest)
    return _Released(adapter, folder, {"folder": str(folder), "recipe": recipe.model_dump(mode="json")})
