"""The service's side of a job: frames of a node, acts of Slurm, and recovery after a power cut.

Slurm and the node are this test's own: it writes a node's records as the launcher there does.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.slurm import cluster as clusters
from appliance.slurm import folder as names
from appliance.slurm import spool
from appliance.slurm import worker as workers
from appliance.slurm.cluster import Cluster, ClusterSettings, Resources, describe_inputs
from appliance.slurm.commands import UNREACHABLE, SlurmJob
from appliance.slurm.folder import (
    JobDescription,
    JobRecords,
    encode_record,
    job_folder,
    label_of,
    parse_description,
    parse_record,
)
from appliance.slurm.objects import put_file
from appliance.slurm.spool import SpoolReader, SpoolWriter
from appliance.slurm.worker import PROBES, ClusterWorker

CODE = digest_bytes(b"code")
ROWS = b'{"text": "a row"}\n'
REFUSED_PROBES = dict.fromkeys(PROBES, "refused")
RESULT = {"frame": "result", "steps": 3}
GONE = Unavailable("slurm, squeue: expected slurmctld to answer, got none", code=UNREACHABLE)


class Slurm:
    """What the service asks of Slurm's commands. `error` is raised instead, the last answer of sbatch may be `lost`."""

    def __init__(self) -> None:
        self.jobs: dict[int, SlurmJob] = {}
        self.scripts: list[bytes] = []
        self.options: list[str] = []
        self.cancelled: list[int] = []
        self.error: ApplianceError | None = None
        self.lost = 0
        self.fails = 0

    def _check(self) -> None:
        if self.fails:
            self.fails -= 1
            raise GONE
        if self.error is not None:
            raise self.error

    def submit(self, options: list[str], script: bytes) -> int:
        self._check()
        number = len(self.jobs) + 1
        comment = next(option for option in options if option.startswith("--comment=")).partition("=")[2]
        self.jobs[number] = SlurmJob(number, frozenset({"PENDING"}), "None", "", 0, comment)
        self.scripts.append(script)
        self.options = options
        if self.lost:
            self.lost -= 1
            raise GONE
        return number

    def show(self, job: int) -> SlurmJob | None:
        self._check()
        return self.jobs.get(job)

    def find(self, comment: str) -> list[SlurmJob]:
        self._check()
        return [job for job in self.jobs.values() if job.comment == comment]

    def cancel(self, job: int) -> None:
        self._check()
        self.cancelled.append(job)

    def become(self, *states: str, number: int = 1) -> None:
        job = self.jobs[number]
        self.jobs[number] = SlurmJob(job.id, frozenset(states), "None", "n1", job.restarts, job.comment)


class Bench:
    """A cluster, a sealed folder to read, and a folder to write to."""

    def __init__(self, place: Path) -> None:
        self.place, self.slurm = place, Slurm()
        self.shared, self.write = place / "shared", place / "write"
        self.read = place / digest_bytes(b"manifest").removeprefix("sha256:")
        for path in (self.shared, self.write, self.read):
            path.mkdir()
        (self.read / "rows.jsonl").write_bytes(ROWS)
        self.closing = threading.Event()
        self.reported: list[str] = []

    @property
    def cluster(self) -> Cluster:
        """Anew each time, as after a restart of the service."""
        resources = Resources(partition="idle", cpus=2, time_limit="1:00:00")
        site = ClusterSettings(self.shared, resources, patience_s=0.2)
        return Cluster(site, self.slurm, JobRecords(self.place / "jobs"), self.closing)  # type: ignore[arg-type]

    def submit(
        self,
        account: str | None = None,
        key: str = "r-000001",
        stop: Callable[[], bool] = lambda: False,
        cluster: Cluster | None = None,
    ) -> Any:
        files = [("rows.jsonl", len(ROWS), digest_bytes(ROWS))]
        described = JobDescription(
            key=key,
            module="appliance.worker.train",
            code=CODE,
            gpu=False,
            accepted_missing=(),
            inputs=(describe_inputs(self.read.name, files),),
            writes=1,
            scratch="/var/tmp",
        )
        return (cluster or self.cluster).submit(described, (self.read,), account, stop)

    def worker(self, record: Any = None, **more: Any) -> ClusterWorker:
        record = record or self.cluster.records.find("r-000001") or self.submit()
        given = {"code": CODE, "read": (self.read,), "write": (self.write,), "log": self.place / "log", **more}
        return ClusterWorker(self.cluster, record, report_state=self.reported.append, **given)

    def node(self, attempt: int = 0, *records: dict[str, Any], secret: str | None = None) -> SpoolWriter:
        """Write the node's frames of this start, and return the writer."""
        record = self.cluster.records.find("r-000001")
        assert record is not None
        place = job_folder(record.folder) / names.ATTEMPTS / str(attempt)
        place.path.mkdir(exist_ok=True)
        key = bytes.fromhex(secret or record.secret)
        writer = SpoolWriter(place, names.OUT, key, label_of(attempt, names.OUT))
        for one in records:
            writer.append(encode_record(one))
        return writer

    def answers(self, attempt: int = 0) -> list[dict[str, Any]]:
        """Return the service's answers to that start."""
        record = self.cluster.records.find("r-000001")
        assert record is not None
        place = job_folder(record.folder) / names.ATTEMPTS / str(attempt)
        found = SpoolReader(place, names.IN, bytes.fromhex(record.secret), label_of(attempt, names.IN))
        return [parse_record(payload) for payload in iter(found.take, None)]

    def leave(self, data: bytes, path: str = "weights", folder: int = 0) -> dict[str, Any]:
        """Write a file of the worker, and return its node's description."""
        record = self.cluster.records.find("r-000001")
        assert record is not None
        (self.place / "left").write_bytes(data)
        descriptor = os.open(self.place / "left", os.O_RDONLY)
        digest, size = put_file(descriptor, job_folder(record.folder) / names.OBJECTS)
        os.close(descriptor)
        return {"folder": folder, "path": path, "size": size, "digest": digest}


