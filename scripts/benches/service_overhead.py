"""Measures what the service, its sandbox and its records add to a run, beside the bare training loop.

Both runs read the same sealed base and dataset, and train by the same resolved recipe. The bare run is a process that
does what the training worker does: it loads the base and the rows, trains, and writes the weights. It writes no
training checkpoint, and no service reads its output.

Two equal runs of ten minutes, one after the other, differ by more than the cost to be measured. So both are started
together and take turns of some seconds: while the processes of one run, those of the other are stopped. The time of a
run is the sum of its own turns.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

from appliance.domain.recipe.recipe import LINEAR_LAYERS
from appliance.store.files.artifacts import Artifacts
from scripts.benches.measure import Row, row
from scripts.kit.appliance import ROOT, Appliance, found_site
from scripts.kit.ports import free_port

WORKER = Path(__file__).with_name("training_worker.py")
BASE, DATASET, EVALUATED = "smollm2", "questions", 8
TURN_S = 4.0


@dataclass
class Side:
    """A process and its descendants. `wait` waits for the given seconds at most, and returns True if it is done."""

    pid: int
    wait: Callable[[float], bool]
    turns: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each turn, in seconds since the epoch."""

    def signal(self, number: int) -> None:
        _signal(self.pid, number)

    def running_s(self, since: float, until: float) -> float:
        """Return the seconds between two times in which it was this side's turn."""
        return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in self.turns)


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process, then to its descendants: a parent that is stopped starts no more children."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, number)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                _signal(int(child), number)


def take_turns(sides: list[Side]) -> None:
    """Let the sides run in turns until all are done."""
    for side in sides:
        side.signal(signal.SIGSTOP)
    left = list(sides)
    for side in cycle(sides):
        if not left:
            return
        if side not in left:
            continue
        began = time.time()
        side.signal(signal.SIGCONT)
        if side.wait(TURN_S):
            left.remove(side)
        else:
            side.signal(signal.SIGSTOP)
        side.turns.append((began, time.time()))


def measure(folder: Path, base: Path, rows: list[dict[str, str]], *, epochs: int, rounds: int) -> Iterator[Row]:
    """Yield the row of the comparison. `rows` have `text` and `label`; the last 8 are held out for the evaluation."""
    with ExitStack() as stack:
        site = found_site(folder / "home", free_port())
        stack.callback(site.stop)
        _expect_imported(site.import_base(base, BASE))
        dataset = site.import_dataset(
            _csv(rows[:-EVALUATED]),
            DATASET,
            BASE,
            columns={"text": "text", "label": "label"},
            held_out=_csv(rows[-EVALUATED:]),
        )
        _expect_imported(dataset)
        pairs = [_train_both(site, epochs, folder / f"bare-{number}") for number in range(rounds)]
    yield row(
        "a run through the service, from its order to its seal, without its evaluation",
        *(median(ours for ours, _ in pairs), "s"),
        against="the same loop bare, in turns",
        theirs=median(theirs for _, theirs in pairs),
        ratio=median(ours / theirs for ours, theirs in pairs),
        ratio_at_most=1.02,
    )


def _expect_imported(found: dict[str, Any]) -> None:
    if found["status"] != "finished":
        raise RuntimeError(f"the import did not finish: {found}")


def _csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _order(site: Appliance, epochs: int) -> Any:
    sizes = {"rank": 16, "alpha": 32, "batch_size": 16, "epochs": epochs}
    more = {"learning_rate": "0.001", "target_modules": list(LINEAR_LAYERS)}
    return site.train_order("bench", base=BASE, dataset=f"{DATASET}@1", **sizes, **more)


def _train_both(site: Appliance, epochs: int, output: Path) -> tuple[float, float]:
    """Return the seconds of the run through the service and of the bare run, each in its own turns."""
    order, done = _order(site, epochs), Event()
    assert site.service is not None
    with _start_bare(site, order, output) as process:
        service = Side(site.service.pid, done.wait)
        bare = Side(process.pid, lambda seconds: _has_ended(process, seconds))
        turns = Thread(target=take_turns, args=([service, bare],))
        turns.start()
        try:
            spans = _train(site, order)
        except BaseException:
            process.kill()
            raise
        finally:
            done.set()
            turns.join()
    if process.returncode:
        raise RuntimeError(f"the bare run ended with {process.returncode}")
    ours = sum(service.running_s(since, until) for since, until in spans)
    return ours, bare.running_s(0.0, time.time())


def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    return process.returncode is not None


def _train(site: Appliance, order: Any) -> list[tuple[float, float]]:
    """Train a run, and return two spans of time: its training, and the rest after its evaluation until its seal.

    The evaluation lasts from the entry `run.finished` to the last message of its worker.
    """
    run, after, evaluated = site.order(order)["result"]["run"], 0, 0.0
    # Frequent requests would take time from the run. A session lasts 15 minutes, so a new one starts every 10.
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
        raise RuntimeError(f"run {run} was not sealed: {found}: {site.log()[-2000:]}")
    entries = {entry["type"]: entry for entry in site.entries(subject=f"run:{run}")}
    ordered, finished = (_seconds(entries[kind]["time"]) for kind in ("run.requested", "run.finished"))
    return [(ordered, finished), (evaluated, ended)]


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _start_bare(site: Appliance, order: Any, output: Path) -> subprocess.Popen[bytes]:
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
    return subprocess.Popen([sys.executable, str(WORKER), json.dumps(task)], env=environment, stdout=subprocess.DEVNULL)
