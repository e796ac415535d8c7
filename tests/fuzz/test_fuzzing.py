"""A short run of `scripts/fuzz`, and the defects that it must find."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import listeners, parsers
from tests.fuzz.faulty_worker import FAULTS, GOOD
from tests.fuzz.seeds import ROOT

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    words = ["--minutes", "0.05", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fuzz: 4 listeners" in done.stdout and done.stdout.endswith("fuzz: 0 findings\n")
    assert list((tmp_path / "corpus").iterdir())


def test_a_parser_that_ends_the_process_takes_memory_or_does_not_return_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsers, "HANG_S", 6.0)
    tried = parsers.try_parsers(tmp_path, 6, 1, list(FAULTS), processes=len(FAULTS), module="tests.fuzz.faulty_worker")
    found = {one.where: (one.problem.partition(":")[0], Path(one.input).read_bytes()) for one in tried.findings}
    assert found.keys() == FAULTS.keys()
    assert found["end"][0] == "the process ended with -6" and found["hang"][0] == "the call did not return"
    assert found["grow"][0] == "MemoryError" and all(data != GOOD for _, data in found.values())


def test_a_defect_of_a_listener_is_found_by_its_document_and_at_the_console(tmp_path: Path) -> None:
    asked = listeners.Asked()
    with (
        listeners.start_server(tmp_path, "tests.fuzz.faulty_server") as server,
        contextlib.closing(listeners.Visits(server, 1, asked)) as visits,
    ):
        until = time.monotonic() + 120
        while len(listed(asked)) < 1 and time.monotonic() < until:
            visits.run(time.monotonic() + 1)
        while len(listed(asked)) < 2 and time.monotonic() < until:
            listeners.ask_by_document(server, "people", 4, 1, asked)
        assert any("LookupError" in problem for problem in server.find_problems())
    assert listed(asked) == {("console", "status 500"), ("people", "Server error")}


def listed(asked: listeners.Asked) -> set[tuple[str, str]]:
    return {(one.where.partition(" ")[0], one.problem) for one in asked.findings}