HELLO = {"frame": "hello", "job": 1, "node": "n1", "code": CODE}
SANDBOX = {"frame": "sandbox", "results": REFUSED_PROBES, "layers": {"seccomp": True}, "reasons": {}, "nodes": ["n1"]}


def said(header: dict[str, Any], *files: dict[str, Any]) -> dict[str, Any]:
    return {"frame": "frame", "header": header, "files": list(files)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(workers, "POLL_S", 0.002)
    monkeypatch.setattr(workers, "STATUS_S", 0.0)
    monkeypatch.setattr(workers, "SETTLES_S", 0.01)
    monkeypatch.setattr(clusters, "AGAIN_S", 0.01)
    return Bench(tmp_path)


# --- submission -------------------------------------------------------------------------------------------------------


def test_a_job_gets_its_key_on_stdin_and_its_inputs_by_digest(bench: Bench) -> None:
    record = bench.submit(account="research")
    assert record.job == 1
    (script,) = bench.slurm.scripts
    assert script.endswith(f"<<'END'\n{record.secret}\nEND\n".encode())
    assert not any(record.secret in option for option in bench.slurm.options)
    told = {"--partition=idle", "--account=research", "--time=1:00:00", "--cpus-per-task=2", "--requeue"}
    assert told <= set(bench.slurm.options)
    assert (bench.shared / names.OBJECTS / digest_bytes(ROWS).removeprefix("sha256:")).read_bytes() == ROWS
    job = SpoolReader(job_folder(record.folder), names.JOB, bytes.fromhex(record.secret), names.JOB).take()
    assert job is not None
    described = parse_description(job)
    assert (described.key, described.inputs[0].files[0].digest) == ("r-000001", digest_bytes(ROWS))


def test_a_sealed_file_that_changed_is_not_submitted(bench: Bench) -> None:
    (bench.read / "rows.jsonl").write_bytes(b"other rows\n")
    with pytest.raises(Tampered, match=r"rows\.jsonl: expected sha256:"):
        bench.submit()
    assert not bench.slurm.jobs
    assert bench.cluster.records.find("r-000001") is None
    assert not list((bench.shared / "jobs").iterdir())


def test_a_refused_job_leaves_nothing_behind(bench: Bench) -> None:
    words = "sbatch: error: invalid partition specified: nope"
    bench.slurm.submit = lambda options, script: (_ for _ in ()).throw(BadInput(words, code="slurm-refused"))  # type: ignore[method-assign]
    with pytest.raises(BadInput, match="invalid partition"):
        bench.submit()
    assert bench.cluster.records.find("r-000001") is None
    assert not list((bench.shared / "jobs").iterdir())
    assert not list((bench.shared / names.OBJECTS).iterdir())


@pytest.mark.parametrize("lost", [0, 1])
def test_a_submission_whose_answer_was_lost_is_looked_for_and_not_made_twice(bench: Bench, lost: int) -> None:
    bench.slurm.fails, bench.slurm.lost = 2, lost
    assert bench.submit().job == 1
    assert len(bench.slurm.jobs) == 1


def test_a_controller_that_stays_away_ends_the_waiting_and_keeps_what_may_be_there(bench: Bench) -> None:
    bench.slurm.error = GONE
    with pytest.raises(Unavailable) as gone:
        bench.submit()
    assert gone.value.code == UNREACHABLE
    record = bench.cluster.records.find("r-000001")
    assert record is not None
    assert record.job is None
    # Once it answers, the next look finds that nothing came of it.
    bench.slurm.error = None
    assert bench.cluster.find_job("r-000001", lambda: False) is None
    assert bench.cluster.records.find("r-000001") is None


@pytest.mark.parametrize("known", [True, False])
def test_a_power_cut_between_sbatch_and_the_number_loses_no_job(bench: Bench, known: bool) -> None:
    record = bench.submit()
    bench.cluster.records.keep(record.model_copy(update={"job": None}))
    if not known:  # Slurm has forgotten it; its node left its number
        bench.slurm.jobs.clear()
        (Path(record.folder) / names.OWNER).write_text("1")
    found = bench.cluster.find_job("r-000001", lambda: False)
    assert found is not None
    assert found.job == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "endless", "huge", "folder"])
