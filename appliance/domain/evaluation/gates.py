"""The gates file: which claims a run must show, and by which tests, fixed before the results are known.

People write it as JSON (policies/gates). An order names the digest of its canonical JSON. The format is described in
docs/formats/evaluation.md.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from appliance.domain.core.names import Decimal, Identifier, Value, parse_file, parse_value
from appliance.domain.data.kinds import is_local
from appliance.domain.evaluation.items import ScoreName

HELD_OUT = "held-out"
"""The set that every run has: the rows of its dataset that are held out of training.

Every other set is a validation set or a local set, by name.
"""
ACCURACY, BRIER = "accuracy", "brier"
"""Metrics that are computed from other values: the share of right answers, and (confidence - right)^2."""
CLAIMS: dict[str, tuple[str, ...]] = {
    "mcnemar": ("better",),
    "tango": ("better", "no-worse"),
    "permutation": ("better", "no-worse"),
    "bootstrap": ("better", "no-worse"),
    "tost": ("no-worse", "equivalent"),
}
"""The claims that each test can show."""
COUNTED = ("mcnemar", "tango")
"""Tests of right and wrong answers, for the accuracy of independent items."""
RESAMPLED = {"permutation": 9_999, "bootstrap": 1_999}
"""Default number of resamples by test. With 10,000 items they take a few seconds."""
MOST_DRAWS = 32 * RESAMPLED["permutation"]
"""Largest number of resamples of all gates of a file, as many as those of 32 gates with the default."""
FEWEST = 20
"""Least items of a gate, and least units for bootstrap, tost and chance.

