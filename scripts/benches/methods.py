"""`scripts/bench methods`: trains and evaluates every method on the same rows of banking77, by the code of the workers.

Each method has two processes. One trains; its time and peak memory are in the table. The other evaluates the base and
the result on the same held-out questions. Values that a recipe leaves open are resolved as for any run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.recipe.methods import METHODS
from scripts.benches.banking import Sizes, make_recipe, measure_and_print, parse, run_child

PAIRS = [(name, method.quantisations[0], "adamw") for name, method in METHODS.items()]
PAIRS += [("lora", "int8", "adamw"), ("qlora", "nf4-double", "adamw-8bit"), ("full", "none", "adamw-8bit")]
QUICK = [("qlora", "nf4-double", "adamw"), ("lora", "none", "adamw"), ("full", "none", "adamw")]
FULL_SIZES, QUICK_SIZES = Sizes(16, 20, 13), Sizes(8, 10, 10)


@dataclass(frozen=True)
class MethodResult:
    """Quality and cost of a method. `tokens_s`: tokens of prompts and answers that it trains on a second."""

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
    only = {"metavar": "METHOD:BASE:OPTIMISER", "action": "append", "help": "these rows alone"}
    quick = "three methods on 80 rows: two minutes"
    given = parse("methods", "Train every method on banking77.", quick, arguments, ("--only", only))
    sizes, pairs = (QUICK_SIZES, QUICK) if given.quick else (FULL_SIZES, PAIRS)
    pairs = [pair for pair in pairs if not given.only or ":".join(pair) in given.only]
    measure_and_print(given, sizes, partial(_measure, pairs), table)


def _measure(pairs: list[tuple[str, str, str]], places: dict[str, str]) -> Iterator[MethodResult]:
    for pair in pairs:
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
            task = {**places, "recipe": _recipe(places, *pair), "output": name, "checkpoints": name, "adapter": name}
            trained, evaluated = run_child(task | {"work": "train"}), run_child(task | {"work": "evaluate"})
            saved = (Path(name) / METHODS[pair[0]].weights).stat().st_size
        yield MethodResult(
            *pair,
            learning_rate=task["recipe"]["learning_rate"],
            trained_weights=trained["trained_weights"],
            steps=trained["steps"],
            accuracy=evaluated["adapter"]["accuracy"],
            macro_f1=evaluated["adapter"]["macro_f1"],
            base_accuracy=evaluated["base"]["accuracy"],
            held_out=evaluated["adapter"]["rows"],
            final_loss=trained["final_loss"],
            seconds=float(trained["seconds"]),
            tokens_s=trained["tokens"] / float(trained["seconds"]),
            peak_bytes=trained["peak_bytes"],
            saved_bytes=saved,
        )


def _recipe(places: dict[str, str], method: str, quantisation: str, optimiser: str) -> dict[str, Any]:
    chosen = {"method": method, "quantisation": quantisation, "optimiser": optimiser, "save_steps": 1000}
    return make_recipe(places, {"epochs": 1, **chosen})


def table(found: list[MethodResult]) -> list[str]:
    """Return the lines of a table in Markdown. Shares are of full fine-tuning, if it was measured."""
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
