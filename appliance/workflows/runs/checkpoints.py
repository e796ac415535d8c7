"""Training checkpoints as the service has them: hashed here, kept under their digest, recorded; and for how long."""

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
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.recipe.recipe import MOST_CHECKPOINTS
from appliance.domain.retention.holds import keeps
from appliance.domain.runs.checkpoints import RunCheckpointed
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.errors import BadInput
from appliance.runners.output import open_output
from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.runs.privacy import destroy_secret

SWEEP_S = 3600.0
MOST_ASKED = 256
"""Training checkpoints of a run whose nodes are taken away again and again."""


def take_frame(context: Context, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """What a training worker reports while it runs: a checkpoint becomes an entry, and followers get everything."""
    if frame.get("frame") == "checkpoint":
        _keep(context, run, folder, max_bytes, frame)
    context.progress.publish(run, frame)


def _keep(context: Context, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """Copies the worker's file while hashing it; what the worker says of its bytes is not asked. TooLarge where it is
    larger than its recipe explains: holes would become bytes here."""
    made = sum(checkpoint.run == run for checkpoint in context.ledger.state.training_checkpoints.values())
    found = context.ledger.state.runs.get(run)
    # The last step's may come on top, and on a cluster those that its signals ask for.
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
    """An event with these members of a worker's frame; BadInput where they are not what the event takes."""
    try:
        return make(**{name: _frozen(frame.get(name)) for name in members})
    except ValidationError as error:
        raise BadInput(f"worker, frame {frame.get('frame')}: {explain(error)}") from None


def _frozen(value: Any) -> Any:
    """An array as a value holds it."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Keeping:
    """Why a run's training checkpoints are kept. `until`: the day on which they may go; None where none is set."""

    why: str
    until: Time | None = None


def start(context: Context) -> None:
    """Sweeps every hour, in the queue of the runs."""
    rounds.start(context, "training checkpoints", SWEEP_S, lambda: context.runs.put(partial(sweep, context)))


def sweep(context: Context) -> None:
    """Removes the bytes that nothing will be trained from again, and the secrets of private runs with them. By the
    process alone that has the queue of runs."""
    if not context.runs_here:
        return
    context.refresh()
    context.checkpoints.sweep(partial(kept_digests, context))
    _sweep_secrets(context)


def _sweep_secrets(context: Context) -> None:
    """Destroys those of runs of which nothing is kept that could be trained again."""
    state, kept = context.ledger.state, list_kept(context)
    for run in state.runs.values():
        held = any(keeps(hold.subject, (f"run:{run.id}",)) for hold in state.holds.values())
        if run.privacy is not None and run.status not in UNDER_WAY and run.id not in kept and not held:
            destroy_secret(context, run)


def kept_digests(context: Context) -> frozenset[str]:
    """The digests of all that is kept today."""
    runs = list_kept(context)
    return frozenset(made.digest for made in context.ledger.state.training_checkpoints.values() if made.run in runs)


def needed(state: State) -> frozenset[str]:
    """Of these the ones that were never allowed to go, whatever policies and holds came and went."""
    ends = _Ends.of(state)
    runs = {run.id for run in state.runs.values() if ends.needs(run) is not None}
    return frozenset(made.digest for made in state.training_checkpoints.values() if made.run in runs)


def list_kept(context: Context) -> dict[str, Keeping]:
    """By run, of those that have training checkpoints: all of a run are kept, or none."""
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
    """What became of runs. `adapters`: by run. `decided`: by adapter, the entry that first released, rejected or ended
    it; what comes later takes no decision back. `replayed`: the runs that a replay waits for."""

    adapters: Mapping[str, str]
    decided: Mapping[str, int]
    replayed: frozenset[str]

    @classmethod
    def of(cls, state: State) -> _Ends:
        entries = [(name, index) for name, adapter in state.adapters.items() for index in _taken_away(adapter)]
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
        """What will be trained or decided from them."""
        if run.status in UNDER_WAY:
            return "under way"
        if run.id in self.replayed:
            return "a replay waits"
        adapter = self.adapters.get(run.id)
        return "not decided" if adapter is not None and adapter not in self.decided else None


def _taken_away(adapter: Adapter) -> list[int]:
    rejected = [review.index for review in adapter.reviews if review.decision == "reject"]
    return rejected if adapter.revoked is None else [*rejected, adapter.revoked]


def _keep_run(context: Context, ends: _Ends, run: Run, last: int) -> Keeping | None:
    """A hold wins over everything; then what is needed; then the days that policy gives, after the decision on the
    adapter, or after the last training checkpoint of a run that failed and can be resumed."""
    state, adapter = context.ledger.state, ends.adapters.get(run.id)
    subjects = (f"run:{run.id}",) if adapter is None else (f"run:{run.id}", f"adapter:{adapter}")
    for hold in state.holds.values():
        if keeps(hold.subject, subjects):
            return Keeping(f"legal hold on {hold.subject}")
    if (why := ends.needs(run)) is not None:
        return Keeping(why)
    if run.status in ("cancelled", "refused"):
        return None
    since = parse_entry(context.ledger.entry_bytes(last if adapter is None else ends.decided[adapter])).time
    until = add_seconds(since, state.parameters.training_checkpoint_retention_s)
    return Keeping("policy", until) if context.now(state) < until else None
