"""A run's place of training follows from its order and the cluster's settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.records.runs import SlurmJobStart
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.errors import BadInput, Conflict, Denied, Unavailable
from appliance.slurm.commands import UNREACHABLE
from appliance.slurm.worker import ClusterWorker
from appliance.workflows.core.jobs import ItemsInProgress, Jobs
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.retry import stop_run_workers
from appliance.workflows.runs import places, train
from scripts.kit.log_builder import stage
from scripts.kit.waiting import wait_for

RUN = "r-000001"


def recipe(processes: int = 1) -> Any:
    return SimpleNamespace(processes=processes, device="cpu")


def cluster(cpus: int = 4, **more: Any) -> Any:
    return SimpleNamespace(site=SimpleNamespace(resources=SimpleNamespace(cpus=cpus)), **more)


def test_a_run_on_slurm_needs_a_cluster_whose_cpus_its_processes_divide() -> None:
    context: Any = SimpleNamespace(cluster=None)
    places.check_place(context, "local", recipe(7))
    with pytest.raises(BadInput, match="trains on: expected local, since this appliance has no Slurm"):
        places.check_place(context, "slurm", recipe())
    context.cluster = cluster()
    places.check_place(context, "slurm", recipe(2))
    places.check_place(context, "slurm", recipe(12), nodes=3)
    with pytest.raises(BadInput, match="processes: expected a divisor of this machine's 4 threads, got 3"):
        places.check_place(context, "slurm", recipe(3))


def worker(number: int = 7, attempt: int = 0) -> ClusterWorker:
    made = ClusterWorker.__new__(ClusterWorker)
    made.pid, made.attempt, made.nodes = number, attempt, ("n1",)
    return made


def test_a_start_that_is_recorded_is_not_recorded_again() -> None:
    log = stage("imported").fork()
    log.request_run(on="slurm")
    log.add(log.started(RUN, job=SlurmJobStart(id=7, restart=0, nodes=("n1",))))
    run = log.state.runs.get(RUN)
    assert run is not None
    assert places.has_begun_before(run, worker())
    assert not places.has_begun_before(run, worker(attempt=1))
    assert not places.has_begun_before(run, worker(number=8))


def test_what_this_machine_computes_of_a_run_on_slurm_waits_for_its_turn() -> None:
    context: Any = SimpleNamespace(runs=Jobs("runs"), closing=threading.Event())
    run: Any = SimpleNamespace(id=RUN, on="slurm")
    over, order = threading.Event(), list[str]()
    context.runs.put(lambda: (over.wait(), order.append("earlier"))[0])
    threading.Timer(0.05, over.set).start()
    assert places.compute_in_turn(context, run, lambda: order.append("this") or "adapter@1") == "adapter@1"  # type: ignore[func-returns-value]
    assert order == ["earlier", "this"]

    def fail() -> str:
        raise Conflict("not sealed")

    with pytest.raises(Conflict, match="not sealed"):
        places.compute_in_turn(context, run, fail)
    context.runs.stop(10)


def test_a_turn_that_does_not_come_before_the_services_end_is_left_to_its_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "LOOK_S", 0.01)
    context: Any = SimpleNamespace(runs=Jobs("runs"), closing=threading.Event())
    over = threading.Event()
    context.runs.put(over.wait)
    context.closing.set()
    with pytest.raises(Unavailable, match="expected its turn to be evaluated, got the service's end"):
        places.compute_in_turn(context, SimpleNamespace(id=RUN, on="slurm"), lambda: None)  # type: ignore[arg-type]
    over.set()
    context.runs.stop(10)


def test_runs_on_slurm_go_on_side_by_side_and_none_of_them_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stage("imported").fork()
    for on in ("slurm", "slurm", "local"):
        log.request_run(on=on)
    begun, over = list[str](), threading.Event()

    def carry(context: Any, run: Any) -> None:
        begun.append(run.id)
        over.wait(60)

    monkeypatch.setattr(train, "_run_to_end", carry)
    context: Any = SimpleNamespace(
        ledger=SimpleNamespace(state=log.state),
        closing=threading.Event(),
        items_in_progress=ItemsInProgress(),
        runs_here=True,
        runs=Jobs("runs"),
        cluster_runs=Jobs("runs on Slurm", threads=8),
    )
    for _ in range(2):
        for on in ("slurm", "slurm", "local"):
            train.enqueue(context, on)
    wait_for(lambda: len(begun) >= 3, "three runs")
    assert sorted(begun) == ["r-000001", "r-000002", "r-000003"]
    assert not train.execute_run(context, RUN)
    monkeypatch.setattr(train, "_run_to_end", lambda *_: None)
    context.closing.set()
    over.set()
    for jobs in (context.runs, context.cluster_runs):
        jobs.stop(10)
    assert len(begun) == 3


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({"status": "running", "step": 0}, True),  # its job may be found, or begins again
        ({"status": "running", "step": 0, "resumes": 3}, False),
        ({"status": "running", "step": 9, "began": 5, "resumes": 3}, True),
        ({"status": "running", "step": 5, "began": 5, "resumes": 3}, False),
        ({"status": "failed", "step": 5}, False),
    ],
)
def test_a_run_on_slurm_continues_while_its_workers_get_further(changes: dict[str, Any], goes_on: bool) -> None:
    log = stage("imported").fork()
    log.request_run(on="slurm")
    run = log.state.runs.get(RUN)
    assert run is not None
    assert train.can_continue_run(run.model_copy(update=changes)) == goes_on
    here = run.model_copy(update={**changes, "on": "local"})
    assert train.can_continue_run(here) == (goes_on and "began" not in changes)


@pytest.mark.parametrize("end", ["cancelled", "withdrawn"])
def test_a_run_that_ends_while_its_job_is_submitted_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Who cancelled it found no worker yet."""
    log = stage("imported").fork()
    log.request_run(on="slurm")
    run = log.state.runs.get(RUN)
    assert run is not None

    @contextmanager
    def submitted(*_: Any) -> Iterator[Any]:
        stop_run_workers(context, RUN)
        if end == "cancelled":
            log.ordered(RunCancelled(policy=log.in_force), log.order(Cancel, "olga", run=RUN))
        else:
            monkeypatch.setattr(places, "find_withdrawn_input", lambda state, run: Denied("revoked"))
        yield SimpleNamespace(pid=7)

    monkeypatch.setattr(places, "_open", submitted)
    context: Any = SimpleNamespace(
        ledger=SimpleNamespace(state=log.state), closing=threading.Event(), workers={}, reserve=None
    )
    with (
        pytest.raises(Unavailable, match="run r-000001: expected it to continue"),
        places.trainer(context, run, recipe(), (), (tmp_path,)),
    ):
        raise AssertionError("it waits for its probes")
    assert not context.workers


