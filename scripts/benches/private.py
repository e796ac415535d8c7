"""`scripts/bench private`: one recipe on banking77 without privacy and with several epsilons, as the workers train it.

Rows, base and child processes are those of `scripts/bench methods`. The recipe without privacy has the same rank, rate,
rows a step and epochs, so the difference is what clipping, noise and going row by row cost.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.benches.measure import describe_machine
from scripts.benches.methods import DATA, Sizes, make_recipe, prepare, run_child


@dataclass(frozen=True)
class Plan:
    """`rows`: of banking77; `written`: what every recipe says."""

    rows: Sizes
    epsilons: tuple[str | None, ...]
    written: Mapping[str, Any]


_RECIPE = {"rank": 4, "alpha": 8, "batch_size": 8, "learning_rate": "0.002"}
FULL = Plan(Sizes(16, 100, 13), (None, "8.0", "3.0", "1.0"), _RECIPE | {"accumulation": 16, "epochs": 4})
QUICK = Plan(Sizes(8, 20, 10), (None, "8.0"), _RECIPE | {"accumulation": 5, "epochs": 2})


@dataclass(frozen=True)
class Found:
    """One row; `privacy` of the resolved recipe, None without. Tokens of prompts and answers a second."""

    privacy: dict[str, str] | None
    rows: int
    steps: int
    accuracy: str
    macro_f1: str
    base_accuracy: str
    seconds: float
    tokens_s: float
    peak_bytes: int


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    if not (given.data / "train.csv").is_file():
        sys.exit(f"bench private: expected banking77 in {given.data}, got nothing; say where it is with --data")
    plan = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch:
        places = prepare(given.base, given.data, given.folder or Path(scratch), plan.rows)
        found = []
        for one in _measure(places, plan):
            found.append(one)
            print(f"bench: {table([one])[2]}", file=sys.stderr, flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    print("\n".join([*(f"- {line}" for line in describe_machine(Path.cwd())), "", *table(found)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench private", description="What privacy costs on banking77.")
    parser.add_argument("--quick", action="store_true", help="160 rows and one epsilon: five minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--data", metavar="DIR", type=Path, default=DATA, help="banking77's train.csv and test.csv")
    parser.add_argument("--base", metavar="FILE", type=Path, help="a GGUF file or a folder (default: fetch_base.py's)")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="keep the converted base there, and use it again")
    return parser


def _measure(places: dict[str, str], plan: Plan) -> Iterator[Found]:
    for epsilon in plan.epsilons:
        written = dict(plan.written) | ({} if epsilon is None else {"privacy": {"epsilon": epsilon}})
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
            recipe = make_recipe(places, {"method": "qlora", "checkpoint_every": 1000, **written})
            task = {**places, "recipe": recipe, "output": name, "checkpoints": name, "adapter": name}
            secret = {} if epsilon is None else {"secret": secrets.token_hex(32)}
            trained = run_child(task | secret | {"work": "train"})
            judged = run_child(task | {"work": "evaluate"})
        yield Found(
            privacy=recipe["privacy"],
            rows=plan.rows.labels * plan.rows.train,
            steps=trained["steps"],
            accuracy=judged["adapter"]["accuracy"],
            macro_f1=judged["adapter"]["macro_f1"],
            base_accuracy=judged["base"]["accuracy"],
            seconds=float(trained["seconds"]),
            tokens_s=trained["tokens"] / float(trained["seconds"]),
            peak_bytes=trained["peak_bytes"],
        )


def table(found: list[Found]) -> list[str]:
    """Markdown; the base's own accuracy last."""
    lines = [
        "| epsilon | delta | noise | rows | steps | accuracy | macro-F1 | tokens/s | peak MB | base's accuracy |",
        "| --- " * 10 + "|",
    ]
    for one in found:
        told = one.privacy or {}
        cells = [told.get(name, "–") for name in ("epsilon", "delta", "noise")]
        cells += [str(one.rows), str(one.steps), f"{float(one.accuracy):.3f}", f"{float(one.macro_f1):.3f}"]
        cells += [f"{one.tokens_s:.0f}", f"{one.peak_bytes / 1e6:,.0f}", f"{float(one.base_accuracy):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
