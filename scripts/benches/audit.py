"""`scripts/bench audit`: what an audit of one training run could show of a run with and without noise, simulated.

Steinke, Nasr and Jagielski, 2023 (https://arxiv.org/abs/2305.08846): a coin decides for each of `CANARIES` rows whether
it is trained on; the auditor guesses the coins, and the number of right guesses gives a lower bound on epsilon. This
auditor sees more than any adapter shows: each canary has a direction of its own in the gradient, and the auditor sees
that direction of every noised sum. No model is trained, and nothing of the appliance is audited.
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
class Found:
    """`lower`: of each simulated run the epsilon that its guesses show, at least."""

    epsilon: str | None
    noise: str
    guesses: int
    lower: tuple[float, ...]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench audit", description="Simulate an audit of one run.")
    parser.add_argument("--quick", action="store_true", help="20 runs of each kind, and not 200: ten seconds")
    runs = 20 if parser.parse_args(arguments).quick else 200
    print("\n".join(table([simulate(epsilon, guesses, runs) for epsilon in EPSILONS for guesses in GUESSES])))


def simulate(epsilon: str | None, guesses: int, runs: int, seed: int = 1) -> Found:
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
    return Found(epsilon, noise, guesses, tuple(lower))


def bound_epsilon(canaries: int, guesses: int, right: int, delta: float) -> float:
    """Return the largest epsilon that so many right guesses refute, at `CONFIDENCE`."""
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
    """At most so likely are that many right guesses under (epsilon, delta): the paper's theorem 5.2."""
    each = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    alpha = total = 0.0
    for more in range(1, right + 1):
        total += each[right - more]
        alpha = max(alpha, total / more)
    return min(1.0, math.fsum(each[right:]) + 2 * canaries * alpha * delta)


def _binomial(count: int, chance: float) -> list[float]:
    """Return the probability of each number of successes."""
    log, other = math.log(chance), math.log1p(-chance)
    ways = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    return [math.exp(way + k * log + (count - k) * other) for k, way in enumerate(ways)]


def table(found: list[Found]) -> list[str]:
    lines = ["| stated epsilon | noise | guesses | shown, median | shown, most |", "| --- " * 5 + "|"]
    for one in found:
        cells = [one.epsilon or "none", one.noise, str(one.guesses)]
        cells += [f"{statistics.median(one.lower):.2f}", f"{max(one.lower):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
