"""Training checkpoints as the service has them: hashed here, kept under their digest, recorded; and for how long."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.names import explain
from appliance.domain.core.state import State
from appliance.domain.recipe.recipe import MOST_CHECKPOINTS
from appliance.domain.runs.checkpoints import RunCheckpointed
from appliance.errors import BadInput
from appliance.runners.output import open_output
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.retry import append_with_retry

REPLAYABLE_RUNS = 8
"""Of so many runs that ended last the checkpoints are kept; of older ones only the digests, in the ledger."""


def take_frame(context: Context, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """What a training worker says on the way: a checkpoint becomes an entry, and everything is told to who follows."""
    if frame.get("frame") == "checkpoint":
        _keep(context, run, folder, max_bytes, frame)
    context.progress.publish(run, frame)


def _keep(context: Context, run: str, folder: Path, max_bytes: int, frame: Frame) -> None:
    """Copies the worker's file while hashing it; what the worker says of its bytes is not asked. TooLarge where it is
    larger than its recipe explains: holes would become bytes here."""
    made = sum(checkpoint.run == run for checkpoint in context.ledger.state.training_checkpoints.values())
    if made > MOST_CHECKPOINTS:  # the last step's may come on top
        raise BadInput(f"run {run}: expected at most {MOST_CHECKPOINTS + 1} training checkpoints, got more")
    name = str(frame.get("file"))
    source = open_output(folder, name)
    try:
        digest = context.checkpoints.keep(source, max_bytes)
    finally:
        os.close(source)
    body = read_body(partial(RunCheckpointed, run=run, checkpoint=digest), frame, ("step", "seconds", "machine"))
    append_with_retry(context, body)
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


def sweep(context: Context) -> None:
    """Removes the bytes that nothing will be trained from again."""
    context.checkpoints.sweep(kept(context.ledger.state))


def kept(state: State) -> frozenset[str]:
    """All of every run that is under way, and of the last that ended; none of those that were cancelled."""
    made = {checkpoint.run for checkpoint in state.training_checkpoints.values()}
    runs = [run for run in state.runs.values() if run.id in made and run.status != "cancelled"]
    ended = [run.id for run in runs if run.status in ("sealed", "failed")]
    query = {replay.run for replay in state.replays.values() if replay.status == "requested"}
    wanted = {run.id for run in runs} - set(ended[:-REPLAYABLE_RUNS]) | query
    return frozenset(made.digest for made in state.training_checkpoints.values() if made.run in wanted)
