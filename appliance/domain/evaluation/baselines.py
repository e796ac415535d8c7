"""What an adapter keeps of the quality of the run that it is compared with, and at what share of its cost.

Everything is in the ledger: the order names the run, both were judged on the held-out rows of one dataset, and
`run.finished` has time and memory. So every reader of the entries computes the same shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN
from decimal import Decimal as Number
from typing import Any

from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.runs import Run, checkpoint_key
from appliance.domain.core.state import State
from appliance.domain.recipe.recipe import ResolvedRecipe

_PLACES = Number("0.000001")
FALLING = ("loss", "perplexity")
"""Measures of which less is better."""


def incomparable(state: State, recipe: ResolvedRecipe, base_digest: str, dataset_digest: str) -> list[str]:
    """What speaks against the run that a recipe names as its baseline; nothing where it names none."""
    if recipe.baseline is None:
        return []
    run = state.runs.get(recipe.baseline)
    if run is None or run.status != "sealed":
        got = "none" if run is None else f"one that is {run.status}"
        return [f"recipe, baseline {recipe.baseline}: expected a run that was sealed, got {got}"]
    reasons = []
    if (run.base_digest, run.dataset_digest) != (base_digest, dataset_digest):
        reasons.append(
            f"recipe, baseline {run.id}: expected one judged on the same base and dataset, "
            f"got {run.base} and {run.dataset}"
        )
    if run.purpose != "baseline" and run.name != recipe.name:
        reasons.append(
            f"recipe, baseline {run.id}: expected a baseline, or an earlier version of {recipe.name}, "
            f"got a release of {run.name}"
        )
    return reasons


def compare(state: State, run: Run, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """The adapter's share of its baseline; None where its order named none. `measured`: what it was judged as.

    `kept_NAME` for each measure that both have, `time` and `memory` of training. Shares are null where the baseline has
    0. Where `same_machine` is false, the costs are those of two machines.
    """
    baseline = None if run.baseline is None else state.runs.get(run.baseline)
    if baseline is None:
        return None
    theirs = next((adapter for adapter in state.adapters.values() if adapter.run == baseline.id), None)
    known = {} if theirs is None else _numbers(theirs)
    kept = {
        f"kept_{name}": _kept(name, value, known[name]) for name, value in sorted(measured.items()) if name in known
    }
    return {
        "run": baseline.id,
        "method": baseline.method,
        **{name: str(value) for name, value in known.items()},
        **kept,
        "time": _share(run.seconds, baseline.seconds),
        "memory": _share(run.peak_bytes, baseline.peak_bytes),
        "same_machine": _machine(state, run) == _machine(state, baseline),
    }


def _numbers(adapter: Adapter) -> dict[str, str]:
    """The measures of an adapter, which are decimal text; counts are none."""
    return {name: value for name, value in sorted(adapter.measured.items()) if isinstance(value, str)}


def _kept(name: str, ours: object, theirs: object) -> str | None:
    """1 is the baseline's own, and less is worse, whichever way the measure counts."""
    return _share(theirs, ours) if name in FALLING else _share(ours, theirs)


def _share(ours: object, theirs: object) -> str | None:
    """None where one is no number, or there is no share of them that can be written."""
    try:
        return str((Number(str(ours)) / Number(str(theirs))).quantize(_PLACES, rounding=ROUND_HALF_EVEN))
    except ArithmeticError:
        return None


def _machine(state: State, run: Run) -> Mapping[str, Any] | None:
    last = state.training_checkpoints.get(checkpoint_key(run.id, run.step))
    return None if last is None else last.machine