def test_what_is_no_number_of_a_job_names_none_and_holds_nobody(bench: Bench, kind: str) -> None:
    record = bench.submit()
    bench.cluster.records.keep(record.model_copy(update={"job": None}))
    bench.slurm.jobs.clear()
    owner = Path(record.folder) / names.OWNER
    if kind == "pipe":
        os.mkfifo(owner)
    elif kind == "endless":
        owner.symlink_to("/dev/zero")
    elif kind == "huge":
        owner.touch()
        os.truncate(owner, 1 << 40)
    else:
        owner.mkdir()
    assert bench.cluster.find_job("r-000001", lambda: False) is None


def test_inputs_go_with_the_last_job_that_reads_them(bench: Bench) -> None:
    bench.submit()
    bench.submit(key="r-000002")
    bench.cluster.release("r-000001")
    objects = bench.shared / names.OBJECTS
    assert len(list(objects.iterdir())) == 1
    bench.cluster.release("r-000002")
    assert not list(objects.iterdir())
    assert bench.slurm.cancelled == [1, 2]


def test_a_job_that_could_not_be_ended_is_known_until_it_is(bench: Bench) -> None:
    bench.submit()
    bench.slurm.error = GONE
    with pytest.raises(Unavailable, match="slurmctld"):
        bench.cluster.release("r-000001")
    assert bench.cluster.list_keys() == ["r-000001"]
    bench.slurm.error = None
    bench.cluster.release("r-000001")
    assert (bench.slurm.cancelled, bench.cluster.list_keys()) == ([1], [])


