"""`scripts/bench methods`: every method on the same rows of banking77, as the workers train and judge them.

Each is two processes of its own: one trains (its time and its peak memory are the row's), one evaluates the base and
what was trained on the same held-out questions. Values that a recipe leaves open are resolved as for any run, so the
table shows what a recipe of three lines and a method gives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.domain.recipe.methods import METHODS
from scripts.benches import models
from scripts.benches.measure import describe_machine

DATA = Path(__file__).parents[3] / "shared" / "data" / "banking77"
INSTRUCTION = "Name the intent of this question to a bank."
PAIRS = [(name, method.quantisations[0], "adamw") for name, method in METHODS.items()]
PAIRS += [("lora", "int8", "adamw"), ("qlora", "nf4-double", "adamw-8bit"), ("full", "none", "adamw-8bit")]
CONTEXT = 2048
QUICK = [("qlora", "nf4-double", "adamw"), ("lora", "none", "adamw"), ("full", "none", "adamw")]


@dataclass(frozen=True)
class Sizes:
    """The first so many intents in the alphabet's order, and so many questions of each."""

    labels: int
    train: int
    held_out: int


FULL_SIZES, QUICK_SIZES = Sizes(16, 20, 13), Sizes(8, 10, 10)


@dataclass(frozen=True)
class Found:
    """One row: tokens of prompts and answers a second; bytes at the worst moment of the training process."""

    method: str
    quantisation: str
    optimiser: str
    learning_rate: str
    trained_weights: int
    steps: int
    accuracy: str
    macro_f1: str
    base_accuracy: str
    held_out: int
    final_loss: str
    seconds: float
    tokens_s: float
    peak_bytes: int
    saved_bytes: int


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    if given.child:
        _work(json.loads(given.child))
        return
    if not (given.data / "train.csv").is_file():
        sys.exit(f"bench methods: expected banking77 in {given.data}, got nothing; say where it is with --data")
    sizes, pairs = (QUICK_SIZES, QUICK) if given.quick else (FULL_SIZES, PAIRS)
    pairs = [pair for pair in pairs if not given.only or ":".join(pair) in given.only]
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch:
        folder = given.folder or Path(scratch)
        places = prepare(given.base, given.data, folder, sizes)
        found = []
        for one in _measure(places, pairs):
            found.append(one)
            print(f"bench: {_line(one)}", file=sys.stderr, flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    print("\n".join([*(f"- {line}" for line in describe_machine(Path.cwd())), "", *table(found)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench methods", description="Train every method on banking77.")
    parser.add_argument("--quick", action="store_true", help="three methods on 80 rows: two minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--data", metavar="DIR", type=Path, default=DATA, help="banking77's train.csv and test.csv")
    parser.add_argument("--base", metavar="FILE", type=Path, help="a GGUF file or a folder (default: fetch_base.py's)")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="keep the converted base there, and use it again")
    parser.add_argument("--only", metavar="METHOD:BASE:OPTIMISER", action="append", help="these rows alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def prepare(source: Path | None, data: Path, folder: Path, sizes: Sizes) -> dict[str, str]:
    """The converted base and the rendered rows."""
    base = models.convert(source, folder) if source else models.SMOLLM2.convert(folder)
    dataset = folder / f"rows-{sizes.labels}-{sizes.train}-{sizes.held_out}"
    if not dataset.is_dir():
        _write_rows(data, base, dataset, sizes)
    return {"base": str(base), "dataset": str(dataset)}


def _write_rows(source: Path, base: Path, folder: Path, sizes: Sizes) -> None:
    """banking77's own split: questions to train on from one file, to judge by from the other."""
    from appliance.domain.data.teaching import About
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
    data.write_rows(rows, About("classification", tuple(names)), folder, bytes(32))


def _measure(places: dict[str, str], pairs: list[tuple[str, str, str]]) -> Iterator[Found]:
    for pair in pairs:
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
            task = {**places, "recipe": _recipe(places, *pair), "output": name, "checkpoints": name, "adapter": name}
            trained, judged = run_child(task | {"work": "train"}), run_child(task | {"work": "evaluate"})
            saved = (Path(name) / METHODS[pair[0]].weights).stat().st_size
        yield Found(
            *pair,
            learning_rate=task["recipe"]["learning_rate"],
            trained_weights=trained["trained_weights"],
            steps=trained["steps"],
            accuracy=judged["adapter"]["accuracy"],
            macro_f1=judged["adapter"]["macro_f1"],
            base_accuracy=judged["base"]["accuracy"],
            held_out=judged["adapter"]["rows"],
            final_loss=trained["final_loss"],
            seconds=float(trained["seconds"]),
            tokens_s=trained["tokens"] / float(trained["seconds"]),
            peak_bytes=trained["peak_bytes"],
            saved_bytes=saved,
        )


def _recipe(places: dict[str, str], method: str, quantisation: str, optimiser: str) -> dict[str, Any]:
    chosen = {"method": method, "quantisation": quantisation, "optimiser": optimiser, "checkpoint_every": 1000}
    return make_recipe(places, {"epochs": 1, **chosen})


def make_recipe(places: dict[str, str], chosen: dict[str, Any]) -> dict[str, Any]:
    """Resolved as for any run on this machine."""
    from appliance.domain.recipe.parsing import parse_recipe
    from appliance.domain.recipe.recipe import Facts, resolve_recipe
    from appliance.ml.data import rows as data
    from appliance.ml.data.samples import tokenize_rows
    from appliance.ml.model import machine
    from appliance.ml.model.chat import load_chat

    chat, rows = load_chat(Path(places["base"])), data.load_rows(Path(places["dataset"]), data.TRAIN)
    longest = max(len(sample.ids) for sample in tokenize_rows(rows, chat, max_length=CONTEXT))
    device = machine.find_device()
    facts = Facts(
        train_rows=len(rows),
        max_tokens=longest,
        context_length=CONTEXT,
        device="cuda" if device == "cuda" else "cpu",
        bfloat16=machine.multiplies_bfloat16(device),
    )
    written = {"name": "banking", "base": "smollm2", "dataset": "banking77@1", "purpose": "baseline"}
    return resolve_recipe(parse_recipe(written | chosen), facts).model_dump(mode="json")


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.benches", "methods", "--child", json.dumps(task)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class _Quiet:
    """A session that nobody listens to."""

    def send(self, header: dict[str, Any], blob: bytes = b"") -> None:
        pass


def _work(task: dict[str, Any]) -> None:
    """One of the two workers, without its walls."""
    from appliance.ml.training import checkpoint
    from appliance.worker import evaluate, train

    session: Any = _Quiet()
    if task["work"] == "evaluate":
        print(json.dumps(evaluate.work(session, task | {"sets": [], "shipped": [], "answers": False}, b"")))
        return
    counted, begin = [0], checkpoint.begin_training

    def begin_training(*given: Any) -> Any:
        training = begin(*given)
        counted[0] = sum(weight.numel() for weight in training.weights.values())
        return training

    from appliance.ml.training import loop

    loop.begin_training = begin_training  # type: ignore[attr-defined]
    result = train.work(session, task | {"seconds": 0.0}, b"")
    print(json.dumps(result | {"trained_weights": counted[0]}))


def _line(one: Found) -> str:
    return (
        f"{one.method} on {one.quantisation}, {one.optimiser}: accuracy {one.accuracy}, {one.tokens_s:.0f} tokens/s, "
        f"{one.peak_bytes / 1e6:,.0f} MB"
    )


def table(found: list[Found]) -> list[str]:
    """Markdown; quality and cost also as shares of full fine-tuning's, where that was measured."""
    full = next((one for one in found if (one.method, one.optimiser) == ("full", "adamw")), None)
    lines = [
        "| method | base | optimiser | rate | trained weights | accuracy | macro-F1 | of full | tokens/s | "
        "time of full | peak MB | memory of full | saved MB |",
        "| --- " * 13 + "|",
    ]
    for one in found:
        shares = ["–"] * 3
        if full is not None:
            shares = [
                f"{float(one.accuracy) / float(full.accuracy):.0%}",
                f"{one.seconds / full.seconds:.0%}",
                f"{one.peak_bytes / full.peak_bytes:.0%}",
            ]
        quality, seconds, memory = shares
        cells = [one.method, one.quantisation, one.optimiser, one.learning_rate, f"{one.trained_weights / 1e6:.2f} M"]
        cells += [f"{float(one.accuracy):.3f}", f"{float(one.macro_f1):.3f}", quality, f"{one.tokens_s:.0f}", seconds]
        cells += [f"{one.peak_bytes / 1e6:,.0f}", memory, f"{one.saved_bytes / 1e6:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
