"""`scripts/bench private`: trains one recipe on banking77 without privacy and with several epsilons.

Rank, learning rate, rows a step and epochs are equal. So the differences come from clipping, noise and gradients row by
row. Time is compared in a separate process, which trains steps of both kinds on the same rows in turns.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.benches.banking import Sizes, make_recipe, measure_and_print, parse, run_child

PACED_ROWS = 16
"""Rows of each step in the comparison of time."""


@dataclass(frozen=True)
class Plan:
    """A measurement. `written`: the fields of every recipe. `pairs`: pairs of steps in the comparison of time."""

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
class PrivateResult:
    """Quality and cost of a recipe. `privacy` is None for a run without privacy. `paces`: for each pair of steps, the
    tokens a second with privacy as a share of those without.
    """

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
    measure_and_print(given, plan.rows, partial(measure, plan), table)


def measure(plan: Plan, places: dict[str, str]) -> Iterator[PrivateResult]:
    """Train and evaluate the recipe with each epsilon, and yield a result for each."""
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
            # The amount of noise does not change the time of a step, so one epsilon is enough.
            paced = {"recipe": plain, "other": recipe, "pairs": plan.pairs, "rows": PACED_ROWS}
            pairs = run_child({**places, **paced, "work": "pace"})["pairs"]
        yield PrivateResult(
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


def table(found: list[PrivateResult]) -> list[str]:
    """Return the lines of a table in Markdown. A pace is the median of the pairs, with the least and the largest."""
    lines = [
        "| epsilon | delta | noise | rows | steps | accuracy | macro-F1 | pace of plain | peak MB | base's accuracy |",
        "| --- " * 10 + "|",
    ]
    for one in found:
        privacy = one.privacy or {}
        cells = [privacy.get(name, "–") for name in ("epsilon", "delta", "noise")]
        cells += [str(one.rows), str(one.steps), f"{float(one.accuracy):.3f}", f"{float(one.macro_f1):.3f}"]
        cells += [_pace(one.paces), f"{one.peak_bytes / 1e6:,.0f}", f"{float(one.base_accuracy):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pace(paces: tuple[float, ...]) -> str:
    if not paces:
        return "–"
    return f"{statistics.median(paces):.2f} ({min(paces):.2f} to {max(paces):.2f})"
