"""The training worker, which trains one adapter, or a window of a run's steps once more. It does not evaluate.

Here is what precedes torch: the other ranks on this machine are forks. Each rank then imports `worker/training.py`.
"""

from __future__ import annotations

from functools import partial

from appliance.worker.link import Header, WorkerLink, take
from appliance.worker.ranks import Ends, Incoming, check_share, start_ranks, take_card, take_shape


def work(session: WorkerLink) -> Header:
    """Train from the start, or from the training checkpoint in the blob.

    The task's `seconds` is the time that the run had taken up to that checkpoint. `rank` is set in a worker on another
    node than the first, and `stop`, the last step of the window, in a replay.
    """
    task, blob = session.expect("go")
    if "rank" in task:
        return run_remote_rank(session, task, blob, take(task, "rank", int))
    with start_ranks(session, take_shape(task), partial(follow, task, blob)) as ends:
        from appliance.worker import training

        lead = training.replay if "stop" in task else training.lead
        return lead(session, task, blob, ends)


def run_remote_rank(session: WorkerLink, task: Header, blob: bytes, rank: int) -> Header:
    """Run a rank on another node, which exchanges data with rank 0 in frames."""
    shape = take_shape(task)
    check_share(shape.device, shape.here)
    take_card(shape.device, rank % shape.here, shape.here)
    from appliance.worker.training import train_along

    train_along(task, blob, rank, Incoming(session, [rank]).channels())
    return {}


def follow(task: Header, blob: bytes, rank: int, ends: Ends) -> None:
    """Run another rank on the machine of rank 0."""
    from appliance.worker.training import open_pipes, train_along

    train_along(task, blob, rank, open_pipes(ends))
