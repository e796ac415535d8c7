"""`scripts/bench slurm`: what a job costs beyond Slurm itself, and two ranks beside one process.

The cost is from the order to the entry `run.started`. Ranks and process have the same number of threads. The bench
starts a real Slurm (scripts/kit/slurm.py), and needs root.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from scripts.benches import banking, models
from scripts.benches.measure import Row, row
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.slurm import Slurm, start_slurm
from scripts.kit.tiny_model import build_base, clauses, write_csv

OVERHEAD_S = 2.0
"""Goal: seconds of a job beyond those of Slurm."""
RANKS_SHARE = 0.9
SHORT = {"epochs": 1, "batch_size": 8}
LONG = {"epochs": 30, "batch_size": 16, "save_steps": 1000}
LONG_OF_MODEL = {"epochs": 2, "batch_size": 16, "save_steps": 1000, "base": "model", "dataset": "banking@1"}
MODEL_ROWS = 320
_POLL_S = 0.01
_WAIT_S = 60.0


def measure(folder: Path, rounds: int, model: models.Model | None) -> Iterator[Row]:
    """Yield the rows. Ranks are compared on the tests' small model, and on `model` with questions of banking77."""
    slurm = start_slurm(folder / "slurm")
    site: Appliance | None = None
    try:
        site = _found(folder, slurm)
        alone, whole = [], []
        for number in range(rounds):
            alone.append(_submit_alone(folder, slurm))
            whole.append(_order(site, f"slurm-{number}"))
        own = statistics.median(one - other for one, other in zip(whole, alone, strict=True))
        yield row("Slurm's own: sbatch until the job's first command", statistics.median(alone), "s")
        yield row("from the order until run.started", statistics.median(whole), "s")
        yield row("... of which beyond Slurm's own", own, "s", at_most=OVERHEAD_S)
        yield _compare_ranks(site, "the tests' small model", rounds, LONG)
        if model is not None:
            base = models.as_shipped(model.convert(folder / "model"))
            _import(site, base, _questions(), "model", "banking")
            yield _compare_ranks(site, model.title, rounds, LONG_OF_MODEL)
    finally:
        if site is not None and site.service is not None:
            site.stop()
        slurm.stop()


def _found(folder: Path, slurm: Slurm) -> Appliance:
    (folder / "shared").mkdir(mode=0o700)
    settings = {"APPLIANCE_SLURM_FOLDER": str(folder / "shared"), **slurm.environment}
    site = found_site(folder / "h", free_port(), **settings)
    _import(site, build_base(folder / "base"), write_csv(folder / "rows.csv", clauses()).read_bytes())
    return site


def _import(site: Appliance, base: Path, rows: bytes, name: str = "tiny", dataset: str = "clauses") -> None:
    for add in (partial(site.import_base, base, name), partial(site.import_dataset, rows, dataset, name)):
        if (found := add())["status"] != "finished":
            raise RuntimeError(f"bench: an import did not finish: {found}")


def _questions() -> bytes:
    """Return the first rows of banking77 as CSV, whose second column is the label."""
    _, *lines = (banking.DATA / "train.csv").read_bytes().splitlines(keepends=True)
    return b"text,label\n" + b"".join(lines[:MODEL_ROWS])


def _submit_alone(folder: Path, slurm: Slurm) -> float:
    """Submit a job that only writes the time at which it began. Return the seconds until then."""
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


def _compare_ranks(site: Appliance, title: str, rounds: int, recipe: dict[str, Any]) -> Row:
    """Return the row of the median pair. The runs of a pair follow each other, since the machine's load varies."""
    name = str(recipe.get("base", "tiny"))
    pairs = [[_train(site, f"{name}-{ranks}-{n}", ranks, recipe) for ranks in (1, 2)] for n in range(rounds)]
    one, two = sorted(pairs, key=lambda pair: pair[1] / pair[0])[len(pairs) // 2]
    return row(f"two ranks, {title}", two, "tokens/s", against="one process", theirs=one, ratio_at_least=RANKS_SHARE)


def _train(site: Appliance, name: str, processes: int, recipe: dict[str, Any]) -> float:
    """Train on this machine, and return tokens a second without the first quarter of the steps."""
    run = str(site.order(site.train_order(name, processes=processes, **recipe))["result"]["run"])
    _await_sealed(site, run)
    lines = site.ask("GET", f"/v1/runs/{run}/steps", "olga")
    steps = [json.loads(line) for line in bytes(lines).splitlines()]
    first, last = steps[len(steps) // 4], steps[-1]
    return float((last["tokens"] - first["tokens"]) / (float(last["seconds"]) - float(first["seconds"])))


def _await_sealed(site: Appliance, run: str) -> None:
    found = site.wait_run(run)
    if found["status"] != "sealed":
        raise RuntimeError(f"bench: run {run} was not sealed: {found['status']}: {found['detail']}")


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise RuntimeError(f"bench: Slurm did not start the job within {_WAIT_S:.0f} s")
        time.sleep(_POLL_S)
