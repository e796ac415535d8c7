"""A run trains where its signer ordered it, under an account that policy gave; a job may be preempted often."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.records.runs import Job, Run
from appliance.domain.runs.conditions import MOST_RESUMES, next_queued
from appliance.errors import BadInput, Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage

RUN = "r-000001"


def job(restart: int = 0, number: int = 7) -> Job:
    return Job(id=number, restart=restart, nodes=("n1",))


def ordered(on: str = "slurm", **parameters: Any) -> LogBuilder:
    log = stage("imported", policy_set(**parameters)).fork() if parameters else stage("imported").fork()
    log.request_run(on=on)
    return log


def row(log: LogBuilder) -> Run:
    found = log.state.runs.get(RUN)
    assert found is not None
    return found


def test_a_start_on_slurm_names_its_job() -> None:
    log = ordered()
    log.add(log.started(RUN, job=job()))
    assert (row(log).status, row(log).job, row(log).on) == ("running", job(), "slurm")


@pytest.mark.parametrize(("on", "where"), [("slurm", None), ("here", job())])
def test_a_run_starts_nowhere_but_where_it_was_ordered(on: str, where: Job | None) -> None:
    log = ordered(on)
    with pytest.raises(Denied, match=f"job: expected a worker on {on}, as it was ordered"):
        log.add(log.started(RUN, job=where))
    assert row(log).status == "queued"


def test_one_start_of_a_job_is_recorded_once() -> None:
    log = ordered()
    log.add(log.started(RUN, job=job()))
    with pytest.raises(Denied, match="job: expected another start than the last"):
        log.add(log.started(RUN, job=job()))


def test_a_job_that_is_requeued_before_its_first_checkpoint_begins_again_three_times() -> None:
    log = ordered()
    for restart in range(MOST_RESUMES + 1):
        log.add(log.started(RUN, job=job(restart)))
        assert row(log).resumes == restart
    with pytest.raises(Denied, match=f"resumes: expected at most {MOST_RESUMES}"):
        log.add(log.started(RUN, job=job(MOST_RESUMES + 1)))


def test_a_run_here_does_not_begin_twice() -> None:
    log = ordered("here")
    log.add(log.started(RUN))
    with pytest.raises(Denied, match="expected one that is queued, got running"):
        log.add(log.started(RUN))


def test_preemptions_that_each_leave_a_checkpoint_are_counted_anew() -> None:
    log = ordered()
    log.add(log.started(RUN, job=job()))
    for step in range(1, 3 * MOST_RESUMES):
        log.add(log.checkpointed(RUN, step))
        log.add(log.resumed(RUN, step, job=job(step)))
        assert row(log).resumes == 1
    step = row(log).step
    for restart in range(100, 100 + MOST_RESUMES - 1):
        log.add(log.resumed(RUN, step, job=job(restart)))
    with pytest.raises(Denied, match=f"resumes: expected at most {MOST_RESUMES}"):
        log.add(log.resumed(RUN, step, job=job(200)))


def test_only_persons_to_whom_policy_gives_an_account_train_on_slurm() -> None:
    accounts = ({"person": "otto", "account": "research"},)
    with pytest.raises(Denied, match="slurm: expected an account for olga in the policy's slurm_accounts, got none"):
        ordered(slurm_accounts=accounts)
    assert ordered("here", slurm_accounts=accounts).state.runs.get(RUN) is not None
    assert ordered(slurm_accounts=({"person": "olga", "account": "research"},)).state.runs.get(RUN) is not None


def test_a_person_has_one_account() -> None:
    rows = [{"person": "olga", "account": name} for name in ("one", "two")]
    with pytest.raises((BadInput, ValueError), match="slurm_accounts: expected each person once, got olga twice"):
        policy_set(slurm_accounts=tuple(rows))


def test_each_place_has_its_own_queue() -> None:
    log = ordered()
    log.request_run(on="here")
    here, there = next_queued(log.state), next_queued(log.state, "slurm")
    assert here is not None
    assert there is not None
    assert (here.id, there.id) == ("r-000002", RUN)
    assert next_queued(log.state, "slurm", {RUN}) is None


@pytest.mark.parametrize(
    ("on", "nodes", "processes", "said"),
    [
        ("here", 2, 2, "nodes: expected 1 with `on: here`, got 2"),
        ("slurm", 2, 3, "nodes: expected a divisor of the recipe's 3 processes, got 2"),
        ("slurm", 4, 2, "nodes: expected a divisor of the recipe's 2 processes, got 4"),
    ],
)
def test_nodes_are_a_clusters_and_share_out_the_processes(on: str, nodes: int, processes: int, said: str) -> None:
    log = stage("imported").fork()
    with pytest.raises(Denied, match=said):
        log.request_run(on=on, nodes=nodes, recipe={"processes": processes})


@pytest.mark.parametrize("nodes", [("n1",), ("n1", "n1"), ("n1", "n2", "n3")])
def test_a_run_starts_on_as_many_nodes_as_were_ordered(nodes: tuple[str, ...]) -> None:
    log = stage("imported").fork()
    log.request_run(on="slurm", nodes=2, recipe={"processes": 4})
    with pytest.raises(Denied, match=f"job, nodes: expected 2, as it was ordered, got {len(set(nodes))}"):
        log.add(log.started(RUN, job=Job(id=7, restart=0, nodes=nodes)))
    log.add(log.started(RUN, job=Job(id=7, restart=0, nodes=("n1", "n2"))))
    assert row(log).nodes == 2