With fewer units their p-values are too small: two clusters with equal gains would give certainty.
"""
MOST_ALPHA = Fraction(1, 5)
"""Largest alpha of a gates file."""

SliceName = Literal["column", "label", "length"]


GATE_KINDS = {"regression": "regression check", "target": "target metric"}
"""Names of the two kinds of gates for people."""


class Gate(Value):
    """One claim about a run, and its statistical test.

    `set`: the name of the rows that it is evaluated on. `margin`: in the unit of the metric. The claim `better` must
    show a gain of more than the margin; the other claims must show a loss of less than it. `chance`: the accuracy of
    guessing; where the other model is not shown to be above it, the gate is not informative.
    """

    chance: Decimal | None = None
    claim: Literal["better", "equivalent", "no-worse"]
    comparison: Literal["base", "full-fine-tuning", "released"]
    kind: Literal["regression", "target"]
    least_items: int = Field(ge=FEWEST, le=100_000)
    margin: Decimal = "0.0"
    metric: ScoreName
    name: Identifier
    resamples: int | None = Field(default=None, ge=999, le=100_000)
    set: Identifier
    slices: tuple[SliceName, ...] = Field(default=(), max_length=3)
    test: Literal["bootstrap", "mcnemar", "permutation", "tango", "tost"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := self._find_problem():
            raise ValueError(f"gate {self.name}, {problem}")
        return self

    def _find_problem(self) -> str | None:
        if self.claim not in CLAIMS[self.test]:
            fit = ", ".join(name for name, claims in CLAIMS.items() if self.claim in claims)
            return f"test: expected one that can show {self.claim} ({fit}), got {self.test}"
        if self.test in COUNTED and self.metric != ACCURACY:
            return f"test: {self.test} counts right and wrong: expected metric {ACCURACY}, got {self.metric}"
        if self.resamples is not None and self.test not in RESAMPLED:
            return f"resamples: expected none for {self.test}, which draws nothing, got {self.resamples}"
        if self.test == "mcnemar" and self.margin_value:
            return f"margin: expected 0.0 for mcnemar (tango can show more than a margin), got {self.margin}"
        if self.claim != "better" and not self.margin_value:
            return f"margin: expected more than 0 for {self.claim}, since equality cannot be shown, got {self.margin}"
        if self.metric == ACCURACY and self.margin_value >= 1:
            return f"margin: expected less than 1.0 for {ACCURACY}, got {self.margin}"
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

    def describe_role(self) -> str:
        """Return what the gate decides, its claim and its test, as one sentence without its full stop."""
        return f"{GATE_KINDS[self.kind]}: {self.describe()}"

    def describe(self) -> str:
        """Return the claim and the test as one sentence without its full stop."""
        claim = {"better": "better than", "no-worse": "no worse than", "equivalent": "equivalent to"}[self.claim]
        margin = f" by the margin {self.margin}" if self.margin_value else ""
        description = f"{self.metric} on {self.set} is {claim} {self.comparison}{margin}, by the test {self.test}"
        description += f", with at least {self.least_items} rows"
        description += f"; no {' or '.join(self.slices)} is worse" if self.slices else ""
        return (
            description
            if self.chance is None
            else f"{description}; not informative where it is at chance ({self.chance})"
        )

    @property
    def margin_value(self) -> Fraction:
        """Return the margin as a fraction."""
        return Fraction(self.margin)

    @property
    def draws(self) -> int:
        """Return the number of resamples of the test; 0 for a test without resamples."""
        return self.resamples or RESAMPLED.get(self.test, 0)


class GatesFile(Value):
    """Gates that are evaluated together.

    - `correction`: the correction over the gates.
    - `run_correction`: the correction for the runs that were evaluated on a set before. For the k-th run, `spend`
      divides alpha by k (k + 1), so that the chance of a false pass stays below alpha over any number of runs; `divide`
      divides it by k; `once` evaluates the first run only.
    - `most_overlap`, `most_near_overlap`: the largest share of a set's rows that may also be training rows, exactly or
      nearly. Public sets have up to 5 % of near duplicates by chance (similar questions, standard clauses); more than
      10 % is a sign of copies.
    - `power`, `discordance`: the assumptions for the smallest effect that a set can show.
    """

    alpha: Decimal = "0.05"
    correction: Literal["holm", "none"] = "holm"
    discordance: Decimal = "0.1"
    gates: Annotated[tuple[Gate, ...], Field(min_length=1, max_length=32)]
    least_slice: int = Field(default=20, ge=5, le=100_000)
    most_near_overlap: Decimal = "0.1"
    most_overlap: Decimal = "0.0"
    name: Identifier
    power: Decimal = "0.8"
    run_correction: Literal["divide", "once", "spend"] = "spend"
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
        self._check_kinds()
        self._check_resamples()
        return self

    @property
    def validation_sets(self) -> tuple[str, ...]:
        """Return the names of the validation sets, each once."""
        return tuple(name for name in self._sets if not is_local(name))

    @property
    def local_sets(self) -> tuple[str, ...]:
        """Return the names of the local sets, which are not in the ledger, each once."""
        return tuple(name for name in self._sets if is_local(name))

    @property
    def _sets(self) -> list[str]:
        return sorted({gate.set for gate in self.gates} - {HELD_OUT})

    def _check_kinds(self) -> None:
        if not any(gate.kind == "target" for gate in self.gates):
            raise ValueError("gates: expected a gate of kind target, which says what is to be better, got none")
        if not any(gate.kind == "regression" or gate.slices for gate in self.gates):
            raise ValueError(
                "gates: expected a gate of kind regression or one with slices, to detect regressions, got none"
            )

    def _check_resamples(self) -> None:
        """Check that the resamples are enough to pass and not too many to compute.

        The least p-value is 1 / (resamples + 1), which the corrections multiply.
        """
        if (draws := sum(gate.draws for gate in self.gates)) > MOST_DRAWS:
            raise ValueError(f"resamples: expected at most {MOST_DRAWS} of all gates together, got {draws}")
        factor = (len(self.gates) if self.correction == "holm" else 1) * (2 if self.run_correction == "spend" else 1)
        for gate in self.gates:
            if gate.draws and (gate.draws + 1) * Fraction(self.alpha) < factor:
                raise ValueError(
                    f"gate {gate.name}, resamples: expected {-(-factor // Fraction(self.alpha))} or more to reach "
                    f"alpha {self.alpha} over {len(self.gates)} gates, got {gate.draws}"
                )


_MAX_NAME = 63
"""Maximum length of the name of a gates file."""


def move_gates(gates: GatesFile, validation_set: str) -> GatesFile:
    """Return the gates with a validation set in place of the held-out rows, under a name that says so."""
    moved = tuple(one.model_copy(update={"set": validation_set}) if one.set == HELD_OUT else one for one in gates.gates)
    name = f"{gates.name}-on-{validation_set}"[:_MAX_NAME].rstrip("-")
    return GatesFile.model_validate(gates.model_dump() | {"gates": moved, "name": name})


def parse_gates(data: bytes, what: str = "gates file") -> GatesFile:
    """Parse the canonical JSON of a gates file, as an order binds it."""
    return parse_value(GatesFile, data, what)


def parse_gate_file(data: bytes, what: str = "gates file") -> GatesFile:
    """Parse a gates file as people write it, in any layout.

    Fields that are left out have their defaults. Unknown or duplicate fields are refused.
    """
    return parse_file(GatesFile, data, what)
