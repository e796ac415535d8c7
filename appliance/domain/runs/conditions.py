"""What every entry of a run is checked against: its status, its inputs, and its worker's walls."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import RunId
from appliance.domain.core.records import Run
from appliance.domain.core.state import State
from appliance.domain.data.standing import inputs_stand, sets_stand
from appliance.errors import Denied

UNDER_WAY = ("waiting", "queued", "running", "trained")
"""A run that has not ended."""


class WorkerStarted(Event):
    """A training worker starts. `walls`: what its own probes found; `layers`: what of the sandbox stands."""

    run: RunId
    layers: dict[str, bool]
    accepted_missing: tuple[str, ...]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def next_queued(state: State) -> Run | None:
    """Whose turn it is: the one that the earliest entry put into the queue."""
    return min((run for run in state.runs.values() if run.status == "queued"), key=lambda run: run.queued, default=None)


def take_run(case: Case, name: str, *statuses: str) -> Run:
    run = case.state.runs.get(name)
    if run is None or run.status not in statuses:
        got = "none" if run is None else run.status
        raise Denied(f"entry {case.entry.index}: run {name}: expected one that is {' or '.join(statuses)}, got {got}")
    return run


def move(state: State, run: Run, status: str) -> Changes:
    return [(state.runs, run.id, run.model_copy(update={"status": status}))]


def inputs_withdrawn(state: State, run: Run) -> Denied | None:
    """Why nothing of the run is trained or sealed any more; the code says whether its base, its dataset
    or a validation set was revoked."""
    reasons = inputs_stand(state, run) + sets_stand(state, run.sets)
    if not reasons:
        return None
    sets = [state.validation_sets.get(bound.validation_set) for bound in run.sets]
    rows = (state.bases.get(run.base), state.datasets.get(run.dataset), *sets)
    revoked = any(row is not None and row.revoked is not None for row in rows)
    return Denied(f"run {run.id}", reasons=tuple(reasons), code="revoked" if revoked else "quarantined")


def check_inputs(case: Case, run: Run) -> None:
    """After its base, its dataset or a validation set was withdrawn, a run has no entry but its end."""
    error = inputs_withdrawn(case.state, run)
    if error is not None:
        raise error.within(f"entry {case.entry.index} ({case.entry.type})")


def check_sandbox(case: Case, body: WorkerStarted) -> None:
    check_walls(case, body.walls)
    missing = sorted(layer for layer, stands in body.layers.items() if not stands)
    accepted = case.state.parameters.accepted_missing_layers
    case.require(set(missing) <= set(accepted), "layers", f"all but {list(accepted)}", f"without {missing}")
    case.require(sorted(body.accepted_missing) == missing, "accepted_missing", missing, body.accepted_missing)


def check_walls(case: Case, walls: dict[str, str]) -> None:
    """Every probe was made and every one was refused."""
    through = sorted(name for name, result in walls.items() if result != "refused")
    case.require(bool(walls), "walls", "the worker's probes", "none")
    case.require(not through, "walls", "every probe refused", f"through: {', '.join(through)}")
