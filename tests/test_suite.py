"""scripts/suite.py runs failed cases once more, and fails for what does not pass then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.suite import ALL, GATE, RERUN_CASES, ROOT, Result, Tier, run_tier, summarise

FACTS = {"build": "0.1.0.dev1+gdeadbeef"}
FAILS = {"outcome": "failed"}
Cases = Mapping[str, Mapping[str, Any]]


def case(**changed: Any) -> dict[str, Any]:
    return {"outcome": "passed", "seconds": 1.0, "processor_s": 1.0, "gate": True, "essential": False, **changed}


def runs(
    *outcomes: Cases | int, broken: Sequence[str] = ()
) -> tuple[Callable[[Sequence[str], Path], int], list[Sequence[str]]]:
    """Return a run of pytest that reports these cases, or ends with this exit code, and the commands it was given."""
    left, commands = list(outcomes), []

    def run(command: Sequence[str], report: Path) -> int:
        commands.append(command)
        found = left.pop(0)
        if isinstance(found, int):
            return found
        cases = {name: case(**changed) for name, changed in found.items()}
        report.write_text(json.dumps({"cases": cases, "broken": list(broken)}))
        return int(any(changed["outcome"] == "failed" for changed in cases.values()))

    return run, commands


def status(result: Result, *, everything: bool = False) -> int:
    return summarise(result, FACTS, everything=everything)[1]


def test_a_case_that_passes_when_it_runs_again_is_flaky_and_only_the_gate_passes() -> None:
    run, commands = runs({"a": {}, "b": FAILS}, {"b": {}})
    result = run_tier(GATE, ["-x"], run)
    assert result.flaky == ["b"] and result.list_failed() == []
    assert "-n" in commands[0] and "-x" in commands[0]
    assert "b" in commands[1] and "a" not in commands[1] and "-n" not in commands[1]
    assert (status(result), status(result, everything=True)) == (0, 1)
    assert "Flaky" in summarise(result, FACTS, everything=False)[0]


def test_a_case_that_fails_again_fails_the_run() -> None:
    run, commands = runs({"a": {}, "b": FAILS}, {"b": FAILS})
    result = run_tier(GATE, [], run)
    assert result.list_failed() == ["b"] and result.flaky == [] and len(commands) == 2
    assert status(result) == 1


def test_many_failed_cases_do_not_run_again() -> None:
    run, commands = runs({str(number): FAILS for number in range(RERUN_CASES + 1)})
    assert status(run_tier(GATE, [], run)) == 1 and len(commands) == 1


def test_every_case_runs_without_a_network_also_when_it_runs_again() -> None:
    run, commands = runs({"a": FAILS}, {"a": {}})
    assert run_tier(ALL, [], run).flaky == ["a"]
    assert [command[1:4] for command in commands] == [["tests/kit/alone.py", sys.executable, "-m"]] * 2


@pytest.mark.parametrize("code", [2, 3, 4, 5, -9])
def test_a_run_that_pytest_did_not_end_is_a_failure(code: int) -> None:
    run, _ = runs(code)
    assert status(run_tier(GATE, [], run)) == 1


def test_a_file_that_cannot_be_collected_is_a_failure() -> None:
    run, _ = runs({"a": {}}, broken=["tests/test_x.py"])
    assert status(run_tier(GATE, [], run)) == 1


def test_a_run_without_cases_is_a_failure() -> None:
    run, _ = runs({})
    assert status(run_tier(GATE, [], run)) == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({}, 1), ({"essential": True}, 0), ({"gate": False}, 0), ({"processor_s": 2.9}, 0), ({"seconds": 2.9}, 0)],
)
def test_the_whole_suite_refuses_a_slow_case_of_the_gate(changed: dict[str, Any], expected: int) -> None:
    result = Result({"a": case(**{"processor_s": 3.1, "seconds": 3.1, **changed})})
    assert status(result, everything=True) == expected
    assert status(result) == 0


@pytest.mark.thorough
def test_the_report_of_a_real_run_has_each_outcome(tmp_path: Path) -> None:
    """pytest runs in this process's environment, with the tiers' plugin and two processes."""
    test = tmp_path / "test_x.py"
    test.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert False\n"
        "@pytest.mark.xfail(reason='x')\ndef test_c(): assert False\n"
        "@pytest.mark.thorough\ndef test_d(): assert False\n"
        "@pytest.mark.thorough\n@pytest.mark.essential\ndef test_e(): pass\n"
    )
    options = ["-p", "tests.kit.tiers", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "--gate"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(command: Sequence[str], report: Path) -> int:
        command = [*command, "test_x.py"] if "-n" in command else command
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    result = run_tier(Tier(options, 2), [], run)
    assert not result.broken, result
    found = {name.rpartition("::")[2]: (c["outcome"], c["essential"]) for name, c in result.cases.items()}
    assert found == {
        "test_a": ("passed", False),
        "test_b": ("failed", False),
        "test_c": ("xfailed", False),
        "test_e": ("passed", True),
    }
    assert all(c["gate"] and c["processor_s"] >= 0 for c in result.cases.values())
