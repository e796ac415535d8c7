"""The launchers of a run's nodes: complete and encrypted exchange between ranks; a failing node ends the start.

The workers are this test's own, and so is `srun`: a thread.
"""

from __future__ import annotations

import io
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.sealed import ConnectionCipher
from appliance.sandbox import local
from appliance.slurm import folder as names
from appliance.slurm import follower, node, spool, team
from appliance.slurm import peer as connections
from appliance.slurm import team as arrivals
from appliance.slurm.commands import Commands
from appliance.slurm.folder import JobDescription, job_folder
from appliance.slurm.follower import NodeFollower
from appliance.slurm.peer import LOST, Peer
from appliance.slurm.spool import SpoolWriter
from appliance.slurm.team import SandboxReport, Team
from scripts.kit.waiting import wait_for

KEY = b"k" * 32
CODE = digest_bytes(b"code")
OWN = SandboxReport({"tcp": "refused"}, {"seccomp": True, "landlock": True}, {}, ("n1",))


class Worker:
    """Keep received frames, and send the given ones; None is its end."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
        self.says: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self.acts: queue.Queue[str] = queue.Queue()
        self.layers, self.reasons = {"seccomp": True, "landlock": False}, {"landlock": "an old kernel"}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.says.put(None)

    def check_sandbox(self, timeout_s: float) -> dict[str, str]:
        return {"tcp": "refused"}

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float) -> None:
        self.got.put((header, blob))

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], bytes] | None:
        return self.says.get()

    def wait(self, timeout_s: float) -> int:
        return 137

    def pause(self) -> None:
        self.acts.put("pause")

    def resume(self) -> None:
        self.acts.put("resume")


class Steps:
    """In place of srun: the launcher of the second node, in a thread."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.thread = threading.Thread(target=act, daemon=True)
        self.thread.start()
        self.returncode = 1

    def poll(self) -> int | None:
        return None if self.thread.is_alive() else self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.thread.join(timeout)
        if self.thread.is_alive():
            raise subprocess.TimeoutExpired("srun", 0)
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Site:
    """Two nodes and their job's folder; `far` is the worker of rank 1."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.far = place / "shared" / "jobs" / "r-1", monkeypatch, Worker()
        self.code = CODE
        for path in (self.folder / names.OBJECTS, place / "scratch"):
            path.mkdir(parents=True)
        self.described = JobDescription(
            **{"key": "r-1", "module": "appliance.worker.train", "code": CODE, "gpu": False, "writes": 1},
            **{"accepted_missing": (), "inputs": (), "scratch": str(place / "scratch"), "nodes": 2},
        )
        writer = SpoolWriter(job_folder(self.folder), names.JOB, KEY, names.JOB)
        writer.append(self.described.encode())
        writer.close()
        for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURMD_NODENAME", "n2")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(follower, "digest_code", lambda: self.code)
        monkeypatch.setattr(follower.signal, "signal", lambda *_: None)
        monkeypatch.setattr(local, "start_worker", lambda *_, **__: self.far)
        monkeypatch.setattr(Commands, "address", lambda *_: "127.0.0.1")
        monkeypatch.setattr(team, "_END_S", 2.0)
        self.start(lambda given: follower.main(given))

    def start(self, act: Callable[[list[str]], object]) -> None:
        """Replace what `srun` starts there."""

        def steps(described: JobDescription, given: list[str], key: bytes) -> Steps:
            self.patch.setattr("sys.stdin", io.StringIO(f"{key.hex()}\n"))
            return Steps(lambda: act(given))

        self.patch.setattr(team, "_start_followers", steps)

    def team(self) -> Team:
        return Team(self.described, self.folder, KEY, 0, "n1", CODE)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.fixture
def begun(site: Site) -> Iterator[tuple[Team, Worker]]:
    """Two nodes whose workers have their task, and rank 0."""
    with site.team() as found:
        found.gather(OWN)
        first = Worker()
        found.begin({"frame": "go", "task": {"output": {"place": "write", "number": 0, "below": "."}}}, first)  # type: ignore[arg-type]
        yield found, first


def problem_of(found: Team) -> ApplianceError:
    return wait_for(lambda: found.problem, "a problem") or pytest.fail("no problem")


def test_the_sandbox_report_of_a_run_is_that_of_every_worker(site: Site) -> None:
    with site.team() as found:
        report = found.gather(OWN)
    assert report.nodes == ("n1", "n2")
    assert report.layers == {"seccomp": True, "landlock": False}
    assert report.reasons == {"landlock on n2": "an old kernel"}
    assert report.is_closed
    assert not report.combined_with({"results": {"tcp": "open"}, "layers": {}, "reasons": {}}, "n3").is_closed
    assert not report.combined_with({"results": {}, "layers": {}, "reasons": {}}, "n3").is_closed, (
        "a probe that was not made"
    )


def test_what_ranks_exchange_crosses_both_ways(site: Site, begun: tuple[Team, Worker]) -> None:
    found, first = begun
    task, _ = site.far.got.get(timeout=60)
    assert task["rank"] == 1
    assert Path(task["output"]).is_dir()
    found.forward({"frame": "rank", "rank": 1}, b"down" * 100_000)
    assert site.far.got.get(timeout=60) == ({"frame": "rank", "rank": 1}, b"down" * 100_000)
    site.far.says.put(({"frame": "rank", "rank": 1}, b"up" * 100_000))
    assert first.got.get(timeout=60) == ({"frame": "rank", "rank": 1}, b"up" * 100_000)
    found.say("pause")
    assert site.far.acts.get(timeout=60) == "pause"
    with pytest.raises(Tampered, match="expected a rank on another node, got 0"):
        found.forward({"frame": "rank", "rank": 0}, b"")
    assert found.problem is None


def test_a_paused_worker_whose_pipe_is_full_continues(
    site: Site, begun: tuple[Team, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others sent before they were paused too comes behind the pause."""
    found, _ = begun
    assert site.far.got.get(timeout=60)[0]["frame"] == "go"
    goes_on, send, resume = threading.Event(), site.far.send, site.far.resume

    def wait_and_send(header: dict[str, Any], blob: bytes = b"", *, timeout_s: float) -> None:
        assert goes_on.wait(timeout_s)
        send(header, blob, timeout_s=timeout_s)

    monkeypatch.setattr(site.far, "send", wait_and_send)
    monkeypatch.setattr(site.far, "resume", lambda: (resume(), goes_on.set()))
    monkeypatch.setattr(spool, "MOST_BYTES", 2)
    found.say("pause")
    for number in range(3):
        found.forward({"frame": "rank", "rank": 1}, b"number %d" % number)
    found.say("resume")
    assert [site.far.acts.get(timeout=60) for _ in range(2)] == ["pause", "resume"]
    assert [site.far.got.get(timeout=60)[1] for _ in range(3)] == [b"number 0", b"number 1", b"number 2"]


