"""What Slurm's commands answered on a real cluster of version 24.11, and what the service makes of it.

`recorded` has their JSON, without the members that nothing reads.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput, Unavailable
from appliance.slurm import commands
from appliance.slurm.commands import REFUSED, UNREACHABLE, Commands, SlurmJob

RECORDED = Path(__file__).parent / "recorded"
JOBS = (RECORDED / "jobs.json").read_bytes()
NONE = (RECORDED / "none.json").read_bytes()
Answering = Callable[..., Commands]


@pytest.fixture
def answering(tmp_path: Path) -> Answering:
    """Commands that each write this and end so. What they were given is in `given`, their arguments in `arguments`."""

    def make(said: bytes = b"", complaint: str = "", code: int = 0) -> Commands:
        (tmp_path / "said").write_bytes(said)
        (tmp_path / "complaint").write_text(complaint)
        place = shlex.quote(str(tmp_path))
        for name in ("sbatch", "squeue", "scontrol", "scancel"):
            path = tmp_path / name
            keep = f'cat > {place}/given\nprintf "%s\\n" "$@" > {place}/arguments\n'
            path.write_text(f"#!/bin/sh\n{keep}cat {place}/said\ncat {place}/complaint >&2\nexit {code}\n")
            path.chmod(0o700)
        return Commands(tmp_path, {})

    return make


def test_a_jobs_state_node_and_comment_are_read_from_the_real_json(answering: Answering) -> None:
    jobs = json.loads(JOBS)["jobs"]
    found = answering(JOBS).show(jobs[0]["job_id"])
    assert found is not None
    assert (found.node, found.states, found.restarts) == ("n1", {"RUNNING"}, 0)
    assert found.comment == jobs[0]["comment"]
    assert found.runs
    assert not found.over
    assert answering(JOBS).find(found.comment) == [found]
    assert answering(JOBS).find("appliance:another") == []


def test_a_job_is_submitted_with_its_script_on_stdin(answering: Answering, tmp_path: Path) -> None:
    assert answering(b"17\n").submit(["--partition=idle"], b"#!/bin/sh\n") == 17
    assert answering(b"18;cluster\n").submit(["--partition=idle"], b"#!/bin/sh\n") == 18
    assert (tmp_path / "given").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "arguments").read_text().split() == ["--parsable", "--partition=idle"]


@pytest.mark.parametrize(
    "complaint",
    [
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
        "sbatch: error: CPU count per node can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Invalid generic resource (gres) specification",
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
    ],
)
def test_a_refused_job_is_refused_in_slurms_own_words(answering: Answering, complaint: str) -> None:
    with pytest.raises(BadInput) as refused:
        answering(complaint=complaint, code=1).submit([], b"")
    assert refused.value.code == REFUSED
    assert refused.value.message == f"slurm, sbatch: expected it to be done, got: {' '.join(complaint.split())}"


@pytest.mark.parametrize(
    "complaint",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_a_controller_that_does_not_answer_is_told_apart_from_a_refusal(answering: Answering, complaint: str) -> None:
    for act in (lambda slurm: slurm.submit([], b""), lambda slurm: slurm.show(1), lambda slurm: slurm.cancel(1)):
        with pytest.raises(Unavailable) as gone:
            act(answering(complaint=complaint, code=1))
        assert gone.value.code == UNREACHABLE


def test_a_command_that_hangs_counts_as_no_answer(
    answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_TIMEOUT_S", 0.05)
    slurm = answering()
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 10\n")
    with pytest.raises(Unavailable, match="expected an answer within") as gone:
        slurm.find("x")
    assert gone.value.code == UNREACHABLE


def test_a_job_that_slurm_forgot_is_none_and_ends_without_an_error(answering: Answering) -> None:
    # scontrol ends well with --json, whatever it says beside it.
    assert answering(NONE, "slurm_load_jobs error: Invalid job id specified").show(9) is None
    assert answering(NONE).show(9) is None
    answering(complaint="scancel: error: Kill job error on job id 9: Invalid job id specified", code=1).cancel(9)


def test_commands_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"sbatch: expected Slurm's command, got No such file .*set slurm_commands"):
        Commands(tmp_path, {}).submit([], b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"jobs": 7}',
        b'{"jobs": [{"job_id": "1", "job_state": ["RUNNING"]}]}',
        b'{"jobs": [{"job_id": 1}]}',
        b'{"jobs": [{"job_id": 1, "job_state": ["a b"]}]}',
        b'{"jobs": [{"job_id": 1, "job_state": ["RUNNING"], "restart_cnt": -1}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_other_json_is_refused(answering: Answering, answer: bytes) -> None:
    with pytest.raises(Unavailable, match=r"expected the JSON of Slurm 23\.02 or later"):
        answering(answer).find("x")


def test_what_slurm_says_reaches_no_terminal_as_it_is(answering: Answering) -> None:
    with pytest.raises(BadInput) as refused:
        answering(complaint="sbatch: \x1b[31mred\x07" + "x" * 10_000, code=1).submit([], b"")
    assert "\x1b" not in refused.value.message
    assert len(refused.value.message) < 400


def job(*states: str, **more: Any) -> SlurmJob:
    return SlurmJob(
        **{"id": 1, "reason": "None", "node": "n1", "restarts": 0, "comment": "", **more}, states=frozenset(states)
    )


@pytest.mark.parametrize(
    ("states", "over"),
    [
        (("PENDING",), False),
        (("RUNNING",), False),
        (("SUSPENDED",), False),
        (("NODE_FAIL", "COMPLETING"), False),
        (("PREEMPTED", "REQUEUED"), False),
        (("COMPLETED", "REQUEUE_HOLD"), False),
        (("COMPLETED",), True),
        (("TIMEOUT",), True),
        (("NODE_FAIL",), True),
        (("OUT_OF_MEMORY",), True),
        (("CANCELLED",), True),
    ],
)
def test_a_job_is_over_once_nothing_of_it_runs_or_will(states: tuple[str, ...], over: bool) -> None:
    assert job(*states).over == over


def test_a_state_is_told_with_its_reason() -> None:
    assert job("PENDING", reason="Resources").state_text == "PENDING (Resources)"
    assert job("RUNNING").state_text == "RUNNING"
