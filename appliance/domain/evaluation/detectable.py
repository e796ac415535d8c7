"""The smallest effects that the gates can show on sets of a known size, for people to see before they sign an order."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from pydantic import Field

from appliance.domain.core.names import Canonical, Identifier
from appliance.domain.evaluation.comparison import Signed, show
from appliance.domain.evaluation.gates import ACCURACY, Gate, GatesFile
from appliance.domain.evaluation.statistics.numbers import write_up
from appliance.domain.evaluation.statistics.proportions import (
    EffectAssumptions,
    smallest_difference,
    smallest_effect,
    smallest_margin,
)
from appliance.domain.evaluation.verdict import correction_factor


class DetectableEffect(Canonical):
    """The smallest effect that one gate can show.

    `smallest`: for the claim better the smallest gain, with the margin included; for other claims the smallest margin.
    It is a fraction for accuracy, and in standard deviations of the items' gains, without the margin, for other
    metrics. Null where no effect can be shown.
    """

    basis: str
    gate: Identifier
    items: int = Field(ge=0)
    smallest: Signed | None
    sentence: str


def list_detectable(
    gates: GatesFile, sizes: Mapping[str, int], evaluated_before: Mapping[str, int]
) -> list[DetectableEffect]:
    """Return the smallest effect of each gate, at the alpha that applies to the smallest p-value after all corrections.

    Items that belong together show less than this.
    """
    return [_detect(gates, gate, sizes.get(gate.set, 0), evaluated_before.get(gate.set, 0)) for gate in gates.gates]


def _detect(gates: GatesFile, gate: Gate, items: int, before: int) -> DetectableEffect:
    if items < gate.least_items:
        sentence = (
            f"the set {gate.set} has {items} items, and the gate asks for {gate.least_items}: it cannot be passed"
        )
        return DetectableEffect(basis="", gate=gate.name, items=items, smallest=None, sentence=sentence)
    if gates.run_correction == "once" and before:
        sentence = (
            f"the set {gate.set} can be used once, and {before} runs were evaluated on it before: it cannot be passed"
        )
        return DetectableEffect(basis="", gate=gate.name, items=items, smallest=None, sentence=sentence)
    factor = correction_factor(gates, before) * (len(gates.gates) if gates.correction == "holm" else 1)
    counted = gate.metric == ACCURACY
    spread = Fraction(gates.discordance) if counted else Fraction(1)
    basis = EffectAssumptions(items, Fraction(gates.alpha) / factor, Fraction(gates.power), spread)
    words = basis.describe("of the items answered differently" if counted else "standard deviation")
    found, what = _smallest(gate, basis), "gain" if gate.claim == "better" else "margin"
    if found is not None and counted and what == "gain":
        # The gain must be the margin plus the effect. It cannot exceed the share of items answered differently.
        found = found + gate.margin_value if found + gate.margin_value <= spread else None
    if found is not None:
        size = f"{show(found * 100)} points" if counted else f"{show(found)} standard deviations"
        sentence = f"the smallest {what} that {gate.metric} can show is {size}, with {words}"
    elif what == "gain":
        # A gain cannot exceed the share of items that are answered differently.
        sentence = f"a gain of up to {show(spread * 100)} points cannot be shown with {words}; a larger one may be"
    else:
        sentence = f"no margin can be shown with {words}"
    sentence += _compare_margin(gate, found)
    smallest = None if found is None else write_up(found)
    return DetectableEffect(basis=words, gate=gate.name, items=items, smallest=smallest, sentence=sentence)


def _compare_margin(gate: Gate, found: Fraction | None) -> str:
    """Return a comparison of the gate's margin with the effect that its rows can show."""
    if not gate.margin_value:
        return ""
    if gate.metric != ACCURACY:
        return f"; the gate's margin is {gate.margin}, in the metric's own unit"
    margin = f"; the gate's margin of {show(gate.margin_value * 100)} points"
    if gate.claim == "better":
        return f"{margin} is included"
    if found is None or gate.margin_value < found:
        return f"{margin} is smaller: an adapter that is as good will probably not pass"
    return f"{margin} is enough"


def _smallest(gate: Gate, basis: EffectAssumptions) -> Fraction | None:
    if gate.metric != ACCURACY:
        return smallest_difference(basis)
    return smallest_effect(basis) if gate.claim == "better" else smallest_margin(basis)
