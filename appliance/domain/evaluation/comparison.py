"""Paired results of an adapter and another model on the same rows, and the tests over them.

A gain is positive where the adapter is better, also for measures of which less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated

from pydantic import Field

from appliance.domain.core.names import Canonical
from appliance.domain.core.words import form
from appliance.domain.evaluation.baselines import FALLING
from appliance.domain.evaluation.gates import ACCURACY, BRIER, COUNTED, FEWEST, RESAMPLED, Gate, GatesFile, SliceName
from appliance.domain.evaluation.items import SCALE, Answer, EvaluationItem, Word, kinds_of
from appliance.domain.evaluation.statistics import distributions, proportions, resampling
from appliance.domain.evaluation.statistics.calibration import brier
from appliance.domain.evaluation.statistics.distributions import Units, binomial_tail, group_units, measure_mean
from appliance.domain.evaluation.statistics.numbers import write_down, write_near, write_up
from appliance.domain.evaluation.statistics.proportions import Proportions
from appliance.domain.evaluation.statistics.resampling import Bootstrap, bootstrap_mean, stream_key
from appliance.errors import BadInput

Interval = tuple[Fraction | None, Fraction | None]
"""Lower and upper end; None for an end that is not determined."""


@dataclass(frozen=True)
class PairedValues:
    """The paired values of a metric: `ours` and `theirs` by item, in millionths of the metric's unit.

    `falling` is true for a metric of which less is better.
    """

    items: tuple[EvaluationItem, ...]
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    falling: bool

    @cached_property
    def gains(self) -> tuple[int, ...]:
        """Return the gain of each item, in millionths."""
        sign = -1 if self.falling else 1
        return tuple(sign * (ours - theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @cached_property
    def units(self) -> Units:
        """Return the gains by unit."""
        return group_units(self.gains, self._clusters)

    @property
    def their_units(self) -> Units:
        """Return the other model's values by unit."""
        return group_units(self.theirs, self._clusters)

    @property
    def _clusters(self) -> list[str | None]:
        return [item.cluster for item in self.items]

    @property
    def counts(self) -> Proportions:
        """Return the counts of items on which one model is right and the other wrong."""
        better = sum(gain > 0 for gain in self.gains)
        return Proportions(len(self.items), better, sum(gain < 0 for gain in self.gains))

    @property
    def means(self) -> tuple[Fraction, Fraction, Fraction]:
        """Return the means of ours, theirs and the gain, in the metric's unit."""
        whole = SCALE * len(self.items)
        return Fraction(sum(self.ours), whole), Fraction(sum(self.theirs), whole), Fraction(sum(self.gains), whole)

    def select(self, indices: Sequence[int]) -> PairedValues:
        """Return the items at these indices alone."""
        return PairedValues(
            tuple(self.items[index] for index in indices),
            tuple(self.ours[index] for index in indices),
            tuple(self.theirs[index] for index in indices),
            self.falling,
        )


def pair_items(items: Sequence[EvaluationItem], others: Sequence[EvaluationItem] | None, metric: str) -> PairedValues:
    """Pair the adapter's results with those of its base or, if `others` is given, of the adapter of another record.

    Raises: BadInput where the records have other rows, or no such metric.
    """
    answers = [item.base for item in items] if others is None else [item.adapter for item in others]
    if others is not None and [item.row for item in items] != [item.row for item in others]:
        ours, theirs = {item.row for item in items}, {item.row for item in others}
        raise BadInput(
            f"items: expected the same {len(ours)} rows in both records, got {len(ours - theirs)} that only the "
            f"first has and {len(theirs - ours)} that only the second has"
        )
    read = _choose_reader(metric, (kinds_of(items[0].adapter), kinds_of(answers[0])))
    return PairedValues(
        tuple(items),
        tuple(read(item.adapter) for item in items),
        tuple(map(read, answers)),
        metric in (*FALLING, BRIER),
    )