def test_no_more_waits_for_a_slow_worker_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_BYTES", 2)
    worker, reads, put = Worker(), threading.Semaphore(0), list[int]()
    monkeypatch.setattr(worker, "send", lambda *_, timeout_s: reads.acquire(timeout=timeout_s))
    waiting = spool.Outbox(worker, "to-rank-1")  # type: ignore[arg-type]

    def put_all() -> None:
        for number in range(5):
            waiting.put({"frame": "rank"}, b"xx")
            put.append(number)

    putting = threading.Thread(target=put_all, daemon=True)
    putting.start()
    while not put:
        putting.join(0.01)
    putting.join(0.2)
    assert put == [0]
    reads.release(5)
    putting.join(60)
    assert put == [0, 1, 2, 3, 4]


def test_a_worker_that_fails_on_another_node_says_why(site: Site, begun: tuple[Team, Worker]) -> None:
    site.far.says.put(({"frame": "failure", "code": "out-of-memory", "message": "expected enough memory"}, b""))
    problem = problem_of(begun[0])
    assert (problem.code, problem.message) == ("out-of-memory", "node n2: rank 1: expected enough memory")


def test_a_worker_that_is_killed_on_another_node_is_named(site: Site, begun: tuple[Team, Worker]) -> None:
    site.far.says.put(None)
    problem = problem_of(begun[0])
    assert problem.code == "rank-ended"
    assert "node n2: rank 1: expected it to train to the last step, got its end with 137" in problem.message


def test_a_node_that_goes_without_a_word_is_lost(site: Site) -> None:
    def go(given: list[str]) -> None:
        peer = connections.join(given[2], int(given[3]), KEY, 0, {"number": 1, "node": "n2", "code": CODE})
        peer.close()

    site.start(go)
    with site.team() as found, pytest.raises(Unavailable, match="node n2: expected it to train") as lost:
        found.gather(OWN)
    assert lost.value.code == LOST


def test_a_node_with_other_code_is_refused(site: Site) -> None:
    site.code = digest_bytes(b"older")
    with site.team() as found, pytest.raises(Unavailable, match="node n2: expected the code") as other:
        found.gather(OWN)
    assert other.value.code == "other-code"


@pytest.mark.thorough
def test_launchers_that_do_not_start_fail_the_start(site: Site) -> None:
    site.start(lambda given: None)
    with site.team() as found, pytest.raises(Unavailable, match="srun: expected the launchers") as none:
        found.gather(OWN)
    assert none.value.code == "slurm-job"


def test_somebody_without_the_jobs_key_is_let_go_and_the_run_continues(site: Site) -> None:
    def go(given: list[str]) -> None:
        for key, start in ((b"x" * 32, 0), (KEY, 1)):
            outsider = connections.join(given[2], int(given[3]), key, start, {"number": 1, "node": "evil"})
            assert outsider.receive() is None
            outsider.close()
        with socket.create_connection((given[2], int(given[3]))) as opened:
            opened.sendall(b"\0" * 64)
        follower.main(given)

    site.start(go)
    with site.team() as found:
        assert found.gather(OWN).nodes == ("n1", "n2")


