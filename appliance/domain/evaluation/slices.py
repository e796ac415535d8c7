"""A metric by parts of a set: where is an adapter worse that is better on the whole?

A part is marked worse where that is shown, after Holm's correction over all parts of the gate. Alpha is not divided by
the runs judged before: that would hide harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pydantic import Field

from appliance.domain.core.names import Canonical
from appliance.domain.evaluation.comparison import Pairs, Test, harm
from appliance.domain.evaluation.gates import Gate, GateSet, SliceName
from appliance.domain.evaluation.items import Word
from appliance.domain.evaluation.measures import PValue, Signed, write_bounds
from appliance.domain.evaluation.statistics import holm
from appliance.domain.evaluation.statistics.numbers import write_near, write_up


class SliceResult(Canonical):
    """One part. `p` and `adjusted`: of "worse"; null where it has fewer items than the gate set's `least_slice`.

    `lower` and `upper`: of the gain, one-sided at alpha each, without a correction.
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


def judge_slices(gates: GateSet, gate: Gate, pairs: Pairs) -> tuple[SliceResult, ...]:
    """Every part that the gate names, by kind and value; rows of no such part are in none."""
    parts = [(by, value, pairs.only(places)) for by, value, places in _split(gate.slices, pairs)]
    tests = [harm(gate.metric, part) if len(part.items) >= gates.least_slice else None for _, _, part in parts]
    adjusted = iter(holm.adjust([test.p for test in tests if test is not None]))
    alpha = Fraction(gates.alpha)
    return tuple(
        _result(by, value, part, test, None if test is None else next(adjusted), alpha)
        for (by, value, part), test in zip(parts, tests, strict=True)
    )


def _split(names: Sequence[SliceName], pairs: Pairs) -> list[tuple[SliceName, str, list[int]]]:
    found = []
    for by in sorted(names):
        places: dict[str, list[int]] = {}
        for place, item in enumerate(pairs.items):
            if (value := getattr(item.slices, by)) is not None:
                places.setdefault(value, []).append(place)
        found += [(by, value, places[value]) for value in sorted(places)]
    return found


def _result(
    by: SliceName, value: str, part: Pairs, test: Test | None, adjusted: Fraction | None, alpha: Fraction
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
