"""Benches of the auditor's verifier on an export: its time, and its memory with that of its child processes."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.benches.logs import Log, open_log
from scripts.benches.measure import Row, measure_interleaved, row, wall_ms
from scripts.benches.synthetic import Synthetic

_SAMPLE_S = 0.1
_HASHINGS = 80
"""Goal: the time of a verification, as a multiple of hashing the same bytes."""
_LARGE = 1_000_000
"""Entries from which that goal holds. In smaller logs the program's start takes a large part of the time."""
_GROWTH = 1.5
"""Goal: the memory of a verification, as a multiple of that for a tenth of the entries."""


@dataclass(frozen=True)
class Run:
    """The cost of a verification. `peak_mb`: the largest memory that was seen, in MB."""

    seconds: float
    peak_mb: float


def verify(log: Log) -> Run:
    """Run the verifier once, and return its cost.

    Raises:
        RuntimeError: The verdict is not "verified".
    """
    command = [sys.executable, "-m", "appliance.verifier", str(log.export), "--trust", str(log.trust)]
    command.append("--without-cedar-policies")  # a synthetic log has none
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        peak = 0
        while program.returncode is None:
            peak = max(peak, _measure_memory(program.pid))
            with suppress(subprocess.TimeoutExpired):
                program.wait(_SAMPLE_S)
        seconds = time.perf_counter() - began
        output = "" if program.stdout is None else program.stdout.read()
    if program.returncode != 0:
        raise RuntimeError(f"verification of {log.size} entries: expected verified, got {output[-2000:]}")
    return Run(seconds, peak / 1e6)


def _measure_memory(pid: int) -> int:
    """Return the bytes of a process and its descendants (proportional set size, so shared pages count once)."""
    try:
        children = [
            int(child)
            for path in Path(f"/proc/{pid}/task").glob("*/children")
            for child in path.read_text(encoding="ascii").split()
        ]
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0  # the process has ended meanwhile
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(map(_measure_memory, children))


def hash_file(path: Path) -> None:
    with path.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")


def measure_whole(log: Log, folder: Path, rounds: int) -> list[Row]:
    """Measure a verification's time beside hashing the same bytes, and its memory beside that for a tenth."""
    runs: list[Run] = []
    with open_log(folder, max(log.size // 10, Synthetic.MIN_SIZE)) as tenth:
        tenth_mb = verify(tenth).peak_mb

    def program() -> list[float]:
        runs.append(verify(log))
        return [runs[-1].seconds]

    found = measure_interleaved(rounds, program=program, hashing=lambda: [wall_ms(lambda: hash_file(log.export)) / 1e3])
    peak_mb = statistics.median(run.peak_mb for run in runs)
    return rows(log.size, seconds=found["program"], hashing_s=found["hashing"], peak_mb=peak_mb, tenth_mb=tenth_mb)


def rows(size: int, *, seconds: float, hashing_s: float, peak_mb: float, tenth_mb: float) -> list[Row]:
    """Return the rows of a verification of `size` entries. `tenth_mb`: memory for a tenth of the entries, in MB."""
    at = f"{size:,} entries"
    is_large = size >= _LARGE
    return [
        row(
            *(f"offline verification, {at}, 1 % signed orders", seconds, "s"),
            against="SHA-256 of the same bytes",
            theirs=hashing_s,
            ratio_at_most=_HASHINGS if is_large else None,
            note="" if is_large else f"{_HASHINGS}× only from {_LARGE:,} entries",
        ),
        row(
            *(f"memory of verification, {at}", peak_mb, "MB"),
            against="a tenth of the entries",
            theirs=tenth_mb,
            ratio_at_most=_GROWTH,
        ),
    ]
