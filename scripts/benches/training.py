"""`scripts/bench train`: the training loop beside TRL, transformers' Trainer and soup-cli, in separate processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches import models, service_overhead
from scripts.benches.measure import Row, row
from scripts.benches.recipe import RECIPE

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("training_worker.py")
PEERS = {"trl": ROOT / ".venv-bench-trl", "soup": ROOT / ".venv-bench-soup"}
"""The environments that `scripts/bench` makes from the extras `bench-trl` and `bench-soup`."""
PEERS_WITHOUT_GOAL = ("trainer", "soup")
"""Peers against which there is no goal. They run in the first round only."""
DATASETS = {
    # The held-out questions, since an evaluation reads them. Its speed is compared with training on the same rows.
    "banking77": ("banking77/test.csv", "text", "category"),
    "CUAD": ("cuad/clauses_train.csv", "text", "category"),
}
DATA = ROOT.parent / "shared" / "data"
SERVICE_FILE = "banking77/train.csv"
SERVICE_ROWS = 8_000
"""Rows of that file for a run through the service. Two epochs take about ten minutes on two cores."""
EVALUATED = 32
"""Rows outside the training rows, for the final losses."""


@dataclass(frozen=True)
class Plan:
    """A measurement. `steps`: optimiser steps of 16 rows, by dataset; the first `warm_up` are not counted."""

    model: models.Model
    data: Path
    device: str
    rounds: int
    steps: dict[str, int]
    checkpointing: bool
    """True to measure ours and TRL with gradient checkpointing, too."""
    peers: bool
    """True to measure the peers without a goal, too, once."""
    starts: int
    """Number of timed starts, each until its first step."""
    service_epochs: int
    """Epochs of a run through the service, beside the bare loop; 0 leaves it out."""
    lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    warm_up: int = 2
    plain: bool = True
    """True to measure TRL with its defaults, too: it trains every token, and packs nothing."""
    evaluated: int = EVALUATED
    """Rows for the final losses; 0 leaves them out."""
    packed_goal: float = 2.2
    """Goal: our tokens a second, as a multiple of TRL's with packing and a loss on answers only."""


def quick(model: models.Model, data: Path, device: str) -> Plan:
    if model is models.BILLION:
        return replace(_billion(data, device), rounds=1, steps={"banking77": 2}, warm_up=1)
    return Plan(
        model,
        data,
        device,
        rounds=1,
        steps={"banking77": 4},
        checkpointing=False,
        peers=False,
        starts=1,
        service_epochs=0,
        lengths=(1024,),
        ranks=(),
    )


def full(model: models.Model, data: Path, device: str) -> Plan:
    if model is models.BILLION:
        return _billion(data, device)
    return Plan(
        model,
        data,
        device,
        rounds=3,
        steps={"banking77": 12, "CUAD": 4},
        checkpointing=True,
        peers=True,
        starts=3,
        service_epochs=2,
        lengths=(128, 512, 1024, 2048, 4096),
        ranks=(4, 16, 64),
    )


def _billion(data: Path, device: str) -> Plan:
    """Return the plan of the large model: TRL with packing only, and no losses, since its weights are random."""
    return Plan(
        models.BILLION,
        data,
        device,
        rounds=3,
        steps={"banking77": 6},
        checkpointing=False,
        peers=False,
        starts=0,
        service_epochs=0,
        lengths=(),
        ranks=(),
        plain=False,
        evaluated=0,
        packed_goal=2.5,
    )


