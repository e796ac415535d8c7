"""`scripts/bench private`: one recipe on banking77 without privacy and with several epsilons, as the workers train it.

The recipe without privacy has the same rank, rate, rows a step and epochs, so the difference is what clipping, noise
and going row by row cost. Time is compared apart: steps of both kinds on the same rows, in turns, in one process.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.benches.banking import Sizes, make_recipe, parse, run_child, tell

PACED_ROWS = 16
"""Rows of a step whose time is compared."""


@dataclass(frozen=True)
class Plan:
    """`rows`: of banking77; `written`: what every recipe says; `pairs`: of steps whose times are compared."""

    rows: Sizes
    epsilons: tuple[str | None, ...]
    written: Mapping[str, Any]
    pairs: int


_RECIPE = {"rank": 4, "alpha": 8, "batch_size": 8, "learning_rate": "0.002"}
FULL = Plan(
    Sizes(16, 100, 13), (None, "8.0", "3.0", "1.0"), _RECIPE | {"gradient_accumulation_steps": 16, "epochs": 4}, 9
)
SMALL = Plan(
    Sizes(8, 60, 13), (None, "8.0", "3.0", "1.0"), _RECIPE | {"gradient_accumulation_steps": 8, "epochs": 4}, 5
)
QUICK = Plan(
    Sizes(4, 30, 13), (None, "8.0", "3.0", "1.0"), _RECIPE | {"gradient_accumulation_steps": 5, "epochs": 1}, 3
)


@dataclass(frozen=True)
class Found:
    """One row; `privacy` of the resolved recipe, None without. `paces`: for each pair of steps, the tokens a second of
    this recipe over those without privacy."""

    privacy: dict[str, str] | None
    rows: int
    steps: int
    accuracy: str
    macro_f1: str
    base_accuracy: str
    paces: tuple[float, ...]
    peak_bytes: int


def main(arguments: list[str]) -> None:
    quick = "120 rows: five minutes on a machine of its own"
    small = {"action": "store_true", "help": "480 rows: half an hour on a slow machine of its own"}
    given = parse("private", "What privacy costs on banking77.", quick, arguments, ("--small", small))
    plan = QUICK if given.quick else SMALL if given.small else FULL
    tell(given, plan.rows, partial(measure, plan), table)


def measure(plan: Plan, places: dict[str, str]) -> Iterator[Found]:
    plain = _recipe(plan, places, None)
    for epsilon in plan.epsilons:
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as name:
            recipe = _recipe(plan, places, epsilon)
            task = {**places, "recipe": recipe, "output": name, "checkpoints": name, "adapter": name}
            rows = plan.rows.labels * plan.rows.train
            secret = {} if epsilon is None else {"secret": secrets.token_hex(32), "rows": rows}
            trained = run_child(task | secret | {"work": "train"})
            evaluated = run_child(task | {"work": "evaluate"})
        pairs: list[tuple[float, float]] = []
        if epsilon is not None and epsilon == next(one for one in plan.epsilons if one is not None):
            # How much noise there is does not change how long a step takes.
            paced = {"recipe": plain, "other": recipe, "pairs": plan.pairs, "rows": PACED_ROWS}
            pairs = run_child({**places, **paced, "work": "pace"})["pairs"]
        yield Found(
            privacy=recipe["privacy"],
            rows=rows,
            steps=trained["steps"],
            accuracy=evaluated["adapter"]["accuracy"],
            macro_f1=evaluated["adapter"]["macro_f1"],
            base_accuracy=evaluated["base"]["accuracy"],
            paces=tuple(without / with_it for without, with_it in pairs),
            peak_bytes=trained["peak_bytes"],
        )


def _recipe(plan: Plan, places: dict[str, str], epsilon: str | None) -> dict[str, Any]:
    written = dict(plan.written) | ({} if epsilon is None else {"privacy": {"epsilon": epsilon}})
    return make_recipe(places, {"method": "qlora", "save_steps": 1000, **written})


def table(found: list[Found]) -> list[str]:
    """Markdown; the pace as the median of the pairs, with the least and the most."""
    lines = [
        "| epsilon | delta | noise | rows | steps | accuracy | macro-F1 | pace of plain | peak MB | base's accuracy |",
        "| --- " * 10 + "|",
    ]
    for one in found:
        told = one.privacy or {}
        cells = [told.get(name, "–") for name in ("epsilon", "delta", "noise")]
        cells += [str(one.rows), str(one.steps), f"{float(one.accuracy):.3f}", f"{float(one.macro_f1):.3f}"]
        cells += [_pace(one.paces), f"{one.peak_bytes / 1e6:,.0f}", f"{float(one.base_accuracy):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pace(paces: tuple[float, ...]) -> str:
    if not paces:
        return "–"
    return f"{statistics.median(paces):.2f} ({min(paces):.2f} to {max(paces):.2f})"
