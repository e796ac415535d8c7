"""Training beside transformers' Trainer with peft, and serving beside peft's mixed batches: one card, the same data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches.measure import Row, measure_interleaved, row
from scripts.benches.programs import ROOT, start_program
from scripts.benches.recipe import RECIPE
from scripts.benches.serving_worker import make_adapters
from scripts.gpu_machine.model import make_rows

WORKER = ROOT / "scripts" / "benches" / "training_worker.py"
EVALUATED = 16
MB = 1e6


@dataclass(frozen=True)
class Size:
    """Amounts of a measurement. `steps` are of `batch` rows of at most `longest` words, the first two not counted;
    `tokens` are drawn for each of `streams` in each round."""

    rounds: int
    steps: int
    batch: int
    longest: int
    streams: int
    adapters: int
    tokens: int


SIZES = {
    "tiny": Size(rounds=1, steps=3, batch=2, longest=12, streams=3, adapters=2, tokens=3),
    "1b": Size(rounds=2, steps=12, batch=16, longest=160, streams=16, adapters=8, tokens=64),
    "8b": Size(rounds=1, steps=8, batch=16, longest=160, streams=16, adapters=8, tokens=64),
}
"""Amounts by the model's name."""


def measure_training(base: Path, folder: Path, size: Size, device: str) -> Iterator[Row]:
    """Tokens a second and peak memory of both, each run in a process of its own, in turns."""
    rows = make_rows(size.steps * size.batch + EVALUATED, size.longest)
    paths = {"rows": folder / "rows.jsonl", "evaluated": folder / "evaluated.jsonl"}
    for path, some in zip(paths.values(), (rows[EVALUATED:], rows[:EVALUATED]), strict=True):
        path.write_text("".join(json.dumps(one) + "\n" for one in some), "utf-8")
    task = {"base": str(base), "device": device, **{name: str(path) for name, path in paths.items()}}
    task["recipe"] = RECIPE | {"device": device, "batch_size": size.batch, "learning_rate": "0.0001"}
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trainer": []}
    for number in range(size.rounds):
        for kind in list(found)[:: -1 if number % 2 else 1]:
            found[kind].append(_train({"kind": kind, **task}))

    def compare(name: str, member: str, unit: str, scale: float, **goal: float) -> Row:
        ours, theirs = ([one[member] / scale for one in found[kind]] for kind in ("ours", "trainer"))
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        against = "transformers' Trainer with peft"
        return row(name, median(ours), unit, against=against, theirs=median(theirs), ratio=ratio, **goal)

    yield compare("training, tokens a second", "tokens_a_second", "1/s", 1.0, ratio_at_least=1.5)
    yield compare("training, peak memory", "peak_bytes", "MB", MB, ratio_at_most=0.6)
    yield compare(f"training, loss of {EVALUATED} other rows afterwards", "loss", "nats", 1.0)


def _train(task: dict[str, Any]) -> dict[str, Any]:
    """One run; RuntimeError where it ends otherwise than well."""
    threads = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    command = [sys.executable, str(WORKER), json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training, {task['kind']}: ended with {done.returncode}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure_serving(base: Path, folder: Path, size: Size, device: str) -> Iterator[Row]:
    """Tokens a second of all streams together. Both programs have the base in memory, and take turns."""
    adapters = [str(path) for path in make_adapters(str(base), folder, [RECIPE["rank"]] * size.adapters)]
    slots = [Path(adapters[stream % size.adapters]).name for stream in range(size.streams)]
    prompts = [one["text"] for one in make_rows(size.streams, size.longest)]
    with ExitStack() as stack:
        ours, peft = (stack.enter_context(start_program(base, device, kind)) for kind in ("ours", "peft"))
        for program in (ours, peft):
            program("load", folders=adapters)

        def rated(tokens: int) -> dict[str, Any]:
            wanted = {"prompts": prompts, "tokens": tokens}
            turns = {
                "mixed": lambda: ours("answer", slots=slots, **wanted),
                "bare": lambda: ours("answer", slots=[None] * size.streams, **wanted),
                "names": lambda: peft("mixed", slots=slots, **wanted),
                "alternate": lambda: peft("alternate", slots=slots, **wanted),
            }
            return {name: lambda turn=turn: [(got := turn())[1] / got[0]] for name, turn in turns.items()}

        for turn in rated(2).values():
            turn()  # Once without a clock: kernels are loaded and allocators fill.
        found = measure_interleaved(size.rounds, **rated(size.tokens))
    name = f"serving, tokens a second, {size.streams} streams over {size.adapters} adapters"
    for theirs, said, goal in (
        ("names", "peft, mixed batch (adapter_names)", 5.0),
        ("alternate", "peft, one adapter after another", None),
        ("bare", "the bare base in the same engine", None),
    ):
        speeds = {"theirs": found[theirs], "ratio": found.ratio("mixed", theirs), "ratio_at_least": goal}
        yield row(name, found["mixed"], "1/s", against=said, **speeds)