@dataclass
class Runs:
    """Results of each program's runs, by round."""

    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def take(self, name: str, result: dict[str, Any] | None) -> None:
        if result is not None:
            self.found.setdefault(name, []).append(result)

    def median(self, name: str, field: str) -> float:
        return median(one[field] for one in self.found[name])

    def ratio(self, ours: str, theirs: str, field: str) -> float:
        """Return the median of the rounds' ratios. A program may have run in the first rounds only."""
        pairs = zip(self.found[ours], self.found[theirs], strict=False)
        return median(one[field] / other[field] for one, other in pairs)


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the rows as they are measured."""
    base = plan.model.convert(folder)
    bench = _Bench(base, folder, plan)
    limit = bench.run("limit", "limit")
    assert limit is not None
    yield row("bf16 matrix limit of the machine", limit["operations_a_second"] / 1e9, "GFLOP/s")
    for name in plan.steps:
        yield from _beside_peers(bench, name, limit["operations_a_second"])
    yield from _first_step(bench)
    yield from _shape(bench)
    if plan.service_epochs:
        rows = bench.read_file(SERVICE_FILE, "text", "category")[:SERVICE_ROWS]
        yield from service_overhead.measure(folder, base, rows, epochs=plan.service_epochs, rounds=1)


def _beside_peers(bench: _Bench, dataset: str, limit: float) -> Iterator[Row]:
    rows, evaluated = bench.write_rows(dataset)
    data = {"rows": str(rows), "evaluated": str(evaluated)}
    programs, runs = _list_programs(bench, dataset), Runs()
    for number in range(bench.plan.rounds):
        for name in list(programs)[:: -1 if number % 2 else 1]:
            kind, more = programs[name]
            if number and kind in PEERS_WITHOUT_GOAL:
                continue
            runs.take(name, bench.run(name, kind, **data, **more))
    if "ours" not in runs.found:
        return
    yield from _compare(runs, dataset, bench.plan.packed_goal)
    yield from _evaluation(runs, dataset)
    share = runs.median("ours", "tokens_a_second") * bench.operations / limit
    yield row(f"{dataset}: operations over the matrix limit", share, "", at_least=0.4)
    for name, found in runs.found.items():
        if found[0]["loss"] is not None:
            title = f"{dataset}: loss of {bench.plan.evaluated} other rows afterwards, {name}"
            yield row(title, runs.median(name, "loss"), "nats")


def _list_programs(bench: _Bench, dataset: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the programs of each round by their name in the table, as kind and further fields of the task."""
    again = {"recipe": {"gradient_checkpointing": "layer"}}
    programs: dict[str, tuple[str, dict[str, Any]]] = {"ours": ("ours", {})}
    if dataset == "banking77":
        programs["evaluation"] = ("evaluate", {"labels": sorted({one["label"] for one in bench.read(dataset)})})
    if bench.plan.plain:
        programs["TRL"] = ("trl", {"best": False})
    programs["TRL, packed, answers only"] = ("trl", {"best": True})
    if bench.plan.checkpointing:
        programs |= {
            "ours again": ("ours", again),
            "TRL, gradient checkpointing": ("trl", {"best": False, **again}),
        }
    if bench.plan.peers:
        programs |= {"transformers' Trainer": ("trainer", {}), "soup-cli": ("soup", {})}
    return programs


def _evaluation(runs: Runs, dataset: str) -> Iterator[Row]:
    if len(runs.found.get("evaluation", ())) != len(runs.found["ours"]):
        return
    yield row(
        f"{dataset}: evaluation, tokens a second",
        *(runs.median("evaluation", "tokens_a_second"), "1/s"),
        against="training on the same rows",
        theirs=runs.median("ours", "tokens_a_second"),
        ratio=runs.ratio("evaluation", "ours", "tokens_a_second"),
        ratio_at_least=2.5,
    )
    yield row(f"{dataset}: evaluation, peak memory", runs.median("evaluation", "peak_bytes") / 1e6, "MB")


def _compare(runs: Runs, dataset: str, packed_goal: float) -> Iterator[Row]:
    goals = {
        "TRL": ("ours", 2.5, 0.55),
        "TRL, packed, answers only": ("ours", packed_goal, 0.65),
        "TRL, gradient checkpointing": ("ours again", 2.0, 0.6),
        "transformers' Trainer": ("ours", None, None),
        "soup-cli": ("ours", None, None),
    }
    for theirs, (ours, speed, memory) in goals.items():
        expected = 1 if speed is None else len(runs.found["ours"])
        if len(runs.found.get(theirs, ())) != expected:
            continue
        again = ", gradient checkpointing" if ours == "ours again" else ""
        yield row(
            f"{dataset}: tokens a second{again}",
            *(runs.median(ours, "tokens_a_second"), "1/s"),
            against=theirs,
            theirs=runs.median(theirs, "tokens_a_second"),
            ratio=runs.ratio(ours, theirs, "tokens_a_second"),
            ratio_at_least=speed,
        )
        yield row(
            f"{dataset}: peak memory{again}",
            *(runs.median(ours, "peak_bytes") / 1e6, "MB"),
            against=theirs,
            theirs=runs.median(theirs, "peak_bytes") / 1e6,
            ratio=runs.ratio(ours, theirs, "peak_bytes"),
            ratio_at_most=memory,
        )