def _choose_reader(metric: str, kinds: Sequence[tuple[str, ...]]) -> Callable[[Answer], int]:
    """Return a function that reads the metric of an answer. Every answer of a record has the same metrics."""
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
    """The result of a test. `p`: the one-sided p-value of the gate's claim, before any correction.

    `interval`: returns the interval of the gain at a one-sided level.
    """

    p: Fraction
    interval: Callable[[Fraction], Interval]


def find_unsuitable_reason(gate: Gate, pairs: PairedValues) -> str | None:
    """Return the reason why a gate's test cannot be used on these items; None where it can."""
    if gate.test in COUNTED and pairs.units.clustered:
        return (
            f"{gate.test} counts items that are independent, and of {len(pairs.items)} some belong together: "
            "a gates file for this set of rows names permutation or bootstrap"
        )
    units = len(pairs.units.sums)
    if gate.test in ("bootstrap", "tost") and units < FEWEST:
        claim = " and the claim no-worse" if gate.claim == "equivalent" else ""
        return (
            f"{gate.test} needs {FEWEST} units or more, and {len(pairs.items)} items that belong together are {units}: "
            f"a gates file for this set of rows names permutation{claim}"
        )
    if gate.chance is not None and units < FEWEST:
        return (
            f"chance needs {FEWEST} units or more, and {len(pairs.items)} items that belong together are {units}: "
            "a gates file for this set of rows has no chance"
        )
    return None


def run_test(gate: Gate, pairs: PairedValues, seed: int) -> Test:
    """Run the test of a gate. The generator's purposes are `GATE/permutation` and `GATE/bootstrap`."""
    bound = gate.margin_value if gate.claim == "better" else -gate.margin_value
    if gate.test in COUNTED:
        counts = pairs.counts
        p = proportions.greater(counts.better, counts.worse) if gate.test == "mcnemar" else counts.greater(bound)
        return Test(p, lambda level: (counts.lower(level), counts.upper(level)))
    if gate.test == "tost":
        found = measure_mean(pairs.units, SCALE)
        p = found.equivalent(gate.margin_value) if gate.claim == "equivalent" else found.greater(bound)
        return Test(p, lambda level: (found.lower(level), found.upper(level)))
    if gate.test == "bootstrap":
        drawn = _bootstrap(gate, pairs.units, seed, gate.draws)
        return Test(drawn.greater(bound * SCALE), lambda level: _bounds(drawn, level))
    key = stream_key(seed, f"{gate.name}/permutation")
    p = resampling.greater(_shift(pairs.units, bound * SCALE), key, gate.draws)
    return Test(p, lambda level: _bounds(_bootstrap(gate, pairs.units, seed, RESAMPLED["bootstrap"]), level))


def _bootstrap(gate: Gate, units: Units, seed: int, resamples: int) -> Bootstrap:
    return bootstrap_mean(units, stream_key(seed, f"{gate.name}/bootstrap"), resamples)


def _bounds(drawn: Bootstrap, level: Fraction) -> Interval:
    lower, upper = drawn.lower(level), drawn.upper(level)
    return None if lower is None else lower / SCALE, None if upper is None else upper / SCALE


def _shift(units: Units, bound: Fraction) -> list[int]:
    """Return each unit's sum minus `bound` for each of its items, multiplied to integers."""
    return [
        value * bound.denominator - bound.numerator * size for value, size in zip(units.sums, units.sizes, strict=True)
    ]


def find_regression(metric: str, pairs: PairedValues) -> Test:
    """Test if the adapter is worse: McNemar's exact test for the accuracy of independent items, else the t test."""
    if metric == ACCURACY and not pairs.units.clustered:
        counts = pairs.counts
        return Test(
            proportions.greater(counts.worse, counts.better), lambda level: (counts.lower(level), counts.upper(level))
        )
    found = measure_mean(pairs.units, SCALE)
    return Test(found.less(Fraction(0)), lambda level: (found.lower(level), found.upper(level)))


