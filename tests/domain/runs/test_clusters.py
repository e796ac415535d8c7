"""A run trains at the ordered place, under an account of the policy; its job may be preempted repeatedly."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.records.runs import Run, SlurmJobStart
from appliance.domain.runs.conditions import MOST_RESUMES, find_next_run
from appliance.errors import BadInput, Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage

RUN = "r-000001"


def job(restart: int = 0, number: int = 7) -> SlurmJobStart:
    return SlurmJobStart(id=number, restart=restart, nodes=("n1",))


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


@pytest.mark.parametrize(("on", "where"), [("slurm", None), ("local", job())])
def test_a_run_starts_nowhere_but_where_it_was_ordered(on: str, where: SlurmJobStart | None) -> None:
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


def test_a_local_run_whose_worker_ends_before_its_first_checkpoint_begins_again_three_times() -> None:
    log = ordered("local")
    for restart in range(MOST_RESUMES + 1):
        log.add(log.started(RUN))
        assert row(log).resumes == restart
    with pytest.raises(Denied, match=f"resumes: expected at most {MOST_RESUMES}"):
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
    with pytest.raises(Denied, match=r"Policy \(slurm_accounts\) gives olga no Slurm account\."):
        ordered(slurm_accounts=accounts)
    assert ordered("local", slurm_accounts=accounts).state.runs.get(RUN) is not None
    assert ordered(slurm_accounts=({"person": "olga", "account": "research"},)).state.runs.get(RUN) is not None


def test_a_person_has_one_account() -> None:
    rows = [{"person": "olga", "account": name} for name in ("one", "two")]
    with pytest.raises((BadInput, ValueError), match="slurm_accounts: expected each person once, got olga twice"):
        policy_set(slurm_accounts=tuple(rows))


def test_each_place_has_its_own_queue() -> None:
    log = ordered()
    log.request_run(on="local")
    here, there = find_next_run(log.state), find_next_run(log.state, "slurm")
    assert here is not None
    assert there is not None
    assert (here.id, there.id) == ("r-000002", RUN)
    assert find_next_run(log.state, "slurm", {RUN}) is None


@pytest.mark.parametrize(
    ("on", "nodes", "processes", "said"),
    [
        ("local", 2, 2, "A run on this machine has one node"),
        ("slurm", 2, 3, r"The recipe's 3 processes cannot be divided equally among 2 nodes\."),
        ("slurm", 4, 2, r"The recipe's 2 processes cannot be divided equally among 4 nodes\."),
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
        log.add(log.started(RUN, job=SlurmJobStart(id=7, restart=0, nodes=nodes)))
    log.add(log.started(RUN, job=SlurmJobStart(id=7, restart=0, nodes=("n1", "n2"))))
    assert row(log).nodes == 2
