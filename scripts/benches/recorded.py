"""What the record costs: a run through the service, in its sandbox, beside the same loop bare.

Both read the same sealed base and dataset and train the same resolved recipe. The bare run is a process that does what
the training worker does: base, rows, steps, weights written; it keeps no training checkpoint, and nobody watches it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from appliance.domain.recipe import LINEAR_LAYERS
from appliance.store.artifacts import Artifacts
from scripts.benches.measure import Row, row
from tests.site import ROOT, Site, found_site, free_port

WORKER = Path(__file__).with_name("training_worker.py")
BASE, DATASET, JUDGED = "smollm2", "questions", 8


@dataclass(frozen=True)
class Times:
    """Seconds: from the order to the sealed adapter without its evaluation, and of the steps alone."""

    whole: float
    steps: float


def measure(folder: Path, base: Path, rows: list[dict[str, str]], *, epochs: int, rounds: int) -> Iterator[Row]:
    """`rows` have a text and a label each; the last few are held out, so that an evaluation ends soon."""
    with ExitStack() as stack:
        site = found_site(folder / "home", free_port())
        stack.callback(site.stop)
        _expect_imported(site.import_base(base, BASE))
        dataset = site.import_dataset(
            _csv(rows[:-JUDGED]),
            DATASET,
            BASE,
            columns={"text": "text", "label": "label"},
            held_out=_csv(rows[-JUDGED:]),
        )
        _expect_imported(dataset)
        recorded, bare = [], []
        for number in range(rounds):
            # Whoever comes second in one round comes first in the next.
            for kind in ("recorded", "bare")[:: -1 if number % 2 else 1]:
                if kind == "recorded":
                    recorded.append(_train(site, epochs))
                else:
                    bare.append(_train_bare(site, epochs, folder / f"bare-{number}"))
    for name, member, goal in (
        ("a run through the service, from its order to its seal, without its evaluation", "whole", 1.02),
        ("the same, its steps alone", "steps", None),
    ):
        ours, theirs = ([getattr(one, member) for one in side] for side in (recorded, bare))
        yield row(
            name,
            *(median(ours), "s"),
            against="the same loop bare",
            theirs=median(theirs),
            ratio=median(a / b for a, b in zip(ours, theirs, strict=True)),
            ratio_at_most=goal,
        )


def _expect_imported(found: dict[str, Any]) -> None:
    if found["status"] != "finished":
        raise RuntimeError(f"expected an import that succeeds, got {found}")


def _csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _order(site: Site, epochs: int) -> Any:
    sizes = {"rank": 16, "alpha": 32, "batch_size": 16, "epochs": epochs}
    more = {"learning_rate": "0.001", "target_modules": list(LINEAR_LAYERS)}
    return site.train_order("bench", base=BASE, dataset=f"{DATASET}@1", **sizes, **more)


def _train(site: Site, epochs: int) -> Times:
    """The clock stands still while the evaluation runs: from `run.finished` to what its worker says last."""
    run, after, evaluated = site.order(_order(site, epochs))["result"]["run"], 0, 0.0
    # Whoever looks more often takes time from the run. A session lasts a quarter of an hour.
    began = time.monotonic()
    while site.get(f"/v1/runs/{run}")["status"] in ("queued", "running"):
        if time.monotonic() - began > 600:
            site.sessions.clear()
            began = time.monotonic()
        time.sleep(2)
    while not (found := site.get(f"/v1/runs/{run}/progress", after=after, wait_s=5))["ended"]:
        after = found["next"]
        if any(frame.get("stage") == "evaluate" for frame in found["frames"]):
            evaluated = time.time()
    ended = time.time()
    if found["status"] != "sealed" or not evaluated:
        raise RuntimeError(f"run {run}: expected a sealed adapter, got {found}: {site.log()[-2000:]}")
    entries = {entry["type"]: entry for entry in site.entries(subject=f"run:{run}")}
    ordered, finished = (_seconds(entries[kind]["time"]) for kind in ("run.requested", "run.finished"))
    return Times(finished - ordered + ended - evaluated, float(entries["run.finished"]["body"]["seconds"]))


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _train_bare(site: Site, epochs: int, output: Path) -> Times:
    order = _order(site, epochs)
    output.mkdir()
    artifacts = Artifacts(site.home)
    task = {
        "kind": "bare",
        "device": "cpu",
        "recipe": order.recipe.model_dump(mode="json"),
        "base": str(artifacts.path(order.base_digest)),
        "dataset": str(artifacts.path(order.dataset_digest)),
        "output": str(output),
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(task)], env=environment, stdout=subprocess.PIPE, check=True
    )
    whole = time.perf_counter() - began
    return Times(whole, json.loads(done.stdout.splitlines()[-1])["seconds"])