@pytest.mark.thorough
@pytest.mark.parametrize("greets", [False, True])
def test_an_outsider_that_sends_slowly_is_let_go_and_the_run_continues(
    site: Site, monkeypatch: pytest.MonkeyPatch, greets: bool
) -> None:
    """One byte after another, each in time."""
    monkeypatch.setattr(connections, "_GREETING_S", 2.0)
    lasted: list[float] = []

    def go(given: list[str]) -> None:
        began = time.monotonic()
        with socket.create_connection((given[2], int(given[3]))) as opened, suppress(OSError):
            if greets:
                opened.sendall(b"\0" * 32 + b"\0\x10\0\0")
            while time.monotonic() - began < 60:
                opened.sendall(b"\0")
                time.sleep(0.3 if greets else 0.6)
        lasted.append(time.monotonic() - began)
        follower.main(given)

    site.start(go)
    with site.team() as found:
        assert found.gather(OWN).nodes == ("n1", "n2")
    assert lasted[0] < 30


@pytest.mark.thorough
def test_a_node_that_joins_while_the_first_one_copies_its_inputs_is_greeted_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_GREETING_S", 1.5)
    monkeypatch.setattr(connections, "JOIN_S", 1.5)
    joined = threading.Event()
    monkeypatch.setattr(follower, "NodeFollower", lambda *given: joined.set() or NodeFollower(*given))  # type: ignore[func-returns-value]
    with site.team() as found:
        assert joined.wait(60)
        time.sleep(2.0)
        assert found.gather(OWN).nodes == ("n1", "n2")


@pytest.mark.thorough
def test_slow_outsiders_delay_no_node_that_comes_behind_them(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_GREETING_S", 60.0)

    def go(given: list[str]) -> None:
        with ExitStack() as outsiders:
            for _ in range(2):
                outsiders.enter_context(socket.create_connection((given[2], int(given[3]))))
            follower.main(given)

    site.start(go)
    began = time.monotonic()
    with site.team() as found:
        assert found.gather(OWN).nodes == ("n1", "n2")
    assert time.monotonic() - began < connections._GREETING_S


@pytest.mark.thorough
def test_where_as_many_as_may_be_are_greeted_a_node_waits_for_its_turn(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "AT_ONCE", 1)
    monkeypatch.setattr(connections, "_GREETING_S", 1.5)

    def go(given: list[str]) -> None:
        with socket.create_connection((given[2], int(given[3]))), socket.create_connection((given[2], int(given[3]))):
            follower.main(given)

    site.start(go)
    with site.team() as found:
        assert found.gather(OWN).nodes == ("n1", "n2")


def test_a_start_that_fails_early_lets_everybody_go_who_has_connected(site: Site) -> None:
    joined, gone = threading.Event(), list[object]()

    def go(given: list[str]) -> None:
        place = (given[2], int(given[3]))
        with socket.create_connection(place) as outsider:
            peer = connections.join(*place, KEY, 0, {"number": 1, "node": "n2", "code": CODE})
            joined.set()
            gone.append(peer.receive())
            peer.close()
            while outsider.recv(64):
                pass
            gone.append("outsider")
        with pytest.raises(OSError):
            socket.create_connection(place)
        gone.append("nobody listens")

    site.start(go)
    with pytest.raises(BadInput), site.team():
        assert joined.wait(60)
        raise BadInput("inputs: expected other bytes")
    assert gone == [None, "outsider", "nobody listens"]


def test_bytes_that_are_changed_between_nodes_do_not_open() -> None:
    ours, theirs = socket.socketpair()
    one, other = (
        Peer(ours, ConnectionCipher(KEY), ConnectionCipher(KEY)),
        Peer(theirs, ConnectionCipher(KEY), ConnectionCipher(KEY)),
    )
    one.send({"frame": "rank", "rank": 1}, b"numbers")
    assert other.receive() == ({"frame": "rank", "rank": 1}, b"numbers")
    ours.sendall(b"\0\0\0\x20" + b"\0" * 32)
    with pytest.raises(Tampered, match="expected the next one under its key"):
        other.receive()
    one.close()
    assert other.receive() is None
    other.close()


def test_a_start_whose_other_node_is_lost_is_said_to_have_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not to have failed: the service then starts it again from the last training checkpoint."""
    monkeypatch.setattr(node, "digest_code", lambda: CODE)
    found = node.Node(job_folder(site.folder), KEY, 7, 0, threading.Event())
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(found, "say", said.append)
    found.fail(Unavailable("node n2: gone", code=LOST))
    found.fail(Unavailable("rank 1: gone", code="rank-ended"))
    assert said[0] == {"frame": "ended", "code": None, "why": "node n2: gone"}
    assert said[1]["header"]["code"] == "rank-ended"
