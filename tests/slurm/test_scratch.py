"""A job's private folder is removed with its launcher, or at the next start on the node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.sandbox.description import PACKAGE
from appliance.slurm.objects import private_folder

KILLED = """
import os, signal, sys
from appliance.slurm.objects import private_folder
with private_folder(sys.argv[1], sys.argv[2], 7, 0) as folder:
    (folder / "input").mkdir()
    (folder / "input" / "rows").write_bytes(b"rows")
    (folder / "input" / "rows").chmod(0o400)
    print(folder.name, flush=True)
    if sys.argv[3:]:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def launcher(scratch: Path, node: str, *killed: str) -> tuple[subprocess.Popen[str], str]:
    """Of another job, and the name of its folder."""
    command = [sys.executable, "-c", KILLED, str(scratch), node, *killed]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_folder_is_private_and_goes_with_its_launcher(tmp_path: Path) -> None:
    with private_folder(str(tmp_path), "n1", 7, 2) as folder:
        assert folder.name.startswith("appliance-job-7-2-") and folder.name.endswith("@n1")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "rows").write_bytes(b"rows")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_what_killed_launchers_left_goes_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    killed, gone = launcher(tmp_path, "n1", "killed")
    killed.wait(60)
    elsewhere, other = launcher(tmp_path, "n2-n1", "killed")
    elsewhere.wait(60)
    living, held = launcher(tmp_path, "n1")
    assert not (tmp_path / gone).exists()
    (tmp_path / "appliance-job-9-0-file@n1").write_bytes(b"")
    (tmp_path / "else").mkdir()
    (tmp_path / "appliance-job-9-0-link@n1").symlink_to(tmp_path / "else")
    kept = {other, held, "else", "appliance-job-9-0-file@n1", "appliance-job-9-0-link@n1"}
    with private_folder(str(tmp_path), "n1", 8, 0) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name}
    assert {path.name for path in tmp_path.iterdir()} == kept
    for process in (killed, elsewhere, living):
        process.communicate("")
    assert not (tmp_path / held).exists()


def test_a_folder_of_another_account_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appliance-job-9-0-x@n1").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with private_folder(str(tmp_path), "n1", 8, 0):
        assert (tmp_path / "appliance-job-9-0-x@n1").is_dir()


def test_a_scratch_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="expected to make a folder there, got No such file or directory"),
        private_folder(str(tmp_path / "none"), "n1", 7, 0),
    ):
        raise AssertionError
