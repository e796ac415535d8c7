"""What a job costs beyond Slurm itself, from the order to the entry that its worker stands; and two ranks beside one
process, at the same number of threads. It needs a real Slurm (scripts/kit/slurm.py) and root.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benches.measure import Row, row
from scripts.kit.appliance import Appliance, found_site, free_port
from scripts.kit.slurm import Slurm, start_slurm
from scripts.kit.tiny_model import build_base, clauses, write_csv

OVERHEAD_S = 2.0
"""The goal, beyond Slurm's own."""
RANKS_SHARE = 0.9
SHORT = {"epochs": 1, "batch_size": 8}
LONG = {"epochs": 30, "batch_size": 16, "checkpoint_every": 1000}
_LOOK_S = 0.01
_WAIT_S = 60.0


def measure(folder: Path, rounds: int) -> Iterator[Row]:
    slurm = start_slurm(folder / "slurm")
    site: Appliance | None = None
    try:
        site = _found(folder, slurm)
        alone, whole = [], []
        for number in range(rounds):
            alone.append(_submit_alone(folder, slurm))
            whole.append(_order(site, f"far-{number}"))
        own = statistics.median(one - other for one, other in zip(whole, alone, strict=True))
        yield row("Slurm's own: sbatch until the job's first command", statistics.median(alone), "s")
        yield row("from the order until run.started", statistics.median(whole), "s")
        yield row("... of which beyond Slurm's own", own, "s", at_most=OVERHEAD_S)
        # In pairs, one after the other: what else the machine does changes from minute to minute.
        pairs = [[_train(site, f"ranks-{ranks}-{n}", ranks) for ranks in (1, 2)] for n in range(rounds)]
        one, two = sorted(pairs, key=lambda pair: pair[1] / pair[0])[len(pairs) // 2]
        yield row("two ranks", two, "tokens/s", against="one process", theirs=one, ratio_at_least=RANKS_SHARE)
    finally:
        if site is not None and site.service is not None:
            site.stop()
        slurm.stop()


def _found(folder: Path, slurm: Slurm) -> Appliance:
    (folder / "shared").mkdir(mode=0o700)
    settings = {"APPLIANCE_SLURM_FOLDER": str(folder / "shared"), **slurm.environment}
    site = found_site(folder / "h", free_port(), **settings)
    base = site.import_base(build_base(folder / "base"))
    rows = site.import_dataset(write_csv(folder / "rows.csv", clauses()).read_bytes())
    if (base["status"], rows["status"]) != ("finished", "finished"):
        raise RuntimeError(f"bench: expected a base and a dataset, got {base} and {rows}")
    return site


def _submit_alone(folder: Path, slurm: Slurm) -> float:
    """A job that only says when it began."""
    mark = folder / "began"
    mark.unlink(missing_ok=True)
    began = time.time()
    slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", f"date +%s.%N > {mark}.new; mv {mark}.new {mark}")
    _wait(mark.exists)
    return float(mark.read_text()) - began


def _order(site: Appliance, name: str) -> float:
    order = site.train_order(name, **SHORT).model_copy(update={"on": "slurm"})
    began = time.monotonic()
    run = site.order(order)["result"]["run"]
    _wait(lambda: site.get(f"/v1/runs/{run}")["status"] != "queued")
    took = time.monotonic() - began
    _await_sealed(site, run)
    return took


def _train(site: Appliance, name: str, processes: int) -> float:
    """Tokens a second of the steps, here; each rank has its share of the machine's threads."""
    run = str(site.order(site.train_order(name, processes=processes, **LONG))["result"]["run"])
    _await_sealed(site, run)
    lines = site.ask("GET", f"/v1/runs/{run}/steps", "olga")
    steps = [json.loads(line) for line in bytes(lines).splitlines()]
    first, last = steps[len(steps) // 4], steps[-1]
    return float((last["tokens"] - first["tokens"]) / (float(last["seconds"]) - float(first["seconds"])))


def _await_sealed(site: Appliance, run: str) -> None:
    found = site.wait_run(run)
    if found["status"] != "sealed":
        raise RuntimeError(f"bench: expected a sealed run, got {found['status']}: {found['detail']}")


def _wait(fact: Any) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not fact():
        if time.monotonic() > deadline:
            raise RuntimeError("bench: expected Slurm to start the job, got nothing")
        time.sleep(_LOOK_S)
