"""The launcher on a node: it trains only what the service described and ordered, once.

The worker is this test's own; its sandbox is tested in tests/sandbox.
"""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.sandbox import local
from appliance.sandbox.description import Sandbox
from appliance.slurm import folder as names
from appliance.slurm import node
from appliance.slurm.cluster import describe_inputs
from appliance.slurm.folder import JobDescription, encode_record, job_folder, label_of, parse_record
from appliance.slurm.objects import get_file
from appliance.slurm.spool import SpoolReader, SpoolWriter

KEY = b"k" * 32
CODE = digest_bytes(b"code")
ROWS = b'{"text": "a row"}\n'
SILENT = Unavailable("worker: expected a frame, got none", code="worker-silent")
Frames = list[dict[str, Any] | Unavailable | Callable[[], None] | None]


class Worker:
    """Send these frames. A function among them acts first; at an error it is silent; None is its end."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.got, self.acts = frames, list[Any](), list[str]()
        self.layers, self.reasons = {"seccomp": True}, dict[str, str]()
        self.results = {"tcp": "refused"}
        self.sandbox: Sandbox | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.acts.append("closed")

    def check_sandbox(self, timeout_s: float) -> dict[str, str]:
        return self.results

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float) -> None:
        self.got.append((header, blob))

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], bytes] | None:
        while callable(frame := self.frames.pop(0)):
            frame()
        if isinstance(frame, Unavailable):
            raise frame
        return None if frame is None else (frame, b"")

    def wait(self, timeout_s: float) -> int:
        return 137

    def pause(self) -> None:
        self.acts.append("pause")

    def resume(self) -> None:
        self.acts.append("resume")


class Job:
    """A job's folder, as the service made it, and what the launcher there does with it."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.patch = place, monkeypatch
        self.folder, self.objects = place / "shared" / "jobs" / "r-1", place / "shared" / "objects"
        self.input = digest_bytes(b"manifest").removeprefix("sha256:")
        for path in (self.folder / names.OBJECTS, self.objects, place / "scratch"):
            path.mkdir(parents=True)
        (self.objects / digest_bytes(ROWS).removeprefix("sha256:")).write_bytes(ROWS)
        monkeypatch.setattr(node, "POLL_S", 0.002)
        monkeypatch.setattr(node, "digest_code", lambda: CODE)
        monkeypatch.setattr(signal, "signal", lambda *_: None)

    def describe(self, **changes: Any) -> None:
        files = [("data/rows.jsonl", len(ROWS), digest_bytes(ROWS))]
        told = {
            **{"key": "r-1", "module": "appliance.worker.train", "code": CODE, "gpu": False, "writes": 1},
            **{"accepted_missing": (), "inputs": (describe_inputs(self.input, files),)},
            "scratch": str(self.place / "scratch"),
        }
        writer = SpoolWriter(job_folder(self.folder), names.JOB, KEY, names.JOB)
        writer.append(JobDescription(**{**told, **changes}).encode())
        writer.close()

    def say(self, *records: dict[str, Any], attempt: int = 0) -> None:
        place = job_folder(self.folder) / names.ATTEMPTS / str(attempt)
        place.path.mkdir(parents=True, exist_ok=True)
        writer = SpoolWriter(place, names.IN, KEY, label_of(attempt, names.IN))
        for record in records:
            writer.append(encode_record(record))
        writer.close()

    def run(self, worker: Worker, *, job: int = 7, attempt: int = 0) -> int:
        def start(module: str, sandbox: Sandbox, **given: Any) -> Worker:
            worker.sandbox = sandbox
            return worker

        self.patch.setattr(local, "start_worker", start)
        self.patch.setattr("sys.stdin", io.StringIO(f"{KEY.hex()}\n"))
        for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", attempt), ("SLURMD_NODENAME", "n1")):
            self.patch.setenv(name, str(value))
        return node.main([str(self.folder)])

    def said(self, attempt: int = 0) -> list[dict[str, Any]]:
        place = job_folder(self.folder) / names.ATTEMPTS / str(attempt)
        found = SpoolReader(place, names.OUT, KEY, label_of(attempt, names.OUT))
        return [parse_record(payload) for payload in iter(found.take, None)]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


GO = {"frame": "go", "task": {"base": {"place": "read", "number": 0, "below": "."}, "seconds": 0.0}, "blob": None}