def above_chance(pairs: PairedValues, chance: Fraction) -> Fraction:
    """Return the p-value of "the other model is better than guessing": exact for independent items, else the t test."""
    units = pairs.their_units
    if units.clustered:
        return measure_mean(units, SCALE).greater(chance)
    return binomial_tail(sum(pairs.theirs) // SCALE, len(pairs.items), chance)


Signed = Annotated[str, form(r"^-?(?:0|[1-9][0-9]{0,17})\.[0-9]{9}$", "a decimal of nine places such as -0.012000000")]
PValue = Annotated[str, form(r"^(?:0\.[0-9]{9}|1\.0{9})$", "a decimal of nine places from 0 to 1")]


def write_bounds(interval: tuple[Fraction | None, Fraction | None]) -> tuple[str | None, str | None]:
    """Write an interval, rounded outwards: the written one is never narrower than the computed one."""
    lower, upper = interval
    return None if lower is None else write_down(lower), None if upper is None else write_up(upper)


def show(value: Fraction | str) -> str:
    """Format a number for a sentence: at most four digits and four places, rounded half to even.

    Leading zeros do not count as digits. The part before the point is never shortened.
    """
    places = next((places for places in (4, 3, 2, 1) if abs(_round(value, places)) < 10_000), 0)
    whole, part = divmod(abs(units := _round(value, places)), 10**places)
    return f"{'-' if units < 0 else ''}{whole}" + (f".{part:0{places}d}" if places else "")


def _round(value: Fraction | str, places: int) -> int:
    """Return the value in units of the last of these places."""
    scale: int = 10**places
    return round(Fraction(value) * scale)


def show_p(value: Fraction) -> str:
    """Format a p-value for a sentence: `p 0.0312` or `p below 0.0001`."""
    return "p below 0.0001" if value < Fraction(1, 10_000) else f"p {show(value)}"


class SliceResult(Canonical):
    """The result of a metric on one subgroup of a set.

    `p` and `adjusted`: of the claim "worse"; null where the subgroup has fewer items than `least_slice` of the gates
    file. `lower` and `upper`: of the gain, each one-sided at alpha, without a correction.
    """

    adjusted: PValue | None
    by: SliceName
    gain: Signed
    items: int = Field(ge=1)
    lower: Signed | None
    ours: Signed
    p: PValue | None
    theirs: Signed
    upper: Signed | None
    value: Word
    worse: bool


def evaluate_slices(gates: GatesFile, gate: Gate, pairs: PairedValues) -> tuple[SliceResult, ...]:
    """Return the results of the subgroups that a gate names, by kind and value. Rows without such a value are left out.

    A subgroup is worse where the test shows it after Holm's correction over all subgroups of the gate. Alpha is not
    divided by the number of earlier runs, since that would hide harm.
    """
    parts = [(by, value, pairs.select(places)) for by, value, places in _split(gate.slices, pairs)]
    tests = [
        find_regression(gate.metric, part) if len(part.items) >= gates.least_slice else None for _, _, part in parts
    ]
    adjusted = iter(distributions.adjust([test.p for test in tests if test is not None]))
    alpha = Fraction(gates.alpha)
    return tuple(
        _result(by, value, part, test, None if test is None else next(adjusted), alpha)
        for (by, value, part), test in zip(parts, tests, strict=True)
    )


def _split(names: Sequence[SliceName], pairs: PairedValues) -> list[tuple[SliceName, str, list[int]]]:
    groups = []
    for by in sorted(names):
        indices: dict[str, list[int]] = {}
        for index, item in enumerate(pairs.items):
            if (value := getattr(item.slices, by)) is not None:
                indices.setdefault(value, []).append(index)
        groups += [(by, value, indices[value]) for value in sorted(indices)]
    return groups


def _result(
    by: SliceName, value: str, part: PairedValues, test: Test | None, adjusted: Fraction | None, alpha: Fraction
) -> SliceResult:
    ours, theirs, gain = map(write_near, part.means)
    lower, upper = write_bounds(test.interval(alpha)) if test is not None else (None, None)
    return SliceResult(
        adjusted=None if adjusted is None else write_up(adjusted),
        by=by,
        gain=gain,
        items=len(part.items),
        lower=lower,
        ours=ours,
        p=None if test is None else write_up(test.p),
        theirs=theirs,
        upper=upper,
        value=value,
        worse=adjusted is not None and adjusted <= alpha,
    )
