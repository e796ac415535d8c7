"""What an adapter made of each row beside what another model made of it, and the test that a gate names for that.

A gain is positive where the adapter is better, also of measures of which less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from appliance.domain.evaluation.baselines import FALLING
from appliance.domain.evaluation.gates import ACCURACY, BRIER, COUNTED, FEWEST, RESAMPLED, Gate
from appliance.domain.evaluation.items import SCALE, Answer, Item, kinds_of
from appliance.domain.evaluation.statistics import mcnemar, permutation
from appliance.domain.evaluation.statistics.bootstrap import Bootstrap, bootstrap_mean
from appliance.domain.evaluation.statistics.calibration import brier
from appliance.domain.evaluation.statistics.distributions import binomial_tail
from appliance.domain.evaluation.statistics.generator import stream_key
from appliance.domain.evaluation.statistics.student import measure_mean
from appliance.domain.evaluation.statistics.tango import Proportions
from appliance.domain.evaluation.statistics.units import Units, group_units
from appliance.errors import BadInput

Interval = tuple[Fraction | None, Fraction | None]
"""Lower and upper end; None where there is none."""


@dataclass(frozen=True)
class Pairs:
    """`ours` and `theirs`: by item, in millionths of the metric's unit."""

    items: tuple[Item, ...]
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    falling: bool

    @cached_property
    def gains(self) -> tuple[int, ...]:
        sign = -1 if self.falling else 1
        return tuple(sign * (ours - theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @cached_property
    def units(self) -> Units:
        return group_units(self.gains, self._clusters)

    @property
    def their_units(self) -> Units:
        return group_units(self.theirs, self._clusters)

    @property
    def _clusters(self) -> list[str | None]:
        return [item.cluster for item in self.items]

    @property
    def counts(self) -> Proportions:
        """Of right and wrong."""
        better = sum(gain > 0 for gain in self.gains)
        return Proportions(len(self.items), better, sum(gain < 0 for gain in self.gains))

    @property
    def means(self) -> tuple[Fraction, Fraction, Fraction]:
        """Ours, theirs and the gain, in the metric's unit."""
        whole = SCALE * len(self.items)
        return Fraction(sum(self.ours), whole), Fraction(sum(self.theirs), whole), Fraction(sum(self.gains), whole)

    def only(self, places: Sequence[int]) -> Pairs:
        """Those items alone."""
        return Pairs(
            tuple(self.items[place] for place in places),
            tuple(self.ours[place] for place in places),
            tuple(self.theirs[place] for place in places),
            self.falling,
        )


def pair_items(items: Sequence[Item], others: Sequence[Item] | None, metric: str) -> Pairs:
    """The adapter beside its base (`others` is None), or beside the adapter of another record of the same rows.

    BadInput where the records are of other rows, or have no such metric.
    """
    answers = [item.base for item in items] if others is None else [item.adapter for item in others]
    if others is not None and [item.row for item in items] != [item.row for item in others]:
        ours, theirs = {item.row for item in items}, {item.row for item in others}
        raise BadInput(
            f"items: expected the same {len(ours)} rows in both records, got {len(ours - theirs)} that only the "
            f"first has and {len(theirs - ours)} that only the second has"
        )
    read = _reader(metric, (kinds_of(items[0].adapter), kinds_of(answers[0])))
    return Pairs(
        tuple(items),
        tuple(read(item.adapter) for item in items),
        tuple(map(read, answers)),
        metric in (*FALLING, BRIER),
    )


def _reader(metric: str, kinds: Sequence[tuple[str, ...]]) -> Callable[[Answer], int]:
    """How an answer's metric is read; every answer of a record has the same."""
    needed = {ACCURACY: ("right",), BRIER: ("right", "confidence")}.get(metric, (metric,))
    for known in kinds:
        if missing := [name for name in needed if name not in known]:
            raise BadInput(
                f"items, metric {metric}: expected {', '.join(missing)} in every answer, got {', '.join(known)}"
            )
    if metric == ACCURACY:
        return lambda answer: SCALE * bool(answer.right)
    if metric == BRIER:
        return lambda answer: brier(answer.confidence or 0, bool(answer.right))
    return lambda answer: answer.scores[metric]


@dataclass(frozen=True)
class Test:
    """`p`: of what the gate claims, one-sided, before any correction. `interval`: of the gain, at a one-sided level."""

    p: Fraction
    interval: Callable[[Fraction], Interval]


def find_unfit(gate: Gate, pairs: Pairs) -> str | None:
    """Why a gate's test cannot be used on these items."""
    if gate.test in COUNTED and pairs.units.clustered:
        return (
            f"{gate.test} counts items that are independent, and of {len(pairs.items)} some belong together: "
            "a gate set for this set of rows names permutation or bootstrap"
        )
    units = len(pairs.units.sums)
    if gate.test in ("bootstrap", "tost") and units < FEWEST:
        claim = " and the claim no-worse" if gate.claim == "equivalent" else ""
        return (
            f"{gate.test} needs {FEWEST} units or more, and {len(pairs.items)} items that belong together are {units}: "
            f"a gate set for this set of rows names permutation{claim}"
        )
    if gate.chance is not None and units < FEWEST:
        return (
            f"chance needs {FEWEST} units or more, and {len(pairs.items)} items that belong together are {units}: "
            "a gate set for this set of rows has no chance"
        )
    return None


def run_test(gate: Gate, pairs: Pairs, seed: int) -> Test:
    """The test that a gate names. The generator's purposes are `GATE/permutation` and `GATE/bootstrap`."""
    bound = gate.margin_value if gate.claim == "better" else -gate.margin_value
    if gate.test in COUNTED:
        counts = pairs.counts
        p = mcnemar.greater(counts.better, counts.worse) if gate.test == "mcnemar" else counts.greater(bound)
        return Test(p, lambda level: (counts.lower(level), counts.upper(level)))
    if gate.test == "tost":
        found = measure_mean(pairs.units, SCALE)
        p = found.equivalent(gate.margin_value) if gate.claim == "equivalent" else found.greater(bound)
        return Test(p, lambda level: (found.lower(level), found.upper(level)))
    if gate.test == "bootstrap":
        drawn = _bootstrap(gate, pairs.units, seed, gate.draws)
        return Test(drawn.greater(bound * SCALE), lambda level: _bounds(drawn, level))
    key = stream_key(seed, f"{gate.name}/permutation")
    p = permutation.greater(_shift(pairs.units, bound * SCALE), key, gate.draws)
    return Test(p, lambda level: _bounds(_bootstrap(gate, pairs.units, seed, RESAMPLED["bootstrap"]), level))


def _bootstrap(gate: Gate, units: Units, seed: int, resamples: int) -> Bootstrap:
    return bootstrap_mean(units, stream_key(seed, f"{gate.name}/bootstrap"), resamples)


def _bounds(drawn: Bootstrap, level: Fraction) -> Interval:
    lower, upper = drawn.lower(level), drawn.upper(level)
    return None if lower is None else lower / SCALE, None if upper is None else upper / SCALE


def _shift(units: Units, bound: Fraction) -> list[int]:
    """Each unit's sum less `bound` for each of its items, in whole numbers."""
    return [
        value * bound.denominator - bound.numerator * size for value, size in zip(units.sums, units.sizes, strict=True)
    ]


def harm(metric: str, pairs: Pairs) -> Test:
    """Is the adapter worse? By McNemar's exact test of independent items' accuracy, else by the t test."""
    if metric == ACCURACY and not pairs.units.clustered:
        counts = pairs.counts
        return Test(
            mcnemar.greater(counts.worse, counts.better), lambda level: (counts.lower(level), counts.upper(level))
        )
    found = measure_mean(pairs.units, SCALE)
    return Test(found.less(Fraction(0)), lambda level: (found.lower(level), found.upper(level)))


def above_chance(pairs: Pairs, chance: Fraction) -> Fraction:
    """The p-value of "the other model is better than guessing": exact for independent items, else the t test."""
    units = pairs.their_units
    if units.clustered:
        return measure_mean(units, SCALE).greater(chance)
    return binomial_tail(sum(pairs.theirs) // SCALE, len(pairs.items), chance)