def _first_step(bench: _Bench) -> Iterator[Row]:
    if not bench.plan.starts:
        return
    rows, evaluated = bench.write_rows("banking77", steps=1)
    runs = Runs()
    for _ in range(bench.plan.starts):
        runs.take("load", bench.run("load", "load"))
        runs.take("ours", bench.run("ours", "first", rows=str(rows), evaluated=str(evaluated)))
    if not {"load", "ours"} <= runs.found.keys():
        return
    yield row(
        "from process start to the end of the first step",
        *(runs.median("ours", "first_step_s"), "s"),
        against="transformers loading the base",
        theirs=runs.median("load", "load_s"),
        ratio=median(
            a["first_step_s"] / b["load_s"] for a, b in zip(runs.found["ours"], runs.found["load"], strict=True)
        ),
        ratio_at_most=1.2,
    )


def _shape(bench: _Bench) -> Iterator[Row]:
    """Yield the cost by length of rows and by rank. All rows of a run have the same length."""
    for length in bench.plan.lengths:
        yield from bench.measure_alone(f"rows of {length:,} tokens", length, 16)
    for rank in bench.plan.ranks:
        yield from bench.measure_alone(f"rank {rank}", 512, rank)


class _Bench:
    """A measurement in progress: it writes the data and starts the processes that read it."""

    def __init__(self, base: Path, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self._base, self._folder = base, folder
        config = json.loads((base / "config.json").read_text("utf-8"))
        # A frozen weight takes two operations forward and two for the gradient of the input. It has no gradient itself.
        width, wide = config["hidden_size"], config["intermediate_size"]
        head = width // config["num_attention_heads"]
        attention = 2 * width * width + 2 * width * head * config["num_key_value_heads"]
        self.operations = 4 * config["num_hidden_layers"] * (attention + 3 * width * wide)

    def read(self, dataset: str) -> list[dict[str, str]]:
        return self.read_file(*DATASETS[dataset])

    def read_file(self, name: str, text: str, label: str) -> list[dict[str, str]]:
        with (self.plan.data / name).open(encoding="utf-8-sig", newline="") as stream:
            return [{"text": one[text], "label": one[label]} for one in csv.DictReader(stream)]

    def write_rows(self, dataset: str, steps: int | None = None) -> tuple[Path, Path]:
        """Write training rows and evaluation rows, both spread over the whole file, and return the two paths."""
        rows = self.read(dataset)
        count = (steps or self.plan.steps[dataset]) * RECIPE["batch_size"]
        evaluated = self.plan.evaluated
        rows = rows[:: len(rows) // (count + evaluated)]
        return self._write("rows", rows[evaluated : evaluated + count]), self._write("evaluated", rows[:evaluated])

    def _write(self, name: str, rows: list[dict[str, str]]) -> Path:
        path = self._folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), "utf-8")
        return path

    def measure_alone(self, name: str, length: int, rank: int) -> Iterator[Row]:
        words = (self.plan.data / "cuad/master_clauses.csv").read_text("utf-8-sig").split()
        # About three tokens for two words of contracts; the worker cuts the text to the length.
        rows = [{"text": " ".join(words[at * length : (at + 1) * length]), "label": "yes"} for at in range(8)]
        more = {"recipe": {"batch_size": max(1, 2048 // length), "rank": rank, "alpha": 2 * rank, "max_length": length}}
        steps = 6 * more["recipe"]["batch_size"]
        path = self._write("long", [rows[at % len(rows)] for at in range(steps)])
        found = self.run(name, "ours", rows=str(path), evaluated=str(path), cut=length, **more)
        if found is not None:
            yield row(f"{name}: tokens a second", found["tokens_a_second"], "1/s")
            yield row(f"{name}: peak memory", found["peak_bytes"] / 1e6, "MB")

    def run(self, name: str, kind: str, *, recipe: dict[str, Any] | None = None, **more: Any) -> dict[str, Any] | None:
        """Run a program once and return its result. Return None if its environment is missing or if it fails; a failure
        is printed.
        """
        peer = {"trl": "trl", "trainer": "trl", "soup": "soup"}.get(kind)
        task = {"kind": kind, "base": str(self._base), "device": self.plan.device, **more}
        task["warm_up"] = self.plan.warm_up
        return run_worker(WORKER, name, peer, task, {"device": self.plan.device} | (recipe or {}))


def run_worker(
    worker: Path, name: str, peer: str | None, task: dict[str, Any], recipe: dict[str, Any]
) -> dict[str, Any] | None:
    """Run a worker's program in a peer's environment, or in ours, as `_Bench.run` does."""
    python = PEERS[peer] / "bin" / "python" if peer else Path(sys.executable)
    if not python.exists():
        return None
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": _threads()}
    command = [str(python), str(worker), json.dumps(task | {"recipe": RECIPE | recipe})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"bench: {name}: ended with {done.returncode}: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _threads() -> str:
    return str(len(os.sched_getaffinity(0)))
