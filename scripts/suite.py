"""Runs a tier of the tests, runs failed cases once more, and prints a summary. scripts/test calls it.

Usage: scripts/suite.py [--all] [PYTEST-ARGUMENT ...]

A case that fails runs once more, alone, after all others have ended. If it passes then, the summary names it as flaky:
in the gate the run passes, with --all it fails. With more than ten failed cases, none runs again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "test-summary.txt"
RERUN_CASES = 10
"""Failed cases that run once more, at most."""

GATE_S = 3.0
"""Seconds of processor time of a case in the gate that is not marked `essential`, at most."""

SLOWEST = 20
PASSED, FAILED = 0, 1  # exit codes of pytest that say something about its cases


@dataclass(frozen=True)
class Tier:
    """One run of pytest. `alone` is True for a run in a network namespace that has only a loopback."""

    options: Sequence[str]
    processes: int
    alone: bool = False

    def command(self, more: Sequence[str], processes: int) -> list[str]:
        pytest = [sys.executable, "-m", "pytest", *self.options, *more]
        if processes > 1:
            # A file stays in one process, so that what its tests share is made once.
            pytest += ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]
        return [sys.executable, "tests/kit/alone.py", *pytest] if self.alone else pytest


GATE = Tier(["--gate"], 2)
ALL = Tier(["--all"], 3, alone=True)
"""Three processes on two cores: the cases with other programs wait half of their time."""


@dataclass
class Result:
    """Outcomes of all cases. A case that passed when it ran again is in `flaky`."""

    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    flaky: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def list_failed(self) -> list[str]:
        return sorted(name for name, case in self.cases.items() if case["outcome"] == "failed")

    def list_slow(self) -> list[str]:
        """Return the cases of the gate that took too much processor time.

        The time of a child that earlier cases used counts for the case in which it ends. So a case is only slow if it
        took as long by the clock.
        """
        return sorted(
            name
            for name, case in self.cases.items()
            if case.get("gate") and not case["essential"] and min(case["processor_s"], case["seconds"]) > GATE_S
        )


Run = Callable[[Sequence[str], Path], int]


def run_tier(tier: Tier, given: Sequence[str], run: Run) -> Result:
    """Run a tier, then its failed cases once more. `run` takes a command and the file of its report."""
    result = Result()
    result.cases = _run(tier, given, tier.processes, run, result)
    if 0 < len(failed := result.list_failed()) <= RERUN_CASES:
        for name, case in _run(tier, failed, 1, run, result).items():
            if case["outcome"] == "passed":
                result.flaky.append(name)
                result.cases[name] = case
    return result


def _run(tier: Tier, more: Sequence[str], processes: int, run: Run, result: Result) -> dict[str, dict[str, Any]]:
    """Run pytest and return the cases. A run that ends without a report, or collects nothing, is broken."""
    with tempfile.TemporaryDirectory(prefix="suite-") as folder:
        report = Path(folder) / "report.json"
        status = run(tier.command([*more, f"--report={report}"], processes), report)
        if status not in (PASSED, FAILED) or not report.exists():
            result.broken.append(f"pytest ended with exit code {status}")
        if not report.exists():
            return {}
        found = json.loads(report.read_text(encoding="utf-8"))
    result.broken += found["broken"]
    cases: dict[str, dict[str, Any]] = found["cases"]
    return cases


def summarise(result: Result, facts: Mapping[str, str], *, everything: bool) -> tuple[str, int]:
    """Return the text of the summary and the exit code of the run."""
    counts = Counter(case["outcome"] for case in result.cases.values())
    failed, slow = result.list_failed(), result.list_slow() if everything else []
    counted = [f"{counts['passed']} passed", f"{len(failed)} failed", f"{len(result.flaky)} flaky"]
    counted += [f"{counts[kind]} {kind}" for kind in ("skipped", "xfailed") if counts[kind]]
    lines = [f"{name:<10} {value}" for name, value in [*facts.items(), ("cases", ", ".join(counted))]]
    gate_s = sum(case["seconds"] for case in result.cases.values() if case.get("gate"))
    lines.append(f"{'the gate':<10} {gate_s:.0f} s of cases")
    lines += ["", f"The slowest {SLOWEST}, in seconds by the clock and of the processor:"]
    for name, case in sorted(result.cases.items(), key=lambda row: -row[1]["seconds"])[:SLOWEST]:
        lines.append(f"{case['seconds']:8.1f} {case.get('processor_s', 0):8.1f}  {name}")
    for title, names in (
        ("Failed:", failed),
        ("Flaky (failed once, passed alone; mend them):", sorted(result.flaky)),
        ("Not run to the end:", result.broken),
        (f"In the gate, and over {GATE_S:g} s of processor time (mark them thorough):", slow),
    ):
        if names:
            lines += ["", title, *(f"  {name}" for name in names)]
    wrong = failed or result.broken or slow or (everything and result.flaky) or not result.cases
    return "\n".join(lines) + "\n", 1 if wrong else 0


def _describe_processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def _call(command: Sequence[str], report: Path) -> int:
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Run the tier that the arguments ask for, and return the exit code."""
    everything = "--all" in arguments
    given = [argument for argument in arguments if argument != "--all"]
    sys.path.insert(0, str(ROOT))
    from appliance.build import build_version

    facts = {"build": build_version(), "processor": _describe_processor()}
    began, load = time.monotonic(), os.getloadavg()[0]
    result = run_tier(ALL if everything else GATE, given, _call)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    facts["load"] = f"{load:.1f} before, {os.getloadavg()[0]:.1f} after"
    facts["time"] = f"{minutes} min {seconds} s for {'every case' if everything else 'the gate'}"
    text, status = summarise(result, facts, everything=everything)
    SUMMARY.write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {SUMMARY.name}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