def test_a_node_says_who_it_is_its_sandbox_and_every_frame_with_its_files(job: Job) -> None:
    job.describe()
    job.say({**GO, "task": {**GO["task"], "output": {"place": "write", "number": 0, "below": "."}}})  # type: ignore[dict-item]
    worker = Worker([{"frame": "step", "step": 1}, SILENT])
    rows: list[bytes] = []

    def leave() -> None:
        assert worker.sandbox is not None
        rows.append((worker.sandbox.read[0] / "data" / "rows.jsonl").read_bytes())
        (worker.sandbox.write[1] / "weights").write_bytes(b"weights")

    worker.frames += [leave, {"frame": "result", "steps": 1}]
    assert job.run(worker) == 0
    hello, copied, sandbox, step, result = job.said()
    assert hello == {"frame": "hello", "job": 7, "node": "n1", "code": CODE}
    assert copied == {"frame": "copied", "bytes": len(ROWS)}
    assert sandbox["results"] == {"tcp": "refused"}
    assert step == {"frame": "frame", "header": {"frame": "step", "step": 1}, "files": []}
    (left,) = result["files"]
    get_file(job_folder(job.folder) / names.OBJECTS, left["digest"], left["size"], job.place / "got")
    assert (job.place / "got").read_bytes() == b"weights"
    assert rows == [ROWS]
    ((task, blob),) = worker.got
    assert (task["frame"], task["base"], blob) == ("go", str(worker.sandbox.read[0]), b"")  # type: ignore[union-attr]
    assert (job.folder / names.FINISHED).exists()
    assert not os.listdir(job.place / "scratch")


def test_a_finished_job_that_is_started_once_more_does_nothing(job: Job) -> None:
    job.describe()
    (job.folder / names.FINISHED).touch()
    assert job.run(Worker([]), attempt=1) == 0
    assert not (job.folder / names.ATTEMPTS).exists()


def test_a_second_job_in_the_same_folder_is_refused(job: Job) -> None:
    job.describe()
    job.say(GO)
    assert job.run(Worker([{"frame": "result"}])) == 0
    (job.folder / names.FINISHED).unlink()
    with pytest.raises(BadInput, match="job 8: expected a folder of its own, got that of job b'7'"):
        job.run(Worker([]), job=8)