def test_what_is_evaluated_when_the_service_ends_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders are removed by who waits."""
    monkeypatch.setattr(places, "LOOK_S", 0.01)
    context: Any = SimpleNamespace(runs=Jobs("runs"), closing=threading.Event())

    def evaluate() -> str:
        context.closing.set()
        time.sleep(0.2)
        return "sealed"

    assert places.compute_in_turn(context, SimpleNamespace(id=RUN, on="slurm"), evaluate) == "sealed"  # type: ignore[arg-type]
    context.runs.stop(10)


def test_a_turn_that_was_given_up_does_not_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LOOK_S", 0.01)
    context: Any = SimpleNamespace(runs=Jobs("runs"), closing=threading.Event())
    over, evaluated = threading.Event(), list[str]()
    context.runs.put(over.wait)
    context.closing.set()
    with pytest.raises(Unavailable):
        places.compute_in_turn(context, SimpleNamespace(id=RUN, on="slurm"), lambda: evaluated.append(RUN))  # type: ignore[arg-type]
    over.set()
    context.runs.stop(10)
    assert not evaluated


def test_nothing_is_evaluated_once_the_service_ends() -> None:
    context: Any = SimpleNamespace(closing=threading.Event())
    context.closing.set()
    with pytest.raises(Unavailable, match="run r-000001: expected to be evaluated, got the service's end"):
        train._evaluate_and_seal(context, SimpleNamespace(id=RUN), *[None] * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("who", ["the sweep", "the thread that had it"])
def test_a_run_that_is_resumed_while_its_job_is_ended_does_not_miss_its_turn(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """slurmctld hangs: each command takes a minute, and the run is in hand for as long."""
    log = stage("imported").fork()
    log.request_run(on="slurm")
    run = log.state.runs.get(RUN)
    assert run is not None
    runs = {RUN: run.model_copy(update={"status": "failed"})}
    carried = threading.Event()

    def wait_for_turn() -> None:
        wait_for(lambda: not context.cluster_runs.busy, "the end of all work")

    def resume_meanwhile(*_: object) -> None:
        monkeypatch.setattr(train, "_run_to_end", lambda *_: carried.set())
        runs[RUN] = run.model_copy(update={"queued": run.queued + 1})
        train.enqueue(context, "slurm")
        wait_for_turn()
        assert not carried.is_set()

    context: Any = SimpleNamespace(
        cluster=cluster(release=resume_meanwhile, clear=lambda: None, list_keys=lambda: [RUN]),
        ledger=SimpleNamespace(state=SimpleNamespace(runs=runs)),
        closing=threading.Event(),
        items_in_progress=ItemsInProgress(),
        runs_here=True,
        cluster_runs=Jobs("runs on Slurm", threads=8),
    )
    if who == "the sweep":
        places.sweep(context, train.requeue_run)
    else:
        runs[RUN] = run
        monkeypatch.setattr(train, "_run_to_end", resume_meanwhile)
        train.execute_run(context, RUN)
    assert carried.wait(60)
    context.closing.set()
    context.cluster_runs.stop(10)


def test_a_job_that_cannot_be_ended_is_said_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stage("imported").fork()
    for _ in range(3):
        log.request_run(on="slurm")
    for run in ("r-000002", "r-000003"):
        log.ordered(RunCancelled(policy=log.in_force), log.order(Cancel, "olga", run=run))
    asked, cleared = list[str](), list[bool]()

    def clear() -> None:
        cleared.append(True)
        raise Unavailable("shared folder: expected it to work")

    def gone(key: str) -> None:
        asked.append(key)
        raise Unavailable("slurm, squeue: expected slurmctld to answer", code=UNREACHABLE)

    context: Any = SimpleNamespace(
        cluster=cluster(release=gone, clear=clear, list_keys=lambda: ["r-000001", "r-000002", "r-000003"]),
        ledger=SimpleNamespace(state=log.state),
        progress=Progress(),
        items_in_progress=ItemsInProgress(),
        runs_here=True,
    )
    context.items_in_progress.take("r-000003")
    places.release(context, "r-000002")
    assert "the job of run r-000002 could not be ended; it is tried again" in caplog.text
    asked.clear()
    rounds: list[Callable[[], object]] = []
    monkeypatch.setattr(places.retry, "start", lambda context, name, every_s, work, **_: rounds.append(work))
    places.start(context, train.requeue_run)
    rounds[0]()
    assert asked == ["r-000002"], "neither one that is under way nor one that a thread works on"
    assert "r-000002" not in context.items_in_progress
    assert cleared and "the shared folder of Slurm could not be cleared" in caplog.text
    context.runs_here = False
    rounds[0]()
    assert len(asked) == 1
    context.cluster = None
    places.release(context, RUN)
    places.sweep(context, train.requeue_run)
    places.start(context, train.requeue_run)
    assert len(rounds) == 1
