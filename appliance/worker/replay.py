"""The replay worker, which trains a window of a run's steps as the run did, without evaluating."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from appliance.worker.link import Header, WorkerLink, run_worker, take, take_path
from appliance.worker.ranks import Ends, start_ranks, take_shape
from appliance.worker.train import follow, prepare, take_recipe


def work(session: WorkerLink, task: Header, blob: bytes) -> Header:
    """Replay the window from the training checkpoint `blob`, or from the start of the run if `blob` is empty."""
    with start_ranks(session, take_shape(task), partial(follow, task, blob, take(task, "stop", int))) as ends:
        return lead(session, task, blob, ends)


def lead(session: WorkerLink, task: Header, blob: bytes, ends: Ends) -> Header:
    """Run rank 0, which records the steps and writes the checkpoint at the end of the window."""
    from appliance.ml.model import machine
    from appliance.ml.training.checkpoint import encode_checkpoint
    from appliance.ml.training.loop import StepMeasurement, train
    from appliance.ml.training.privacy import take_secret
    from appliance.ml.training.ranks import Pipe, Ranks

    recipe, stop = take_recipe(task), take(task, "stop", int)
    ranks, start = Ranks(0, recipe["processes"], [Pipe(*pair) for pair in ends]), blob or None
    before, got = Path(take_path(task, "before")), Path(take_path(task, "got"))
    base, model, samples, validation = prepare(task)

    def report(step: StepMeasurement) -> None:
        session.send({"frame": "step", **asdict(step)})

    secret = take_secret(recipe, task)
    if not blob:
        before.write_bytes(encode_checkpoint(train(base, model, samples, recipe, report, stop=0, secret=secret)))
    training = train(
        *(base, model, samples, recipe, report),
        start=start,
        stop=stop,
        validation=validation,
        ranks=ranks,
        secret=secret,
    )
    got.write_bytes(encode_checkpoint(training))
    return {"step": training.step, "machine": machine.describe_kind(recipe["device"])}


if __name__ == "__main__":
    sys.exit(run_worker(work))
