"""A third worker judges what was trained on another engine than the appliance's own, where the site answers with one.

What it finds is sealed with the adapter: a reviewer signs for that engine too, and no other adapter is loaded there.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records.runs import Run
from appliance.domain.evaluation.engines import VLLM
from appliance.domain.runs.training import Train
from appliance.errors import ApplianceError
from appliance.workflows.core.context import Context
from appliance.workflows.core.workers import carry_out, check_walls, worker

log = logging.getLogger("appliance")


def judge_elsewhere(
    context: Context, run: Run, order: Train, base: Path, dataset: Path, adapter: Path, probe: dict[str, Any]
) -> dict[str, Any]:
    """By engine what it made of the held-out rows, or the code of why it takes no such adapter; nothing where the site
    answers with the appliance's own engine. The run goes on either way: without it the adapter is of no use there."""
    if context.vllm is None:
        return {}
    task = {
        "base": str(base),
        "dataset": str(dataset),
        "adapter": str(adapter),
        "probe": probe,
        "quantisation": order.recipe.quantisation,
        "compute_dtype": order.recipe.compute_dtype,
        "packages": str(context.vllm),
    }
    publish = partial(context.progress.publish, run.id)
    try:
        with worker(
            context,
            f"{run.id}:evaluate-vllm",
            "appliance.worker.evaluate_vllm",
            read=(base, dataset, adapter),
            libraries=(context.vllm,),
            gpu=context.device == "cuda",
        ) as started:
            check_walls(started)
            result = carry_out(started, task, on_frame=lambda frame: publish({**frame, "stage": "evaluate on vllm"}))
    except ApplianceError as error:
        log.warning("run %s: vLLM does not serve what it trained: %s", run.id, error.code)
        return {VLLM: {"refused": error.code}}
    return {VLLM: result["judged"]}