@pytest.mark.parametrize("call", ["unlink", "rename"])
def test_the_files_of_a_job_that_cannot_be_removed_are_removed_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    record, act = bench.submit(), getattr(os, call)

    def refuse(*given: Any, **folders: Any) -> None:
        if folders:  # below a descriptor, as in the shared folder
            raise OSError(errno.ESTALE, "Stale file handle")
        act(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(Unavailable, match="shared: expected it to work, got Stale file handle"):
            bench.cluster.release("r-000001")
    assert bench.cluster.list_keys() == []
    bench.cluster.clear()
    assert not list((bench.shared / names.OBJECTS).iterdir())
    assert not list((bench.shared / "jobs").iterdir()) and not Path(record.folder).exists()
    assert not list((bench.place / "jobs").iterdir())


@pytest.mark.parametrize("vanishes", ["shared", "job"])
def test_what_is_left_of_a_job_goes_once_its_folder_is_back(bench: Bench, vanishes: str) -> None:
    record = bench.submit()
    gone = bench.shared if vanishes == "shared" else Path(record.folder)
    gone.rename(bench.place / "elsewhere")
    if vanishes == "shared":
        bench.shared.mkdir()  # an empty mount point
        with pytest.raises(Unavailable, match="expected one, got none") as caught:
            bench.cluster.release("r-000001")
        assert caught.value.code == "shared-folder"
        bench.shared.rmdir()
    else:
        bench.cluster.release("r-000001")
    (bench.place / "elsewhere").rename(gone)
    assert Path(record.folder).exists()
    bench.cluster.clear()
    assert not list((bench.shared / "jobs").iterdir())
    assert not list((bench.shared / names.OBJECTS).iterdir())
    assert not list((bench.place / "jobs").iterdir())


def test_a_folder_that_stays_away_is_looked_for_only_so_long(bench: Bench) -> None:
    record = bench.submit()
    Path(record.folder).rename(bench.place / "elsewhere")
    bench.cluster.release("r-000001")
    (left,) = (bench.place / "jobs").iterdir()
    bench.cluster.clear()
    assert left.exists()
    os.utime(left, (0, 0))
    bench.cluster.clear()
    assert not left.exists()


def test_a_run_whose_folder_vanishes_has_met_no_other_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing mount is no tampering: only bytes that differ are."""
    monkeypatch.setattr(spool, "SETTLES_S", 0.0)
    record = bench.submit()
    bench.slurm.become("RUNNING")
    bench.node(0, HELLO, SANDBOX).close()
    worker = bench.worker(record)
    worker.check_sandbox()
    bench.shared.rename(bench.place / "elsewhere")
    with pytest.raises(Unavailable, match="see that the folder is mounted") as caught:
        worker.receive(5)
    assert caught.value.code == "shared-folder"


@pytest.mark.parametrize("replaced", ["attempts", "attempts/0", "objects", "."])
def test_nothing_is_written_or_read_through_a_link_in_a_folders_place(bench: Bench, replaced: str) -> None:
    record = bench.submit()
    bench.node(0, HELLO, SANDBOX).close()
    outside, folder = bench.place / "outside", Path(record.folder) / replaced
    folder.rename(outside)
    folder.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with bench.worker(record) as worker, pytest.raises((Tampered, Unavailable)):
        bench.slurm.become("COMPLETED")
        worker.check_sandbox()
        worker.send({"frame": "go"}, b"a training checkpoint")
    assert sorted(outside.rglob("*")) == before
    bench.cluster.release("r-000001")
    assert sorted(outside.rglob("*")) == before


def test_what_was_half_copied_goes_unless_a_submission_copies(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.submit()
    partial = bench.shared / names.OBJECTS / ".partial-0123"
    removed = bench.shared / "jobs" / ".removed-r-000009"
    cluster, copy = bench.cluster, clusters.put_file
    (bench.shared / names.OBJECTS / digest_bytes(ROWS).removeprefix("sha256:")).unlink()

    def copy_and_clear(*given: Any) -> Any:
        partial.write_bytes(b"ro")
        cluster.clear()
        assert partial.exists()
        return copy(*given)

    monkeypatch.setattr(clusters, "put_file", copy_and_clear)
    bench.submit(cluster=cluster, key="r-000002")
    removed.mkdir()
    cluster.clear()
    assert not partial.exists() and not removed.exists()
    assert len(list((bench.shared / names.OBJECTS).iterdir())) == 1


@pytest.mark.parametrize("asked", [1, 2])
def test_a_run_that_ends_while_its_files_cross_is_not_submitted(bench: Bench, asked: int) -> None:
    answers = iter([False] * (asked - 1) + [True])
    with pytest.raises(Unavailable, match="job r-000001: expected to submit it") as caught:
        bench.submit(stop=lambda: next(answers))
    assert caught.value.code == "closing"
    assert not bench.slurm.jobs
    assert bench.cluster.list_keys() == []
    assert not list((bench.shared / names.OBJECTS).iterdir())


# --- a start, from its sandbox to its result --------------------------------------------------------------------------


def test_frames_and_files_arrive_as_of_a_worker_here(bench: Bench) -> None:
    found = bench.worker()
    bench.node(0, HELLO, SANDBOX)
    assert found.check_sandbox() == REFUSED_PROBES
    assert (found.layers["seccomp"], found.layers["landlock"], found.node) == (True, False, "n1")
    found.send({"frame": "go", "base": str(bench.read), "output": str(bench.write / "x"), "seconds": 0.0}, b"start")
    (go,) = bench.answers()
    assert go["task"]["base"] == {"place": "read", "number": 0, "below": "."}
    assert go["task"]["output"] == {"place": "write", "number": 0, "below": "x"}
    assert go["blob"] == {"digest": digest_bytes(b"start"), "size": 5}
    bench.node(0, said({"frame": "step", "step": 1}), said(RESULT, bench.leave(b"weights")))
    assert found.receive() == ({"frame": "step", "step": 1}, b"")
    assert found.receive() == (RESULT, b"")
    assert (bench.write / "weights").read_bytes() == b"weights"
    assert os.listdir(bench.write) == ["weights"]
    found.close()


def test_a_probe_that_the_node_leaves_out_is_open(bench: Bench) -> None:
    found = bench.worker()
    results = {name: "refused" for name in REFUSED_PROBES if name != "tcp"} | {"dns": "open", "more": "refused"}
    bench.node(0, HELLO, {**SANDBOX, "results": results})
    assert {name for name, one in found.check_sandbox().items() if one == "open"} == {"tcp", "dns"}


@pytest.mark.parametrize(
    ("record", "error", "words"),
    [
        ({**HELLO, "job": 2}, Tampered, "expected its own node, got that of job 2"),
        ({**HELLO, "node": "\x1b[2Jn1"}, BadInput, "expected the name of its node"),
        ({**HELLO, "node": "n" * 1_000_000}, BadInput, "expected the name of its node"),
        ({**HELLO, "code": digest_bytes(b"old")}, Unavailable, "expected the code that the service runs"),
        ({"frame": "sandbox", "results": [], "layers": {}}, BadInput, "expected results and layers"),
        ({"frame": "surprise"}, BadInput, "expected a known record, got 'surprise'"),
        (said({"frame": "failure", "code": "tampered", "message": "rows"}), Tampered, "node: rows"),
        (said({"frame": "failure", "code": "No Code!", "message": "x"}), Unavailable, "node: x"),
        ({"frame": "ended", "code": 1}, Unavailable, "expected its sandbox probes first, got its end"),
    ],
)
def test_a_node_that_does_not_begin_well_is_refused(
    bench: Bench, record: dict[str, Any], error: type[ApplianceError], words: str
) -> None:
    found = bench.worker()
    bench.node(0, record)
    with pytest.raises(error, match=words):
        found.check_sandbox()


def test_records_under_another_key_say_nothing(bench: Bench) -> None:
    found = bench.worker()
    bench.node(0, HELLO, SANDBOX, secret="00" * 32)
    bench.slurm.become("FAILED")
    with pytest.raises(Unavailable, match="got its end: FAILED") as ended:
        found.check_sandbox()
    assert ended.value.code == "slurm-job"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"folder": 1}, TooLarge, "in one of 1 folders, got 7 bytes in folder 1"),
        ({"folder": -1}, BadInput, "WorkerFile: Input should be greater than"),
        ({"size": 10**15}, TooLarge, "expected a file of at most"),
        ({"size": 6}, Tampered, "expected 6 bytes, got more"),
        ({"digest": digest_bytes(b"other")}, Unavailable, "expected its bytes, got none"),
        ({"digest": "../../../etc/passwd"}, BadInput, "WorkerFile: String should match"),
        ({"path": "../weights"}, Tampered, "expected a plain relative path"),
        ({"path": "/etc/cron.d/x"}, Tampered, "expected a plain relative path"),
        ({"path": ".tmp/x"}, Tampered, "expected a plain relative path"),
        ({"path": "a/" * 9 + "b"}, Tampered, "expected a plain relative path"),
        ({"more": 1}, BadInput, "WorkerFile: Extra inputs"),
    ],
)
def test_a_hostile_description_of_a_file_is_refused_and_leaves_nothing(
    bench: Bench, change: dict[str, Any], error: type[ApplianceError], words: str
) -> None:
    found = bench.worker()
    bench.node(0, HELLO, SANDBOX)
    found.check_sandbox()
    bench.node(0, said(RESULT, {**bench.leave(b"weights"), **change}))
    with pytest.raises(error, match=words):
        found.receive()
    assert not os.listdir(bench.write)


def test_bytes_that_changed_in_the_shared_folder_are_tampered(bench: Bench) -> None:
    found = bench.worker()
    bench.node(0, HELLO, SANDBOX)
    found.check_sandbox()
    left = bench.leave(b"weights")
    bench.node(0, said(RESULT, left))
    record = bench.cluster.records.find("r-000001")
    assert record is not None
    (Path(record.folder) / names.OBJECTS / left["digest"].removeprefix("sha256:")).write_bytes(b"WEIGHTS")
    with pytest.raises(Tampered, match="expected these bytes, got sha256:"):
        found.receive()
    assert not os.listdir(bench.write)


def test_more_files_than_a_worker_leaves_are_refused(bench: Bench) -> None:
    found = bench.worker()
    bench.node(0, HELLO, SANDBOX, said(RESULT, *[bench.leave(b"x")] * (names.MAX_FILES + 1)))
    found.check_sandbox()
    with pytest.raises(BadInput, match="expected a list of at most"):
        found.receive()


# --- what Slurm does to it --------------------------------------------------------------------------------------------


def begin(bench: Bench, **more: Any) -> ClusterWorker:
    found = bench.worker(**more)
    bench.slurm.become("RUNNING")
    bench.node(0, HELLO, SANDBOX)
    found.check_sandbox()
    found.send({"frame": "go"})
    return found


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("TIMEOUT", "worker-ended"),
        ("NODE_FAIL", "worker-ended"),
        ("PREEMPTED", "worker-ended"),
        ("FAILED", "worker-ended"),
        ("CANCELLED", "slurm-cancelled"),
        ("OUT_OF_MEMORY", "out-of-memory"),
        ("DEADLINE", "slurm-deadline"),
    ],
)
def test_the_end_of_a_job_is_told_as_slurm_has_it(bench: Bench, state: str, code: str) -> None:
    found = begin(bench)
    bench.slurm.become(state)
    with pytest.raises(Unavailable, match=f"slurm, job 1 on n1: expected a result, got its end: {state}") as ended:
        found.receive()
    assert ended.value.code == code
    record = bench.cluster.records.find("r-000001")
    assert record is not None
    assert record.done == 0


def test_a_job_that_slurm_forgot_has_ended(bench: Bench) -> None:
    found = begin(bench)
    bench.slurm.jobs.clear()
    with pytest.raises(Unavailable, match="Slurm knows it no more"):
        found.receive()


def test_a_result_that_came_late_is_taken_after_the_jobs_end(bench: Bench) -> None:
    found = begin(bench)
    bench.node(0, said(RESULT))
    bench.slurm.become("COMPLETED")
    assert found.receive() == (RESULT, b"")


def test_a_requeued_job_begins_another_start_and_the_next_worker_is_that_one(bench: Bench) -> None:
    found = begin(bench)
    bench.node(1, HELLO, SANDBOX)
    with pytest.raises(Unavailable, match="Slurm has started it again") as ended:
        found.receive()
    assert ended.value.code == "worker-ended"
    after = bench.worker()
    after.check_sandbox()
    assert (after.attempt, after.begun) == (1, False)


def test_a_service_that_starts_again_finds_the_start_and_takes_no_frame_twice(bench: Bench) -> None:
    begin(bench).close()
    steps = [said({"frame": "step", "step": number}) for number in (1, 2, 3)]
    bench.node(0, *steps[:2], said({"frame": "checkpoint", "step": 2}, bench.leave(b"state")), steps[2])
    found = bench.worker(skip=2)
    assert found.check_sandbox() == REFUSED_PROBES
    assert found.begun
    found.send({"frame": "go"})  # given before: not given again
    assert len(bench.answers()) == 1
    assert found.receive() == ({"frame": "step", "step": 3}, b"")
    assert not os.listdir(bench.write)


def test_a_training_checkpoint_leaves_the_shared_folder_once_it_is_recorded(bench: Bench) -> None:
    found = begin(bench)
    left = bench.leave(b"state", "step-1")
    bench.node(0, said({"frame": "checkpoint", "step": 1}, left), said({"frame": "step", "step": 2}))
    found.receive()
    record = bench.cluster.records.find("r-000001")
    assert record is not None
    path = Path(record.folder) / names.OBJECTS / left["digest"].removeprefix("sha256:")
    assert path.exists()  # the entry may not be there yet
    found.receive()
    assert not path.exists()


def test_a_job_that_waits_or_is_suspended_is_not_silent_and_one_that_runs_is(bench: Bench) -> None:
    found = begin(bench)
    bench.slurm.become("SUSPENDED")
    threading.Timer(0.1, bench.slurm.become, ("RUNNING",)).start()
    with pytest.raises(Unavailable, match="expected a sign of life within") as silent:
        found.receive(0.05)
    assert silent.value.code == "worker-silent"
    assert (
        bench.reported
        == ["job 1: PENDING", "job 1: RUNNING", "job 1: SUSPENDED", "job 1: RUNNING"][-len(bench.reported) :]
    )


def test_a_controller_that_is_gone_stops_no_frame_and_is_told_once_it_is_gone_too_long(bench: Bench) -> None:
    found = begin(bench)
    bench.slurm.error = GONE
    bench.node(0, said({"frame": "step", "step": 1}))
    assert found.receive() == ({"frame": "step", "step": 1}, b"")
    with pytest.raises(
        Unavailable, match=r"expected slurmctld to answer within .*, got nothing; .*resume the run"
    ) as gone:
        found.receive()
    assert gone.value.code == UNREACHABLE
    assert bench.reported[-1] == "job 1: slurmctld does not answer"


def test_a_killed_worker_is_told_to_end_and_one_of_a_closing_service_is_left(bench: Bench) -> None:
    found = begin(bench)
    found.kill()
    assert found.receive() is None
    assert [one["frame"] for one in bench.answers()] == ["go", "end"]
    bench.closing.set()
    left = bench.worker()
    left.check_sandbox()
    left.kill()
    assert left.receive() is None
    assert len(bench.answers()) == 2


def test_a_paused_service_pauses_the_node(bench: Bench) -> None:
    found = bench.worker()
    found.pause()  # nothing has begun
    bench.node(0, HELLO, SANDBOX)
    found.check_sandbox()
    found.send({"frame": "go"})
    for act in (found.pause, found.resume, found.checkpoint):
        act()
    assert [one["frame"] for one in bench.answers()] == ["go", "pause", "resume", "checkpoint"]


def test_the_jobs_own_words_are_in_the_log_as_plain_characters(bench: Bench) -> None:
    found = begin(bench)
    record = bench.cluster.records.find("r-000001")
    assert record is not None
    (Path(record.folder) / names.LOG).write_bytes(b"\x1b[31mslurmstepd: error\n" + b"x" * (3 << 20))
    (Path(record.folder) / names.ATTEMPTS / "0" / names.LOG).symlink_to("/etc/passwd")
    found.close()
    log = (bench.place / "log").read_bytes()
    assert log.startswith(b"?[31mslurmstepd: error\n")
    assert b"bytes are left out here" in log
    assert b"root:" not in log
    assert len(log) < 2 << 20


def test_a_record_of_a_job_that_was_spoilt_is_tampered(bench: Bench) -> None:
    bench.submit()
    (bench.place / "jobs" / "r-000001.json").write_text("{}")
    with pytest.raises(Tampered, match="job r-000001: expected its record"):
        bench.cluster.find_job("r-000001", lambda: False)


@pytest.mark.parametrize("kind", ["pipe", "other bytes", "link"])
@pytest.mark.parametrize("name", ["x.left", "r-000001.partial"])
def test_what_somebody_puts_beside_the_records_holds_and_stops_no_job(bench: Bench, kind: str, name: str) -> None:
    record, path = bench.submit(), bench.place / "jobs" / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(bench.place / "elsewhere")
    else:
        path.write_text("{}")
    bench.cluster.clear()
    if name.endswith(".left"):
        bench.submit(key="r-000002")
        bench.cluster.release("r-000001")
        assert not Path(record.folder).exists()
    elif kind != "other bytes":
        with pytest.raises(Unavailable):
            bench.cluster.records.keep(record)
    assert not (bench.place / "elsewhere").exists()


def test_a_record_names_objects_by_digest_so_that_no_other_file_is_removed(bench: Bench) -> None:
    record, other = bench.submit(), bench.place / "ledger.db"
    other.write_text("")
    bench.cluster.records.keep(record.model_copy(update={"objects": ("../../ledger.db",)}))
    with pytest.raises(Tampered, match="job r-000001: expected its record"):
        bench.cluster.release("r-000001")
    assert other.exists()


def test_nothing_is_found_of_a_key_that_was_never_submitted(bench: Bench) -> None:
    assert bench.cluster.find_job("r-000009", lambda: False) is None
    bench.cluster.release("r-000009")
    with pytest.raises((NotFound, Tampered)):
        bench.cluster.records.begin("../x", bench.shared, ())
