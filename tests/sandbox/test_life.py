"""A worker ends with its service, however either dies; its frames are untrusted."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput, TooLarge, Unavailable
from appliance.sandbox import output
from appliance.sandbox.local import Worker
from scripts.kit.waiting import wait_for

HERE = Path(__file__).resolve().parent
BEATS = ("beat-0", "beat-1", "beat-2")


def beats(folder: Path) -> list[str]:
    return [(folder / "output" / name).read_text() for name in BEATS if (folder / "output" / name).exists()]


def all_beat(folder: Path) -> bool:
    """Every process of the crowd has written, and writes on."""
    before = beats(folder)
    time.sleep(0.1)
    after = beats(folder)
    return len(before) == len(BEATS) and all(one != other for one, other in zip(before, after, strict=True))


def none_beats(folder: Path) -> bool:
    before = beats(folder)
    time.sleep(0.2)
    return beats(folder) == before


@pytest.fixture
def lingering(folder: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Yield a starter of a service with many workers, which returns its process and the launcher's process id."""
    started: list[subprocess.Popen[str]] = []

    def begin(**fields: Any) -> tuple[subprocess.Popen[str], int]:
        order = json.dumps({"folder": str(folder), "module": "inmates.crowd", "linger": True, **fields})
        process = subprocess.Popen(
            [sys.executable, str(HERE / "service.py"), order],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},  # a service that is killed leaves its escape_targets' folder
        )
        started.append(process)
        assert process.stdout is not None
        outer: int = json.loads(process.stdout.readline())["outer"]
        wait_for(lambda: all_beat(folder))
        return process, outer

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def gone(process: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.thorough
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
def test_the_crowd_dies_with_the_service(
    lingering: Callable[..., Any], folder: Path, end: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Children and grandchildren that ignore signals and closed their descriptors die too."""
    process, outer = lingering()
    process.send_signal(end)
    process.wait(60)
    wait_for(lambda: gone(outer))
    wait_for(lambda: none_beats(folder))


@pytest.mark.thorough
def test_the_crowd_dies_with_the_service_without_a_pid_namespace(lingering: Callable[..., Any], folder: Path) -> None:
    """By their process group, which the call filter does not let them leave."""
    process, outer = lingering(without=["pid-ns"], accepted=["pid-ns"])
    process.kill()
    wait_for(lambda: gone(outer))
    wait_for(lambda: none_beats(folder))


@pytest.mark.thorough
def test_the_crowd_dies_with_the_launchers_processes(lingering: Callable[..., Any], folder: Path) -> None:
    """Killing the outer process kills init, and init's end ends its PID namespace."""
    _, outer = lingering()
    os.kill(outer, signal.SIGKILL)
    wait_for(lambda: none_beats(folder))


@pytest.mark.thorough
def test_the_crowd_dies_with_init(lingering: Callable[..., Any], folder: Path) -> None:
    _, outer = lingering()
    (init,) = map(int, Path(f"/proc/{outer}/task/{outer}/children").read_text().split())
    os.kill(init, signal.SIGKILL)
    wait_for(lambda: gone(outer))
    wait_for(lambda: none_beats(folder))


def test_the_crowd_outlives_the_thread_that_started_it(service: Any, folder: Path) -> None:
    """PDEATHSIG of the service's thread would have killed it."""
    workers: list[Worker] = []
    order = service.Order(str(folder), module="inmates.crowd")
    thread = threading.Thread(target=lambda: workers.append(service.begin(order)))
    thread.start()
    thread.join()
    with workers[0]:
        wait_for(lambda: all_beat(folder))


def test_kill_returns_when_nobody_is_left(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.crowd")) as worker:
        wait_for(lambda: all_beat(folder))
        assert worker.poll() is None
        worker.kill()
        last = beats(folder)
        assert worker.poll() == 128 + signal.SIGKILL
        time.sleep(0.1)
        assert beats(folder) == last
        worker.kill()  # again is harmless


@pytest.mark.thorough
def test_a_worker_is_ended_without_waiting_for_its_processes(
    service: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.sandbox.local._KILL_S", 3.0)
    with service.begin(service.Order(str(folder), module="inmates.crowd")) as worker:
        wait_for(lambda: all_beat(folder))
        os.kill(worker.pid, signal.SIGSTOP)  # the outer process ends no sooner than it is killed
        began = time.monotonic()
        worker.end()
        worker.end()
        assert time.monotonic() - began < 2.5
        wait_for(lambda: worker.poll() is not None)
        wait_for(lambda: none_beats(folder))


@pytest.mark.thorough
def test_the_worker_ends_when_its_block_does(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.crowd")) as worker:
        wait_for(lambda: all_beat(folder))
    assert worker.poll() is not None
    assert none_beats(folder)


@pytest.mark.thorough
def test_a_paused_worker_stands_still_and_continues(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.crowd")) as worker:
        wait_for(lambda: all_beat(folder))
        worker.pause()
        wait_for(lambda: none_beats(folder))
        worker.resume()
        wait_for(lambda: all_beat(folder))
        worker.pause()
        worker.kill()
        assert worker.poll() == 128 + signal.SIGKILL


@pytest.mark.thorough
def test_no_descriptor_and_no_thread_is_left_behind(service: Any, folder: Path) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = count()
    for _ in range(3):
        with service.begin(service.Order(str(folder))) as worker:
            assert service.attempt(worker, "socket_pair", []) == "EPERM"
        with pytest.raises(Unavailable):
            service.begin(service.Order(str(folder), without=["seccomp"]))
    assert count() == before


@pytest.mark.parametrize("number", range(1, 8))
def test_a_worker_that_lacks_a_descriptor_leaves_nothing_and_nobody(
    service: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Seven calls in all: the pipes of its log, its input, its output, the parent-death pipe, the report, and Python's
    own of the new process; then what wakes a reader."""

    def count() -> tuple[int, int, list[str]]:
        children = [one.read_text().split() for one in Path("/proc/self/task").glob("*/children")]
        return len(os.listdir("/proc/self/fd")), threading.active_count(), sorted(chain(*children))

    calls = iter(range(1, 8))

    def lack(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            if next(calls, 0) == number:
                raise OSError(errno.EMFILE, "Too many open files")
            return call(*given)

        return called

    before = count()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe", lack(os.pipe))
        patch.setattr(os, "eventfd", lack(os.eventfd))
        with pytest.raises(Unavailable, match="Too many open files"):
            service.begin(service.Order(str(folder), module="inmates.crowd"))
    assert count() == before
    assert none_beats(folder)


def test_a_service_with_more_descriptors_than_select_takes_has_workers(service: Any, folder: Path) -> None:
    """Connections of clients may hold a thousand of them."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1200), limits[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        taken = stack.enter_context(open(os.devnull))
        while taken.fileno() < 1030:
            taken = stack.enter_context(open(os.devnull))
        with service.begin(service.Order(str(folder))) as worker:
            assert service.attempt(worker, "socket_pair", []) == "EPERM"
            worker.pause()
            worker.resume()
            worker.kill()
            assert worker.poll() is not None


def test_two_workers_do_not_hold_each_others_control_pipe(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder))) as first, service.begin(service.Order(str(folder))) as second:
        first.kill()
        assert first.poll() is not None and second.poll() is None
        assert service.attempt(second, "see", ["/proc"]) == "open"


def test_an_honest_worker_has_what_it_needs(service: Any, folder: Path) -> None:
    """Threads, children, temporary files, renames; a blob larger than a pipe comes back."""
    (folder / "data").write_text("rows")
    blob = os.urandom(1 << 20)
    order = service.Order(str(folder), module="inmates.citizen", read=[str(folder / "data")])
    with service.begin(order) as worker:
        worker.send({"read": str(folder / "data")}, blob)
        frame = worker.receive(60)
        assert frame is not None
        assert (frame[0]["threads"], frame[0]["child"], frame[0]["read"]) == (45, 42, "rows")
        assert frame[0]["temporary"].startswith(str(folder / "output" / ".tmp"))
        assert frame[1] == blob
        assert worker.wait(60) == 0
        assert worker.receive(1) is None and worker.receive(1) is None
    assert (folder / "output" / "folder" / "copy").read_bytes() == (folder / "output" / "whole").read_bytes()


def test_a_module_that_does_not_exist_ends_and_the_log_says_why(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.absent")) as worker:
        assert worker.receive(60) is None
        assert worker.wait(60) == 1
    assert "No module named inmates.absent" in (folder / "log").read_text()
    assert (folder / "log").stat().st_mode & 0o077 == 0


def test_the_log_is_never_a_link(service: Any, folder: Path) -> None:
    (folder / "precious").write_text("")
    (folder / "log").symlink_to(folder / "precious")
    with pytest.raises(BadInput, match="log"):
        service.begin(service.Order(str(folder)))
    assert (folder / "precious").read_text() == ""


@pytest.mark.parametrize("attack", ["empty_log", "empty_log_by_name"])
def test_a_worker_cannot_empty_its_log(service: Any, folder: Path, attack: str) -> None:
    (folder / "log").write_text("an earlier worker's words\n")
    with service.begin(service.Order(str(folder))) as worker:
        service.attempt(worker, "empty_log", [])
        service.attempt(worker, attack, [])
    assert (folder / "log").read_text().startswith("an earlier worker's words\nwords\n")


@pytest.mark.thorough
def test_a_loud_worker_leaves_its_first_and_its_last_words(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.broken")) as worker:
        worker.send({"kind": "loud"})
        assert worker.wait(60) == 0
    kept = (folder / "log").read_bytes()
    assert kept.startswith(b"first words\n?[2J and more\n") and kept.endswith(b"last words\n")
    assert b"bytes are left out here]" in kept and len(kept) < output.FIRST_BYTES + output.LAST_BYTES + 100


@pytest.mark.parametrize("begins", [b"\x1b[", b"\x9b", "\x9b".encode(), b"\xc2\r\x9b", b"\x7f"])
def test_no_log_has_a_control_sequence_in_any_encoding(tmp_path: Path, begins: bytes) -> None:
    """U+009B alone begins one, where the terminal's encoding is UTF-8 or Latin-1."""
    made = output.WorkerLog(tmp_path / "log")
    os.write(made.inner, begins + b"2Jhidden\n")
    made.release()
    made.join(60)
    kept = (tmp_path / "log").read_bytes()
    assert kept.endswith(b"2Jhidden\n") and kept.decode("ascii").replace("\n", "").isprintable()


def test_a_pipe_in_the_place_of_a_log_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(BadInput, match="expected a file to append to"):
        output.WorkerLog(tmp_path / "log")


def test_a_log_that_cannot_be_written_holds_no_worker() -> None:
    full = output.WorkerLog(Path("/dev/full"))
    for _ in range(4):
        assert os.write(full.inner, bytes(1 << 16)) == 1 << 16
    full.release()
    full.join(60)


@pytest.mark.parametrize(("kind", "error"), [("huge", TooLarge), ("cut", BadInput)])
def test_a_broken_frame_is_an_error_and_stays_one(
    service: Any, folder: Path, kind: str, error: type[Exception]
) -> None:
    with service.begin(service.Order(str(folder), module="inmates.broken")) as worker:
        worker.send({"kind": kind})
        for _ in range(2):
            with pytest.raises(error):
                worker.receive(60)


def test_a_silent_worker_is_named(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.broken")) as worker:
        worker.send({"kind": "silent"})
        with pytest.raises(Unavailable) as caught:
            worker.receive(0.2)
        assert caught.value.code == "worker-silent"


@pytest.mark.thorough
def test_what_nobody_receives_waits_in_the_pipe(service: Any, folder: Path) -> None:
    """No thread reads ahead: a frame goes from the pipe to whoever receives it."""
    before = {thread.name for thread in threading.enumerate()}
    with service.begin(service.Order(str(folder), module="inmates.broken")) as worker:
        assert {thread.name for thread in threading.enumerate()} - before <= {"worker-log"}
        worker.send({"kind": "flood"})
        assert worker.receive(60)[0] == {"number": 0}
        time.sleep(0.3)
        assert len(worker._frames._data) < 1 << 18
        assert [worker.receive(60)[0]["number"] for _ in range(50)] == list(range(1, 51))
        began = time.monotonic()
    assert time.monotonic() - began < 25, "a worker that waits for a reader is ended at once"


def test_a_worker_that_does_not_read_does_not_hold_the_service(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder), module="inmates.broken")) as worker:
        worker.send({"kind": "silent"})
        with pytest.raises(Unavailable) as caught:
            worker.send({}, bytes(1 << 20), timeout_s=0.3)
        assert caught.value.code == "worker-silent"


def test_sending_to_a_dead_worker_is_unavailable(service: Any, folder: Path) -> None:
    with service.begin(service.Order(str(folder))) as worker:
        worker.kill()
        with pytest.raises(Unavailable):
            worker.send({"attack": "see"}, bytes(1 << 20))
    with pytest.raises(Unavailable):
        worker.send({})


def test_whoever_waits_for_a_frame_wakes_when_the_worker_is_closed(service: Any, folder: Path) -> None:
    worker = service.begin(service.Order(str(folder)))
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(worker.receive(None)))
    waiting.start()
    worker.close()
    waiting.join(60)
    assert got == [None]


@pytest.mark.thorough
def test_torch_and_a_four_bit_linear_work_inside(service: Any, folder: Path) -> None:
    order = service.Order(str(folder), module="inmates.quantised")
    with service.begin(order) as worker:
        frame = worker.receive(90)
        assert frame is not None, (folder / "log").read_text()
        assert frame[0]["same"] and frame[0]["gradient"]
        assert frame[0]["product"] == [300.0] and frame[0]["packed"] == "torch.uint8"
        assert worker.wait(60) == 0
