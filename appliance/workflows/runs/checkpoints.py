"""Training checkpoints: the service hashes them, stores them under their digest, records them, and removes them in
time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time, add_seconds, explain
from appliance.domain.core.records.runs import Adapter, Run
from appliance.domain.core.state import State
from appliance.domain.recipe.recipe import MOST_CHECKPOINTS
from appliance.domain.retention import is_held
from appliance.domain.runs.conditions import UNDER_WAY, RunCheckpointed
from appliance.errors import BadInput
from appliance.sandbox.output import open_output
from appliance.workflows.core import retry
from appliance.workflows.core.context import Frame, LedgerContext, RunContext
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.runs.steps import destroy_secret

SWEEP_S = 3600.0
"""Seconds between two sweeps."""
MOST_ASKED = 256
"""Most additional training checkpoints of a run on Slurm, whose jobs write one whenever their nodes are taken away."""


def take_frame(context: RunContext, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """Process a frame of a training worker: record a checkpoint, and publish every frame to followers."""
    if frame.get("frame") == "checkpoint":
        _keep(context, run, folder, max_bytes, frame)
    context.progress.publish(run, frame)


def _keep(context: RunContext, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """Copy the worker's file and hash it meanwhile. The digest that the worker reports is not used.

    Raises:
        BadInput: The run has made too many training checkpoints.
        TooLarge: The file is larger than its recipe explains. Holes of a sparse file would become bytes here.
    """
    made = sum(checkpoint.run == run for checkpoint in context.ledger.state.training_checkpoints.values())
    found = context.ledger.state.runs.get(run)
    # The last step may add one, and on a cluster every preemption signal may.
    most = MOST_CHECKPOINTS + 1 + (MOST_ASKED if found is not None and found.on == "slurm" else 0)
    if made >= most:
        raise BadInput(f"run {run}: expected at most {most} training checkpoints, got more")
    name = str(frame.get("file"))
    source = open_output(folder, name)
    try:
        with context.checkpoints.keep(source, max_bytes) as digest:
            make = partial(RunCheckpointed, run=run, checkpoint=digest)
            append_with_retry(context, read_body(make, frame, ("step", "seconds", "machine")))
    finally:
        os.close(source)
    (folder / name).unlink()


def read_body(make: Any, frame: Frame, members: tuple[str, ...]) -> Any:
    """Return an event with these fields of a worker's frame.

    Raises:
        BadInput: The event does not accept the values.
    """
    try:
        return make(**{name: _freeze(frame.get(name)) for name in members})
    except ValidationError as error:
        raise BadInput(f"worker, frame {frame.get('frame')}: {explain(error)}") from None


def _freeze(value: Any) -> Any:
    """Return the value with arrays as tuples."""
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class KeepReason:
    """The reason to keep a run's training checkpoints. `until`: the time at which they may be removed, or None."""

    why: str
    until: Time | None = None


def start(context: RunContext) -> None:
    """Start the hourly sweep, which runs in the queue of the runs."""
    retry.start(context, "training checkpoints", SWEEP_S, lambda: context.runs.put(partial(sweep, context)))


def sweep(context: RunContext) -> None:
    """Remove training checkpoints that are needed no longer, and the secrets of such private runs.

    Only the process that has the queue of runs does this.
    """
    if not context.runs_here:
        return
    context.refresh()
    context.checkpoints.sweep(partial(kept_digests, context))
    _sweep_secrets(context)


def _sweep_secrets(context: LedgerContext) -> None:
    """Destroy the secrets of private runs without anything that could be trained again."""
    state, kept = context.ledger.state, list_kept(context)
    for run in state.runs.values():
        held = any(is_held(hold.subject, (f"run:{run.id}",)) for hold in state.holds.values())
        if run.privacy is not None and run.status not in UNDER_WAY and run.id not in kept and not held:
            destroy_secret(context, run)


def kept_digests(context: LedgerContext) -> frozenset[str]:
    """Return the digests of all training checkpoints that are kept today."""
    runs = list_kept(context)
    return frozenset(made.digest for made in context.ledger.state.training_checkpoints.values() if made.run in runs)


def list_needed_checkpoints(state: State) -> frozenset[str]:
    """Return the digests of the training checkpoints that are still needed and that no policy could have removed."""
    ends = _Ends.of(state)
    runs = {run.id for run in state.runs.values() if ends.needs(run) is not None}
    return frozenset(made.digest for made in state.training_checkpoints.values() if made.run in runs)


def list_kept(context: LedgerContext) -> dict[str, KeepReason]:
    """Return the reason by run for the runs whose training checkpoints are kept. All of a run are kept, or none."""
    state = context.ledger.state
    last = {made.run: made.index for made in state.training_checkpoints.values()}
    ends, found = _Ends.of(state), {}
    for run in state.runs.values():
        keeping = _keep_run(context, ends, run, last[run.id]) if run.id in last else None
        if keeping is not None:
            found[run.id] = keeping
    return found


@dataclass(frozen=True)
class _Ends:
    """The outcomes of runs.

    `adapters`: the adapter by run. `decided`: by adapter, the entry that first released, rejected or revoked it; later
    entries do not undo that decision. `replayed`: the runs that a queued replay needs.
    """

    adapters: Mapping[str, str]
    decided: Mapping[str, int]
    replayed: frozenset[str]

    @classmethod
    def of(cls, state: State) -> _Ends:
        entries = [(name, index) for name, adapter in state.adapters.items() for index in _list_rejections(adapter)]
        entries += [(one.adapter, one.index) for release in state.releases.values() for one in release.history]
        first: dict[str, int] = {}
        for name, index in entries:
            first[name] = min(index, first.get(name, index))
        return cls(
            {adapter.run: name for name, adapter in state.adapters.items()},
            first,
            frozenset(replay.run for replay in state.replays.values() if replay.status == "requested"),
        )

    def needs(self, run: Run) -> str | None:
        """Return the reason why the run's training checkpoints are still needed, or None."""
        if run.status in UNDER_WAY:
            return "under way"
        if run.id in self.replayed:
            return "a replay waits"
        adapter = self.adapters.get(run.id)
        return "not decided" if adapter is not None and adapter not in self.decided else None


def _list_rejections(adapter: Adapter) -> list[int]:
    rejected = [review.index for review in adapter.reviews if review.decision == "reject"]
    return rejected if adapter.revoked is None else [*rejected, adapter.revoked]


def _keep_run(context: LedgerContext, ends: _Ends, run: Run, last: int) -> KeepReason | None:
    """Return the reason to keep a run's training checkpoints, or None.

    A legal hold takes precedence, then an open need, then the days that policy sets. They count from the decision on
    the adapter, or from the last training checkpoint of a failed run that can be resumed.
    """
    state, adapter = context.ledger.state, ends.adapters.get(run.id)
    subjects = (f"run:{run.id}",) if adapter is None else (f"run:{run.id}", f"adapter:{adapter}")
    for hold in state.holds.values():
        if is_held(hold.subject, subjects):
            return KeepReason(f"legal hold on {hold.subject}")
    if (why := ends.needs(run)) is not None:
        return KeepReason(why)
    if run.status in ("cancelled", "refused"):
        return None
    since = parse_entry(context.ledger.entry_bytes(last if adapter is None else ends.decided[adapter])).time
    until = add_seconds(since, state.parameters.training_checkpoint_retention_s)
    return KeepReason("policy", until) if context.now(state) < until else None
