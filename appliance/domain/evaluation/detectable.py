"""What a gate set can show on sets of a known size, said before the order is signed."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from pydantic import Field

from appliance.domain.core.names import Canonical, Identifier
from appliance.domain.evaluation.gates import ACCURACY, Gate, GateSet
from appliance.domain.evaluation.measures import Signed, show
from appliance.domain.evaluation.statistics.numbers import write_up
from appliance.domain.evaluation.statistics.power import Basis, smallest_difference, smallest_effect, smallest_margin
from appliance.domain.evaluation.verdict import luck_of


class Detectable(Canonical):
    """What one gate can show. `smallest`: the smallest gain (claim better) or margin (the others); null where so few
    items can show none. Of accuracy as a fraction, of other metrics in standard deviations of the items' gains."""

    basis: str
    gate: Identifier
    items: int = Field(ge=0)
    smallest: Signed | None
    told: str


def list_detectable(gates: GateSet, sizes: Mapping[str, int], judged_before: Mapping[str, int]) -> list[Detectable]:
    """For each gate, with alpha after luck and, with Holm, over all gates, as it is for the smallest p-value.

    Items that belong together show less than this.
    """
    return [_detect(gates, gate, sizes.get(gate.set, 0), judged_before.get(gate.set, 0)) for gate in gates.gates]


def _detect(gates: GateSet, gate: Gate, items: int, before: int) -> Detectable:
    if items < gate.least_items:
        told = f"the set {gate.set} has {items} items, and the gate asks for {gate.least_items}: it cannot be passed"
        return Detectable(basis="", gate=gate.name, items=items, smallest=None, told=told)
    if gates.luck == "once" and before:
        told = f"the set {gate.set} judges once, and {before} runs were judged on it before: it cannot be passed"
        return Detectable(basis="", gate=gate.name, items=items, smallest=None, told=told)
    factor = luck_of(gates, before) * (len(gates.gates) if gates.correction == "holm" else 1)
    counted = gate.metric == ACCURACY
    spread = Fraction(gates.discordance) if counted else Fraction(1)
    basis = Basis(items, Fraction(gates.alpha) / factor, Fraction(gates.power), spread)
    words = basis.describe("of the items answered differently" if counted else "standard deviation")
    found, what = _smallest(gate, basis), "gain" if gate.claim == "better" else "margin"
    if found is not None:
        size = f"{show(found * 100)} points" if counted else f"{show(found)} standard deviations"
        told = f"the smallest {what} that {gate.metric} can show is {size}, with {words}"
    elif what == "gain":
        # No gain is larger than the share of items that are answered differently.
        told = f"a gain of up to {show(spread * 100)} points cannot be shown with {words}; a larger one may be"
    else:
        told = f"no margin can be shown with {words}"
    smallest = None if found is None else write_up(found)
    return Detectable(basis=words, gate=gate.name, items=items, smallest=smallest, told=told)


def _smallest(gate: Gate, basis: Basis) -> Fraction | None:
    if gate.metric != ACCURACY:
        return smallest_difference(basis)
    return smallest_effect(basis) if gate.claim == "better" else smallest_margin(basis)
