"""`scripts/bench audit`: simulates which epsilon an audit of one training run could show, with and without noise.

The method is that of Steinke, Nasr and Jagielski, 2023 (https://arxiv.org/abs/2305.08846). Whether a run trains on a
row is decided by a coin, for each of `CANARIES` rows. The auditor guesses the coins. The number of right guesses gives
a lower bound on epsilon. The simulated auditor knows more than an adapter reveals: each canary has its own direction in
the gradient, and the auditor sees this direction of every noised sum. The simulation trains no model.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass

import numpy

from appliance.domain.recipe.privacy import find_noise

ROWS, ROWS_A_STEP, STEPS, DELTA = 1600, 128, 52, "0.00001"
"""Values of `scripts/bench private`."""
CANARIES, CONFIDENCE = 400, 0.95
EPSILONS = (None, "8.0", "3.0", "1.0")
GUESSES = (40, 100, 400)


@dataclass(frozen=True)
class AuditedRuns:
    """Simulated runs with one epsilon. `lower`: the lower bound on epsilon of each run."""

    epsilon: str | None
    noise: str
    guesses: int
    lower: tuple[float, ...]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench audit", description="Simulate an audit of one run.")
    parser.add_argument("--quick", action="store_true", help="20 runs of each kind, and not 200: ten seconds")
    runs = 20 if parser.parse_args(arguments).quick else 200
    print("\n".join(table([simulate(epsilon, guesses, runs) for epsilon in EPSILONS for guesses in GUESSES])))


def simulate(epsilon: str | None, guesses: int, runs: int, seed: int = 1) -> AuditedRuns:
    """Simulate runs with an epsilon (None: without noise), of which the auditor guesses the given number of coins."""
    drawn = numpy.random.default_rng(seed)
    noise = "0" if epsilon is None else find_noise(ROWS, ROWS_A_STEP, STEPS, epsilon, DELTA)
    delta = 0.0 if epsilon is None else float(DELTA)
    lower = []
    for _ in range(runs):
        trained = drawn.integers(0, 2, CANARIES)
        seen = drawn.binomial(STEPS, ROWS_A_STEP / ROWS, CANARIES) * trained
        score = seen + drawn.normal(0, 1, CANARIES) * float(noise) * math.sqrt(STEPS)
        order, half = numpy.argsort(score), guesses // 2
        right = int((trained[order[:half]] == 0).sum() + (trained[order[-half:]] == 1).sum())
        lower.append(bound_epsilon(CANARIES, 2 * half, right, delta))
    return AuditedRuns(epsilon, noise, guesses, tuple(lower))


def bound_epsilon(canaries: int, guesses: int, right: int, delta: float) -> float:
    """Return the largest epsilon that this number of right guesses refutes at the confidence `CONFIDENCE`."""
    low, high = 0.0, 20.0
    if _chance(canaries, guesses, right, low, delta) > 1 - CONFIDENCE:
        return low
    for _ in range(30):
        middle = (low + high) / 2
        if _chance(canaries, guesses, right, middle, delta) < 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return an upper bound on the probability of this many right guesses under (epsilon, delta): theorem 5.2."""
    each = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    alpha = total = 0.0
    for more in range(1, right + 1):
        total += each[right - more]
        alpha = max(alpha, total / more)
    return min(1.0, math.fsum(each[right:]) + 2 * canaries * alpha * delta)


def _binomial(count: int, chance: float) -> list[float]:
    """Return the probability of each number of successes, from 0 to `count`."""
    log, other = math.log(chance), math.log1p(-chance)
    ways = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    return [math.exp(way + k * log + (count - k) * other) for k, way in enumerate(ways)]


def table(found: list[AuditedRuns]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| stated epsilon | noise | guesses | shown, median | shown, most |", "| --- " * 5 + "|"]
    for one in found:
        cells = [one.epsilon or "none", one.noise, str(one.guesses)]
        cells += [f"{statistics.median(one.lower):.2f}", f"{max(one.lower):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