@pytest.mark.parametrize("line", ["write", "fsync", "link", "unlink"])
def test_a_node_that_dies_while_it_takes_its_folder_is_started_again(job: Job, line: str) -> None:
    """... at one of these lines."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    link = os.link
    job.describe()
    job.say(GO)
    with pytest.MonkeyPatch.context() as patch:
        if line == "unlink":
            patch.setattr(os, "link", lambda *given, **folders: (link(*given, **folders), die()))
        else:
            patch.setattr(os, line, die)
        with pytest.raises(SystemExit):
            job.run(Worker([]))
    assert job.run(Worker([{"frame": "result"}])) == 0
    assert (job.folder / names.OWNER).read_bytes() == b"7"
    assert not list(job.folder.glob(".owner*"))


def test_two_starts_of_a_job_at_the_same_time_both_have_its_folder(job: Job) -> None:
    """Slurm gave the first node up, and its launcher is still alive."""
    link = os.link

    def link_after_the_other_start(*given: Any, **folders: Any) -> None:
        patch.setattr(os, "link", link)
        node.Node._claim_folder(SimpleNamespace(_folder=job_folder(job.folder)), 7)  # type: ignore[arg-type]
        link(*given, **folders)

    job.describe()
    job.say(GO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", link_after_the_other_start)
        assert job.run(Worker([{"frame": "result"}])) == 0
    assert (job.folder / names.OWNER).read_bytes() == b"7"
    assert not list(job.folder.glob(".owner*"))


def test_a_start_removes_what_a_killed_one_left_on_the_node(job: Job) -> None:
    job.describe()
    job.say(GO, attempt=1)
    (job.place / "scratch" / "appliance-job-7-0-x@n1" / "rows").mkdir(parents=True)
    assert job.run(Worker([{"frame": "result"}]), attempt=1) == 0
    assert not list((job.place / "scratch").iterdir())


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_owner_is_refused(job: Job) -> None:
    job.describe()
    os.mkfifo(job.folder / names.OWNER)
    with pytest.raises(Tampered, match="owner"):
        job.run(Worker([]))


@pytest.mark.parametrize("spoilt", [b"other rows!!!!!!!!\n", ROWS + b"x", None])
def test_inputs_that_are_not_what_the_service_described_start_no_worker(job: Job, spoilt: bytes | None) -> None:
    job.describe()
    path = job.objects / digest_bytes(ROWS).removeprefix("sha256:")
    path.unlink() if spoilt is None else path.write_bytes(spoilt)
    worker = Worker([])
    assert job.run(worker) == 1
    header = job.said()[-1]["header"]
    assert (header["frame"], header["code"]) == ("failure", "shared-folder" if spoilt is None else "tampered")
    assert worker.sandbox is None
    assert not os.listdir(job.place / "scratch")


def test_a_node_with_other_code_starts_no_worker(job: Job) -> None:
    job.describe(code=digest_bytes(b"newer"))
    worker = Worker([])
    assert job.run(worker) == 1
    assert job.said()[-1]["header"]["code"] == node.OTHER_CODE
    assert worker.sandbox is None


def test_a_description_under_another_key_is_none(job: Job) -> None:
    writer = SpoolWriter(job_folder(job.folder), names.JOB, b"x" * 32, names.JOB)
    writer.append(b"anything")
    writer.close()
    with pytest.raises(Unavailable, match="expected its description, got none"):
        job.run(Worker([]))


def test_a_worker_whose_probe_got_through_is_given_no_task(job: Job) -> None:
    job.describe()
    job.say(GO)
    worker = Worker([])
    worker.results = {"tcp": "open"}
    assert job.run(worker) == 0
    assert not worker.got
    assert job.said()[-1]["frame"] == "sandbox"


def test_the_service_can_end_a_job_that_waits_for_its_go(job: Job) -> None:
    job.describe()
    job.say({"frame": "end"})
    worker = Worker([])
    assert job.run(worker) == 0
    assert not worker.got


def test_a_node_waits_for_the_go_of_a_service_that_is_down_and_not_for_ever(job: Job) -> None:
    job.describe()
    job.patch.setattr(node, "GO_S", 0.01)
    assert job.run(Worker([])) == 1
    assert job.said()[-1]["header"]["code"] == "service-silent"


def test_what_the_service_says_reaches_the_worker(job: Job) -> None:
    job.describe()
    job.say(GO, {"frame": "pause"}, {"frame": "resume"}, {"frame": "checkpoint"}, {"frame": "later"}, {"frame": "end"})
    worker = Worker([SILENT] * 10)
    assert job.run(worker) == 0
    assert worker.acts == ["pause", "resume", "closed"]
    assert [header["frame"] for header, _ in worker.got] == ["go", "checkpoint"]


def test_slurms_signal_asks_for_a_training_checkpoint_and_the_worker_trains_on(job: Job) -> None:
    job.describe()
    job.say(GO)
    asked = threading.Event()
    handlers: dict[int, Callable[..., None]] = {}
    job.patch.setattr(signal, "signal", handlers.__setitem__)
    state: list[Path] = []

    def take_away() -> None:
        handlers[signal.SIGUSR1](signal.SIGUSR1, None)
        asked.set()

    def keep() -> None:
        assert worker.sandbox is not None
        state.append(worker.sandbox.write[1] / "step-3")
        state[0].write_bytes(b"state")

    worker = Worker([take_away, SILENT, SILENT])
    worker.frames += [keep, {"frame": "checkpoint", "step": 3, "file": "step-3"}]
    worker.frames += [lambda: gone.append(not state[0].exists()), {"frame": "result"}]
    gone: list[bool] = []
    assert job.run(worker) == 0
    assert [header["frame"] for header, _ in worker.got] == ["go", "checkpoint"]
    checkpoint = next(one for one in job.said() if one.get("header", {}).get("frame") == "checkpoint")
    assert [file["path"] for file in checkpoint["files"]] == ["step-3"]
    assert gone == [True]
    assert handlers.keys() == {signal.SIGUSR1, signal.SIGTERM}


def test_a_worker_that_ends_without_a_word_leaves_the_job_to_be_started_again(job: Job) -> None:
    job.describe()
    job.say(GO)
    assert job.run(Worker([None])) == 1
    assert job.said()[-1] == {"frame": "ended", "code": 137}
    assert not (job.folder / names.FINISHED).exists()
    job.say(GO, attempt=1)
    assert job.run(Worker([{"frame": "result"}]), attempt=1) == 0


def test_a_training_checkpoint_to_go_on_from_is_hashed_too(job: Job) -> None:
    job.describe()
    job.say({**GO, "blob": {"digest": digest_bytes(b"state"), "size": 5}})
    path = job.folder / names.OBJECTS / digest_bytes(b"state").removeprefix("sha256:")
    path.write_bytes(b"STATE")
    assert job.run(Worker([])) == 1
    assert job.said()[-1]["header"]["code"] == "tampered"


def test_a_job_does_not_tell_its_key(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    job.describe()
    job.say(GO)
    job.run(Worker([{"frame": "result"}]))
    text = json.dumps(job.said()) + "".join(capfd.readouterr())
    assert KEY.hex() not in text
