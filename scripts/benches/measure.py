"""What every bench shares: rows of a table, medians of interleaved rounds, and a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

Measure = Callable[[], list[float]]
"""Returns the samples of one round."""


@dataclass(frozen=True)
class Row:
    """A measured figure beside its peer. `ratio` is ours / theirs; `met` is None if the figure has no goal."""

    name: str
    ours: float
    unit: str
    against: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


def row(
    name: str,
    ours: float,
    unit: str,
    *,
    against: str | None = None,
    theirs: float | None = None,
    ratio: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    ratio_at_least: float | None = None,
    ratio_at_most: float | None = None,
    note: str = "",
) -> Row:
    """Return a row with its goal and whether it is met. `ratio` is ours / theirs if None; `note` ends the goal."""
    if ratio is None and theirs:
        ratio = ours / theirs
    bounds: list[tuple[str, bool]] = []
    if at_most is not None:
        bounds.append((f"≤ {at_most:,g}", ours <= at_most))
    if at_least is not None:
        bounds.append((f"≥ {at_least:,g}", ours >= at_least))
    if ratio_at_least is not None and ratio is not None:
        bounds.append((f"≥ {ratio_at_least:g}×", ratio >= ratio_at_least))
    if ratio_at_most is not None and ratio is not None:
        bounds.append((f"≤ {ratio_at_most:g}×", ratio <= ratio_at_most))
    goal = ", ".join([text for text, _ in bounds] + ([note] if note else [])) or None
    met = all(holds for _, holds in bounds) if bounds else None
    return Row(name, ours, unit, against, theirs, ratio, goal, met)


class Medians(dict[str, float]):
    """The median of all samples of each measure, by the measure's name."""

    def __init__(self, samples: dict[str, list[list[float]]]) -> None:
        super().__init__((name, statistics.median(chain(*rounds))) for name, rounds in samples.items())
        self._rounds = {name: [statistics.median(one) for one in rounds] for name, rounds in samples.items()}

    def ratio(self, ours: str, theirs: str) -> float:
        """Return the median of the rounds' ratios, so that a disk that slows down between rounds changes little."""
        return statistics.median(a / b for a, b in zip(self._rounds[ours], self._rounds[theirs], strict=True))


def measure_interleaved(rounds: int, **measures: Measure) -> Medians:
    """Run all measures once in each round, so that a slow moment of the machine affects each of them."""
    samples: dict[str, list[list[float]]] = {name: [] for name in measures}
    for number in range(rounds):
        # Every second round runs backwards, so that no measure always follows the same one.
        for name in list(measures)[:: -1 if number % 2 else 1]:
            samples[name].append(measures[name]())
    return Medians(samples)


def wall_ms(act: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def sync_ms(folder: Path, count: int = 50) -> list[float]:
    """Return the milliseconds of each write and fdatasync of 4 KiB at the end of a file."""
    path = folder / "sync"
    with path.open("ab", buffering=0) as stream:

        def write() -> None:
            stream.write(bytes(4096))
            os.fdatasync(stream.fileno())

        found = [wall_ms(write) for _ in range(count)]
    path.unlink()
    return found


def describe_machine(folder: Path) -> list[str]:
    """Return lines about cores, memory, kernel and disk. They do not name the machine."""
    cpu = next(iter(_values(Path("/proc/cpuinfo"), "model name")), platform.machine())
    memory_kib = next((int(text.split()[0]) for text in _values(Path("/proc/meminfo"), "MemTotal")), 0)
    cores = len(os.sched_getaffinity(0))
    sync = statistics.median(sync_ms(folder))
    return [
        f"{cores} cores, {cpu}, {memory_kib / 2**20:.0f} GiB",
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        f"disk: {_filesystem(folder)}, fdatasync of 4 KiB {sync:.2f} ms (median)",
        f"{datetime.now(UTC):%Y-%m-%d}",
    ]


def _values(path: Path, name: str) -> Iterable[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name]


def _filesystem(folder: Path) -> str:
    """Return the kind of file system that contains the folder."""
    place, found = str(folder.resolve()), ("", "unknown")
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, kind, *_ = line.split(" ")
        if place.startswith(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """Write an array with one object for each measure."""
    path.write_text(json.dumps([asdict(one) for one in rows], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_HEADS = ("measure", "ours", "unit", "against", "theirs", "ratio", "goal", "met")
_RIGHT = ("ours", "theirs", "ratio")


def _cells(one: Row) -> tuple[str, ...]:
    met = {None: "", True: "yes", False: "NO"}[one.met]
    ratio = "" if one.ratio is None else f"{_number(one.ratio)}×"
    return (one.name, _number(one.ours), one.unit, one.against or "", _number(one.theirs), ratio, one.goal or "", met)


def _number(value: float | None) -> str:
    """Return the number with three significant digits, from 100 on as an integer with commas."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of aligned columns."""
    lines = [_HEADS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for head, cell, width in zip(_HEADS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    rule = ["---:" if head in _RIGHT else "---" for head in _HEADS]
    return "\n".join(f"| {' | '.join(line)} |" for line in (_HEADS, rule, *map(_cells, rows)))
