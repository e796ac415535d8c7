"""Which run of a sweep falls behind: asynchronous successive halving (Li et al., 2020,
https://arxiv.org/abs/1810.05934), in the form that stops runs, decided from recorded validation losses alone.

A *rung* is a reading: the first, the second, the fourth, and so on. A run goes on from a rung where its loss is among
the best half of those that have reached this rung so far, itself included. Runs train one after another, so the first
is never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal as Number

from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.stopping import Reading

KEPT = 2
"""One in so many goes on from a rung."""


def is_rung(reading: int) -> bool:
    """Whether the reading of this number, counted from 1, is one: a power of two."""
    return reading > 0 and reading & (reading - 1) == 0


def find_behind(own: Sequence[Reading], others: Iterable[Sequence[Reading]]) -> tuple[str, str] | None:
    """Of a run's readings so far: its loss at the last one, and the worst loss that goes on there; None where the run
    goes on, too. Runs are compared at the same number of readings, and a run whose last reading is no rung goes on."""
    at = len(own)
    if not is_rung(at):
        return None
    reached = sorted(Number(readings[at - 1][1]) for readings in [*others, own] if len(readings) >= at)
    last = reached[-(-len(reached) // KEPT) - 1]
    return None if Number(own[-1][1]) <= last else (own[-1][1], str(last))


def bars_run(state: State, sweep: str, signer: str, dataset_digest: str) -> list[str]:
    """Why one run more of this sweep is not ordered. A sweep is one signer's on one dataset. Its name is its author's
    choice, so their runs of other sweeps on the same dataset count as well while they have not ended."""

    def counts(run: Run) -> bool:
        own = run.ordered_by == signer and run.dataset_digest == dataset_digest and run.status in UNDER_WAY
        return run.sweep == sweep or (own and run.sweep is not None)

    for run in state.runs.values():
        if run.sweep == sweep and (run.ordered_by, run.dataset_digest) != (signer, dataset_digest):
            return [
                f"sweep {sweep}: expected a new name, or one of {signer}'s on this dataset, got {run.ordered_by}'s on "
                f"{run.dataset}"
            ]
    most = state.parameters.most_sweep_runs
    if sum(map(counts, state.runs.values())) < most:
        return []
    return [
        f"sweep {sweep}: expected at most {most} runs, policy's most_sweep_runs, in it and in your other sweeps on "
        "this dataset that have not ended, got one more"
    ]
