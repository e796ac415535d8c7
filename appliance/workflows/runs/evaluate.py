"""A second worker judges what the first one made: the held-out rows, the base before and the adapter after."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records import Run
from appliance.domain.evaluation.items import ITEMS_FILE, MOST_BYTES
from appliance.domain.runs.training import Train
from appliance.runners.output import read_output
from appliance.workflows.core.context import Context
from appliance.workflows.core.halt import check_standing
from appliance.workflows.core.workers import carry_out, check_walls, worker


def evaluate(
    context: Context, run: Run, order: Train, base: Path, dataset: Path, adapter: Path, scratch: Path
) -> dict[str, Any]:
    """The result frame (metrics of base and adapter, probe), with the walls that this worker probed, and the bytes of
    its `items`, which nobody has checked."""
    with worker(
        context,
        f"{run.id}:evaluate",
        "appliance.worker.evaluate",
        read=(base, dataset, adapter),
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
        }
        publish = partial(context.progress.publish, run.id)
        result = carry_out(started, task, on_frame=lambda frame: publish({**frame, "stage": "evaluate"}))
    return {**result, "walls": walls, "items": read_output(scratch, ITEMS_FILE, MOST_BYTES)}
