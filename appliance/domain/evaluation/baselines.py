"""Comparison of an adapter's quality and training cost with those of a baseline run.

All inputs are in the ledger: the order names the baseline, both runs were evaluated on the held-out rows of one
dataset, and `run.finished` records time and memory. So every reader of the ledger computes the same shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN
from decimal import Decimal as Number
from typing import Any

from appliance.domain.core.records.runs import Adapter, Run, checkpoint_key
from appliance.domain.core.state import State
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import Refusal, RefusalCode, Rejected

BASELINE_UNKNOWN = RefusalCode(
    "baseline-not-sealed",
    "order",
    "The recipe compares with run {run}, which is not a sealed run.",
    "Name a sealed run, or leave the baseline out.",
)
BASELINE_OF_OTHER_DATA = RefusalCode(
    "baseline-of-other-data",
    "order",
    "The recipe compares with run {id}, which was evaluated on the base model {base} and the dataset {dataset}.",
    "Name a run on the same base model and dataset.",
)
BASELINE_OF_OTHER_ADAPTER = RefusalCode(
    "baseline-of-other-adapter",
    "order",
    "The recipe compares with run {id}, which made a release of {adapter}.",
    "Name a run whose purpose is baseline, or one of an earlier version.",
)

_PLACES = Number("0.000001")
FALLING = ("loss", "perplexity")
"""Measures of which less is better."""


def list_baseline_problems(
    state: State, recipe: ResolvedRecipe, base_digest: str, dataset_digest: str
) -> list[Refusal]:
    """Return the reasons against the run that a recipe names as its baseline; empty where it names none."""
    if recipe.baseline is None:
        return []
    run = state.runs.get(recipe.baseline)
    if run is None or run.status != "sealed":
        return [BASELINE_UNKNOWN(run=Rejected(recipe.baseline))]
    reasons = []
    if (run.base_digest, run.dataset_digest) != (base_digest, dataset_digest):
        reasons.append(BASELINE_OF_OTHER_DATA(f"run:{run.id}", base=run.base, dataset=run.dataset))
    if run.purpose != "baseline" and run.name != recipe.name:
        reasons.append(BASELINE_OF_OTHER_ADAPTER(f"run:{run.id}", adapter=run.name))
    return reasons


def compare(state: State, run: Run, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the adapter's shares of its baseline's quality and cost; None where its order names no baseline.

    `measured` are the adapter's measures. The result has `kept_NAME` for each measure that both have, and `time` and
    `memory` of training. Shares are null where they cannot be computed. Where `same_machine` is false, the costs are
    from two machines.
    """
    baseline = None if run.baseline is None else state.runs.get(run.baseline)
    if baseline is None:
        return None
    theirs = next((adapter for adapter in state.adapters.values() if adapter.run == baseline.id), None)
    known = {} if theirs is None else _numbers(theirs)
    quality = {
        f"kept_{name}": _compute_kept_quality(name, value, known[name])
        for name, value in sorted(measured.items())
        if name in known
    }
    return {
        "run": baseline.id,
        "method": baseline.method,
        **{name: str(value) for name, value in known.items()},
        **quality,
        "time": _compute_share(run.seconds, baseline.seconds),
        "memory": _compute_share(run.peak_bytes, baseline.peak_bytes),
        "same_machine": _machine(state, run) == _machine(state, baseline),
    }


def _numbers(adapter: Adapter) -> dict[str, str]:
    """Return the measures of an adapter, which are decimal text; counts are left out."""
    return {name: value for name, value in sorted(adapter.measured.items()) if isinstance(value, str)}


def _compute_kept_quality(name: str, ours: object, theirs: object) -> str | None:
    """Return the adapter's share of the baseline's quality: 1 is equal, and less is worse, for every measure."""
    return _compute_share(theirs, ours) if name in FALLING else _compute_share(ours, theirs)


def _compute_share(ours: object, theirs: object) -> str | None:
    """Return ours / theirs with six places; None where one is no number, or the quotient does not exist."""
    try:
        return str((Number(str(ours)) / Number(str(theirs))).quantize(_PLACES, rounding=ROUND_HALF_EVEN))
    except ArithmeticError:
        return None


def _machine(state: State, run: Run) -> Mapping[str, Any] | None:
    last = state.training_checkpoints.get(checkpoint_key(run.id, run.step))
    return None if last is None else last.machine
