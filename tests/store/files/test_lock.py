"""One service a data folder, and no lock outlives its holder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.errors import Conflict, Unavailable
from appliance.store.files import lock as locks
from appliance.store.files.lock import lock_folder

HOLD = """
import sys
from pathlib import Path
from appliance.store.files.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_service_is_told_the_process_id_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "appliance.lock"
    holder = hold(path)
    try:
        with pytest.raises(
            Conflict, match=rf"got one with process id {holder.pid}; end it with: appliance stop$"
        ) as caught:
            lock_folder(path)
        assert caught.value.code == "locked"
    finally:
        end(holder)
    with lock_folder(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "appliance.lock"
    holder = hold(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    lock_folder(path).release()


def test_a_program_that_the_holder_started_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "appliance.lock"
    with lock_folder(path):
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        lock_folder(path).release()
    finally:
        child.kill()
        child.communicate()


def test_the_lock_holds_within_one_process_too(tmp_path: Path) -> None:
    path = tmp_path / "appliance.lock"
    with lock_folder(path), pytest.raises(Conflict):
        lock_folder(path)
    lock = lock_folder(path)
    lock.release()
    lock.release()


def test_a_lock_file_that_was_removed_while_it_was_waited_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services would else hold locks on two files of one name."""
    path = tmp_path / "appliance.lock"
    flock = fcntl.flock
    removed: list[bool] = []

    def remove_once(descriptor: int, flags: int) -> None:
        if not removed:
            removed.append(True)
            path.unlink()
        flock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with lock_folder(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(Conflict):
            lock_folder(path)


@pytest.mark.thorough
def test_who_only_looks_is_waited_for_and_who_holds_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "appliance.lock"
    path.touch(0o600)
    looker = os.open(path, os.O_RDWR)
    fcntl.flock(looker, fcntl.LOCK_SH)
    monkeypatch.setattr(locks, "LOOKED_AT_S", 0.2)
    with pytest.raises(Conflict):
        lock_folder(path)
    monkeypatch.setattr(locks, "LOOKED_AT_S", 60.0)
    leaving = threading.Timer(0.3, os.close, [looker])
    begun = time.monotonic()
    leaving.start()
    with lock_folder(path):
        assert 0.3 <= time.monotonic() - begun < 30
        begun = time.monotonic()
        with pytest.raises(Conflict):
            lock_folder(path)
        assert time.monotonic() - begun < 30, "a service that runs is told of at once"
    leaving.join()


def test_a_link_in_the_lock_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "appliance.lock").symlink_to(tmp_path / "other")
    with pytest.raises(Unavailable):
        lock_folder(tmp_path / "appliance.lock")
    assert not (tmp_path / "other").exists()


def test_what_the_holder_says_stands_behind_its_process_id(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_folder(path) as lock:
        lock.say("reads its log: 1,234,567 of 10,000,000 entries")
        lock.say("starts")
        assert path.read_text() == f"{os.getpid()}\nstarts\n"
        with pytest.raises(Conflict, match=rf"process id {os.getpid()}; end it with"):
            lock_folder(path)
        lock.say("")
        assert path.read_text() == f"{os.getpid()}\n"
    lock.say("nothing, once it is released")
