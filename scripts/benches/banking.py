"""What the benches on banking77 share: options, rows, a resolved recipe, and child processes with the workers' code.

A child process trains, or evaluates the base and the result on the same held-out questions, without a sandbox.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from scripts.benches import models
from scripts.benches.measure import describe_machine

DATA = Path(__file__).parents[3] / "shared" / "data" / "banking77"
INSTRUCTION = "Name the intent of this question to a bank."
CONTEXT = 2048
F = TypeVar("F")


@dataclass(frozen=True)
class Sizes:
    """Numbers of rows. `labels`: the first intents in alphabetical order. `train`, `held_out`: questions of each."""

    labels: int
    train: int
    held_out: int


def parse(name: str, about: str, quick: str, arguments: Sequence[str], *more: tuple[str, dict[str, Any]]) -> Any:
    """Parse a bench's options: `quick` describes --quick, `more` are its own. Exit if the rows are missing."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=about)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--data", metavar="DIR", type=Path, default=DATA, help="banking77's train.csv and test.csv")
    parser.add_argument("--base", metavar="FILE", type=Path, help="a GGUF file or a folder (default: fetch_base.py's)")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="keep the converted base there, and use it again")
    for option, words in more:
        parser.add_argument(option, **words)
    given = parser.parse_args(arguments)
    if not (given.data / "train.csv").is_file():
        sys.exit(f"bench {name}: {given.data} has no train.csv; name the folder of banking77 with --data")
    return given


def measure_and_print(
    given: Any, sizes: Sizes, measure: Callable[[dict[str, str]], Iterator[F]], table: Callable[[list[F]], list[str]]
) -> None:
    """Measure, and print a table in Markdown. Each row is printed to stderr and written as JSON once it is measured."""
    found: list[F] = []
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch:
        for one in measure(prepare(given.base, given.data, given.folder or Path(scratch), sizes)):
            found.append(one)
            print(f"bench: {table([one])[2]}", file=sys.stderr, flush=True)
            if given.json:
                # Written after each row, so that an interrupted bench keeps the earlier ones.
                rows = json.dumps([asdict(row) for row in found], indent=1)  # type: ignore[call-overload]
                given.json.write_text(rows + "\n", encoding="utf-8")
    print("\n".join([*(f"- {line}" for line in describe_machine(Path.cwd())), "", *table(found)]))


def prepare(source: Path | None, data: Path, folder: Path, sizes: Sizes) -> dict[str, str]:
    """Convert the base and render the rows unless they are there, and return their folders as `base` and `dataset`."""
    base = models.convert(source, folder) if source else models.SMOLLM2.convert(folder)
    dataset = folder / f"rows-{sizes.labels}-{sizes.train}-{sizes.held_out}"
    if not dataset.is_dir():
        write_rows(data, base, dataset, sizes)
    return {"base": str(base), "dataset": str(dataset)}


def write_rows(source: Path, base: Path, folder: Path, sizes: Sizes) -> None:
    """Render rows by banking77's own split: train.csv has the training rows, test.csv the held-out rows."""
    from appliance.domain.data.kinds import DatasetDescription
    from appliance.ml.data import rows as data
    from appliance.ml.data.sources import parse_source
    from appliance.ml.model.chat import load_chat

    sides, names = [], None
    for file, split, count in (("train", data.TRAIN, sizes.train), ("test", data.HELD_OUT, sizes.held_out)):
        columns = {"text": "text", "label": "category"}
        read = parse_source((source / f"{file}.csv").read_bytes(), "csv", "classification", columns)
        names = names or sorted({one.parts["label"] for one in read})[: sizes.labels]
        for name in names:
            sides += [(one, split) for one in [one for one in read if one.parts["label"] == name][:count]]
    rows = data.render_rows(sides, load_chat(base), "classification", instruction=INSTRUCTION)
    folder.mkdir()
    data.write_rows(rows, DatasetDescription("classification", tuple(names)), folder, bytes(32))


def make_recipe(places: dict[str, str], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe, resolved as for any run on this machine."""
    from appliance.domain.recipe.parsing import parse_recipe
    from appliance.domain.recipe.recipe import ResolutionFacts, resolve_recipe
    from appliance.ml.data import rows as data
    from appliance.ml.data.rows import tokenize_rows
    from appliance.ml.model import machine
    from appliance.ml.model.chat import load_chat

    chat, rows = load_chat(Path(places["base"])), data.load_rows(Path(places["dataset"]), data.TRAIN)
    longest = max(len(sample.ids) for sample in tokenize_rows(rows, chat, max_length=CONTEXT))
    device = machine.find_device()
    facts = ResolutionFacts(
        train_rows=len(rows),
        max_tokens=longest,
        context_length=CONTEXT,
        device="cuda" if device == "cuda" else "cpu",
        bfloat16=machine.multiplies_bfloat16(device),
    )
    written = {"name": "banking", "base": "smollm2", "dataset": "banking77@1", "purpose": "baseline"}
    return resolve_recipe(parse_recipe(written | chosen), facts).model_dump(mode="json")


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task in a child process, and return its result."""
    command = [sys.executable, "-m", "scripts.benches.banking", json.dumps(task)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class _SilentLink:
    """A worker's link to a service that sends the task and discards all messages."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def expect(self, kind: str) -> tuple[dict[str, Any], bytes]:
        return self._task, b""

    def send(self, header: dict[str, Any], blob: bytes = b"") -> None:
        pass

    def receive(self) -> None:
        """Return None, since no message follows the task."""


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Run the task of a child process."""
    from appliance.ml.training import checkpoint
    from appliance.worker import evaluate, train

    link: Any = _SilentLink(task | {"sets": [], "shipped": [], "answers": False, "seconds": 0.0})
    if task["work"] == "pace":
        return {"pairs": _time_pairs(task)}
    if task["work"] == "evaluate":
        return evaluate.work(link)
    counted, begin = [0], checkpoint.begin_training

    def begin_training(*given: Any) -> Any:
        training = begin(*given)
        counted[0] = sum(weight.numel() for weight in training.weights.values())
        return training

    from appliance.ml.training import loop

    loop.begin_training = begin_training  # type: ignore[attr-defined]
    return train.work(link) | {"trained_weights": counted[0]}


def _time_pairs(task: dict[str, Any]) -> list[tuple[float, float]]:
    """Return pairs of seconds: a step of `recipe` and one of `other` on the same rows, in one process."""
    import time

    from appliance.ml.training.loop import train
    from appliance.worker.training import prepare as prepare_training

    base, attached, samples, _ = prepare_training(task)
    samples = samples[: task["rows"]]

    def step(recipe: dict[str, Any]) -> float:
        began = time.monotonic()
        secret = bytes(32) if recipe["privacy"] else b""
        train(base, attached, samples, recipe, lambda _: None, stop=1, secret=secret)
        return time.monotonic() - began

    step(task["recipe"]), step(task["other"])
    return [(step(task["recipe"]), step(task["other"])) for _ in range(task["pairs"])]


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
