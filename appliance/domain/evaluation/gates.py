"""A gate set: what a run must show, and by which test, written down before its results are known.

People write it as JSON (policies/gates); as canonical JSON its digest is bound. docs/formats/evaluation.md is the page.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from appliance.domain.core.names import Decimal, Identifier, Value, explain, parse_value
from appliance.domain.data.local_sets import is_local
from appliance.domain.evaluation.items import ScoreName
from appliance.errors import BadInput

HELD_OUT = "held-out"
"""The set of every run: rows of its dataset that it does not train on. Other sets are validation sets, or sets of no
log, by name."""
ACCURACY, BRIER = "accuracy", "brier"
"""The metrics that are no score of their own: the share of rows answered right, and (confidence - right)^2."""
CLAIMS: dict[str, tuple[str, ...]] = {
    "mcnemar": ("better",),
    "tango": ("better", "no-worse"),
    "permutation": ("better", "no-worse"),
    "bootstrap": ("better", "no-worse"),
    "tost": ("no-worse", "equivalent"),
}
"""What each test can show."""
COUNTED = ("mcnemar", "tango")
"""Tests of right and wrong, for accuracy of rows that do not belong together."""
RESAMPLED = {"permutation": 9_999, "bootstrap": 1_999}
"""Resamples where a gate names none; with 10,000 items a few seconds."""
FEWEST = 20
"""Items of a gate; of items that belong together the units that bootstrap and tost need. With fewer their p-values are
too small: of two clusters whose gains happen to be equal they would be sure."""
MOST_ALPHA = Fraction(1, 5)

SliceName = Literal["column", "label", "length"]


class Gate(Value):
    """One claim and its test. `set`: the name of the rows that it is judged on. `margin`: in the metric's own unit; by
    `better` more than this is to be shown, by the others no more than this to be lost.

    `chance`: the accuracy of guessing; where the other model is not above it, there is nothing to lose.
    """

    chance: Decimal | None = None
    claim: Literal["better", "equivalent", "no-worse"]
    comparison: Literal["base", "full-fine-tuning", "released"]
    least_items: int = Field(ge=FEWEST, le=100_000)
    leg: Literal["rest", "task"]
    margin: Decimal = "0.0"
    metric: ScoreName
    name: Identifier
    resamples: int | None = Field(default=None, ge=999, le=100_000)
    set: Identifier
    slices: tuple[SliceName, ...] = Field(default=(), max_length=3)
    test: Literal["bootstrap", "mcnemar", "permutation", "tango", "tost"]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in (self._test_problem(), self._margin_problem(), self._rest_problem()):
            if problem:
                raise ValueError(f"gate {self.name}, {problem}")
        return self

    def _test_problem(self) -> str | None:
        if self.claim not in CLAIMS[self.test]:
            fit = ", ".join(name for name, claims in CLAIMS.items() if self.claim in claims)
            return f"test: expected one that can show {self.claim} ({fit}), got {self.test}"
        if self.test in COUNTED and self.metric != ACCURACY:
            return f"test: {self.test} counts right and wrong: expected metric {ACCURACY}, got {self.metric}"
        if self.resamples is not None and self.test not in RESAMPLED:
            return f"resamples: expected none for {self.test}, which draws nothing, got {self.resamples}"
        return None

    def _margin_problem(self) -> str | None:
        if self.test == "mcnemar" and self.margin_value:
            return f"margin: expected 0.0 for mcnemar (tango can show more than a margin), got {self.margin}"
        if self.claim != "better" and not self.margin_value:
            return f"margin: expected more than 0 for {self.claim}, since equality cannot be shown, got {self.margin}"
        if self.metric == ACCURACY and self.margin_value >= 1:
            return f"margin: expected less than 1.0 for {ACCURACY}, got {self.margin}"
        return None

    def _rest_problem(self) -> str | None:
        if len(set(self.slices)) != len(self.slices):
            return f"slices: expected each once, got {', '.join(self.slices)}"
        if self.chance is None:
            return None
        if self.metric != ACCURACY or self.claim == "better" or not 0 < Fraction(self.chance) < 1:
            return (
                f"chance: expected a fraction between 0 and 1, with metric {ACCURACY} and a claim other than better, "
                f"got {self.chance} with {self.metric} and {self.claim}"
            )
        return None

    def describe(self) -> str:
        """What it asks, as one sentence without its end."""
        claim = {"better": "better than", "no-worse": "no worse than", "equivalent": "equivalent to"}[self.claim]
        margin = f" by the margin {self.margin}" if self.margin_value else ""
        told = f"{self.metric} on {self.set} is {claim} {self.comparison}{margin}, by {self.test}"
        told += f", with {self.least_items} items at least"
        told += f"; no {' or '.join(self.slices)} is worse" if self.slices else ""
        return told if self.chance is None else f"{told}; nothing to lose where it is at chance ({self.chance})"

    @property
    def margin_value(self) -> Fraction:
        return Fraction(self.margin)

    @property
    def draws(self) -> int:
        """Resamples of its test; of a test that draws nothing, 0."""
        return self.resamples or RESAMPLED.get(self.test, 0)


class GateSet(Value):
    """Gates that are judged together.

    `correction`: over the gates. `luck`: what the runs that were judged on a set before cost. `spend` divides alpha by
    k (k + 1) for the k-th run, so that the chance of a lucky pass is below alpha over any number of runs; `divide` by
    k alone; `once` judges the first run only. `most_overlap`, `most_near_overlap`: the share of a set's rows that may
    be trained on, the same ones and nearly the same. `power` and `discordance` are assumed for what a set can show.
    """

    alpha: Decimal = "0.05"
    correction: Literal["holm", "none"] = "holm"
    discordance: Decimal = "0.1"
    gates: Annotated[tuple[Gate, ...], Field(min_length=1, max_length=32)]
    least_slice: int = Field(default=20, ge=5, le=100_000)
    luck: Literal["divide", "once", "spend"] = "spend"
    most_near_overlap: Decimal = "1.0"
    most_overlap: Decimal = "0.0"
    name: Identifier
    power: Decimal = "0.8"
    seed: int = Field(ge=0)
    version: Literal[1]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [gate.name for gate in self.gates]
        if len(set(names)) != len(names):
            raise ValueError(f"gates: expected each name once, got {', '.join(names)}")
        if not 0 < Fraction(self.alpha) <= MOST_ALPHA or len(self.alpha) > 11:
            raise ValueError(f"alpha: expected above 0 and at most 0.2, with nine places at most, got {self.alpha}")
        for what, value in (("power", self.power), ("discordance", self.discordance)):
            if not 0 < Fraction(value) < 1:
                raise ValueError(f"{what}: expected a fraction between 0 and 1, got {value}")
        for what, value in (("most_overlap", self.most_overlap), ("most_near_overlap", self.most_near_overlap)):
            if Fraction(value) > 1:
                raise ValueError(f"{what}: expected a share of the rows, at most 1.0, got {value}")
        self._check_legs()
        self._check_resamples()
        return self

    @property
    def validation_sets(self) -> tuple[str, ...]:
        """The names of the validation sets, each once."""
        return tuple(name for name in self._sets if not is_local(name))

    @property
    def local_sets(self) -> tuple[str, ...]:
        """The names of sets that are in no log, each once."""
        return tuple(name for name in self._sets if is_local(name))

    @property
    def _sets(self) -> list[str]:
        return sorted({gate.set for gate in self.gates} - {HELD_OUT})

    def _check_legs(self) -> None:
        if not any(gate.leg == "task" for gate in self.gates):
            raise ValueError("gates: expected one at least of leg task, which says what is to be better, got none")
        if not any(gate.leg == "rest" or gate.slices for gate in self.gates):
            raise ValueError("gates: expected one at least of leg rest or with slices, so that harm is seen, got none")

    def _check_resamples(self) -> None:
        """A p-value of resamples is 1 / (resamples + 1) at least: too few, and a gate could never be passed."""
        times = (len(self.gates) if self.correction == "holm" else 1) * (2 if self.luck == "spend" else 1)
        for gate in self.gates:
            if gate.draws and (gate.draws + 1) * Fraction(self.alpha) < times:
                raise ValueError(
                    f"gate {gate.name}, resamples: expected {-(-times // Fraction(self.alpha))} or more to reach alpha "
                    f"{self.alpha} over {len(self.gates)} gates, got {gate.draws}"
                )


def parse_gates(data: bytes, what: str = "gate set") -> GateSet:
    """The gate set of canonical bytes, as they are bound."""
    return parse_value(GateSet, data, what)


def parse_gate_file(data: bytes, what: str = "gate set") -> GateSet:
    """A gate set as people write it: any layout, but no key twice and none that is unknown; what is left out has its
    default."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=lambda pairs: _once(pairs, what))
        return GateSet.model_validate_json(json.dumps(value))
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}, byte {error.start}: expected UTF-8, got {error.reason}") from None
    except ValidationError as error:
        raise BadInput(f"{what}: {explain(error)}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what}: expected JSON, got: {error}") from None


def _once(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadInput(f"{what}: expected every key once, got {', '.join(key for key, _ in pairs)}")
    return value
