"""The verdict over the gates: is the target metric better, and does no regression check fail?

A verdict is a function of the gates file, the items and the number of runs that were evaluated on the sets before. The
same inputs give the same bytes. The format is described in docs/formats/evaluation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from appliance.domain.core.names import Canonical, Digest, Identifier, encode_value, parse_value, write_canonical
from appliance.domain.evaluation.comparison import (
    PairedValues,
    PValue,
    Signed,
    SliceResult,
    Test,
    above_chance,
    evaluate_slices,
    find_unsuitable_reason,
    pair_items,
    run_test,
    show,
    show_p,
    write_bounds,
)
from appliance.domain.evaluation.confusion import ModelCalibration, measure_calibration
from appliance.domain.evaluation.gates import GATE_KINDS, Gate, GatesFile
from appliance.domain.evaluation.items import EvaluationItem, ScoreName, encode_items, kinds_of, parse_items
from appliance.domain.evaluation.statistics import distributions
from appliance.domain.evaluation.statistics.numbers import write_down, write_near, write_up
from appliance.errors import BadInput, Tampered
from appliance.formats.core.digest import digest_bytes

Outcome = Literal["failed", "not-applicable", "not-informative", "passed"]


Amount = Literal["few", "many"]
"""The share of a blind set's rows that are also training rows, in words. Exact counts would let people confirm guesses.
"""
MANY: Amount = "many"


class TrainingOverlap(NamedTuple):
    """The rows of a set that are also training rows: exact duplicates and near duplicates."""

    duplicates: int | Amount
    near_duplicates: int | Amount


@dataclass(frozen=True)
class VerdictInputs:
    """The inputs of a verdict, beside the gates file.

    - `sets`: the run's items, by the name of their set.
    - `others`: by comparison and set, the items of the run that made the released version, or of full fine-tuning; None
      where no version is released.
    - `evaluated_before`: by set, the number of runs that were evaluated on it before this one; 0 where it is missing.
    - `named_before`: for each final set, the number of those runs whose adapter has the same name.
    - `overlaps`: by set, the rows that are also training rows, where they were counted.
    """

    sets: Mapping[str, tuple[EvaluationItem, ...]]
    others: Mapping[tuple[str, str], tuple[EvaluationItem, ...] | None]
    evaluated_before: Mapping[str, int]
    named_before: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, TrainingOverlap] = field(default_factory=dict)


Counted = Annotated[int, Field(ge=0)] | Amount | None


class EvaluatedSet(Canonical):
    """A record of items that the verdict depends on. `model` is `run` for the items of the run itself.

    `duplicates`, `near_duplicates`: rows of the set that are also training rows; `few` or `many` for a blind set, null
    where they were not counted. `named_before` is null for a set that is not final.
    """

    digest: Digest
    duplicates: Counted
    evaluated_before: int = Field(ge=0)
    items: int = Field(ge=1)
    model: Literal["full-fine-tuning", "released", "run"]
    named_before: int | None = Field(ge=0)
    near_duplicates: Counted
    set: Identifier

    @property
    def overlap(self) -> TrainingOverlap | None:
        """Return both counts of duplicates; None where they were not counted."""
        if self.duplicates is None or self.near_duplicates is None:
            return None
        return TrainingOverlap(self.duplicates, self.near_duplicates)


class GateResult(Canonical):
    """The result of one gate. Numbers are null where no test was made.

    `adjusted`: the p-value after all corrections, to compare with alpha. `lower` and `upper`: the interval of the gain,
    at the level of the gate's test; `confidence` is that of the interval.
    """

    adjusted: PValue | None
    confidence: PValue | None
    gain: Signed | None
    gate: Identifier
    items: int = Field(ge=0)
    lower: Signed | None
    metric: ScoreName
    ours: Signed | None
    outcome: Outcome
    p: PValue | None
    reason: str
    slices: tuple[SliceResult, ...]
    theirs: Signed | None
    units: int = Field(ge=0)
    upper: Signed | None


class Verdict(Canonical):
    """The verdict over all gates.

    `target_passed`: the target metric is better. `regression_passed`: no regression check failed. `passed`: both.
    `why`: a summary for people.
    """

    evaluated: tuple[EvaluatedSet, ...]
    gates: Digest
    passed: bool
    regression_passed: bool
    results: tuple[GateResult, ...]
    target_passed: bool
    version: Literal[1]
    why: str

    @property
    def failed_gates(self) -> tuple[str, ...]:
        """Return the gates that block a run which did not pass; empty if it passed.

        They are the gates that failed and those with a subgroup that is worse. If there are none, no gate of the target
        metric could be evaluated; then all gates are returned.
        """
        if self.passed:
            return ()
        blocking = [
            result.gate
            for result in self.results
            if result.outcome == "failed" or any(part.worse for part in result.slices)
        ]
        return tuple(blocking or [result.gate for result in self.results])


def parse_verdict(data: bytes, what: str = "verdict") -> Verdict:
    """Parse the canonical JSON of a verdict. `verify_verdict` checks that it follows from its evidence."""
    return parse_value(Verdict, data, what)


def verify_verdict(verdict: Verdict, gates: GatesFile, evidence: VerdictInputs) -> None:
    """Compute the verdict again, and compare its bytes."""
    computed = evaluate_gates(gates, evidence)
    if encode_value(computed) != encode_value(verdict):
        names = [name for name in Verdict.model_fields if getattr(computed, name) != getattr(verdict, name)]
        raise Tampered(f"verdict: expected what gates and items give ({computed.why}), got other {', '.join(names)}")


def check_conclusion(gates: GatesFile, verdict: Verdict) -> None:
    """Check a verdict for contradictions to itself and to its gates file, without the items.

    Outcomes must follow from the p-values, p-values must include the correction for earlier runs, and the conclusions
    and the sentence must follow from the outcomes.

    Raises: Tampered for a contradiction.
    """
    if verdict.gates != digest_bytes(encode_value(gates)):
        raise Tampered(f"verdict, gates: expected {digest_bytes(encode_value(gates))}, got {verdict.gates}")
    named = [(result.gate, result.metric) for result in verdict.results]
    if named != (wanted := [(gate.name, gate.metric) for gate in gates.gates]):
        raise Tampered(f"verdict, results: expected {wanted}, got {named}")
    evaluated_by_set = {record.set: record for record in verdict.evaluated if record.model == "run"}
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        evaluated = evaluated_by_set.get(gate.set)
        allowed = _find_allowed_outcomes(
            gates, gate, result, correction_factor(gates, 0 if evaluated is None else evaluated.evaluated_before)
        )
        if evaluated is None or _find_spent(
            gates, gate.set, evaluated.items, evaluated.named_before, evaluated.overlap
        ):
            allowed = ("failed",)
        if result.outcome not in allowed:
            raise Tampered(f"verdict, gate {gate.name}: expected {' or '.join(allowed)}, got {result.outcome}")
        for part in result.slices:
            worse = part.adjusted is not None and Fraction(part.adjusted) <= Fraction(gates.alpha)
            if part.worse != worse:
                where = f"verdict, gate {gate.name}, {part.by} {part.value!r}"
                raise Tampered(f"{where}, worse: expected {worse}, by its p-value, got {part.worse}")
    kinds = {kind: _is_kind_passed(gates, verdict.results, kind) for kind in GATE_KINDS}
    concluded = (kinds["target"], kinds["regression"], all(kinds.values()))
    if (verdict.target_passed, verdict.regression_passed, verdict.passed) != concluded:
        got = (verdict.target_passed, verdict.regression_passed, verdict.passed)
        raise Tampered(f"verdict, target_passed, regression_passed, passed: expected {concluded}, got {got}")
    if verdict.why != (why := _explain(gates, verdict.results, verdict.passed)):
        raise Tampered(f"verdict, why: expected {why!r}, got {verdict.why!r}")


def _find_allowed_outcomes(gates: GatesFile, gate: Gate, result: GateResult, run_factor: int) -> tuple[Outcome, ...]:
    """Return the outcomes that a result's numbers allow. `run_factor` is the correction for earlier runs."""
    if result.p is None or result.adjusted is None:
        found: tuple[Outcome, ...] = ("failed",)
        found += ("not-informative",) if gate.chance is not None else ()
        return found + (("not-applicable",) if gate.comparison == "released" else ())
    # The p-value is rounded up to nine places, so the exact one is less than one unit of the last place below it.
    least = min(Fraction(1), (Fraction(result.p) - Fraction(1, 10**9)) * run_factor)
    if Fraction(result.adjusted) < least:
        raise Tampered(
            f"verdict, gate {gate.name}, adjusted: expected {write_up(least)} at least, because p is multiplied by "
            f"{run_factor}, got {result.adjusted}"
        )
    return ("passed",) if Fraction(result.adjusted) <= Fraction(gates.alpha) else ("failed",)


@dataclass(frozen=True)
class _Trial:
    """The result of a gate before the correction over the gates. Without a test, `outcome` and `reason` explain it.

    `before` is the number of runs that were evaluated on the set before, and `run_factor` the correction for them.
    """

    gate: Gate
    before: int
    run_factor: int
    pairs: PairedValues | None = None
    test: Test | None = None
    outcome: Outcome = "failed"
    reason: str = ""


def evaluate_gates(gates: GatesFile, evidence: VerdictInputs) -> Verdict:
    """Compute the verdict.

    A gate that cannot be evaluated fails, with two exceptions: no version is released yet to compare with, or the other
    model performs at chance level.
    """
    trials = [_evaluate_gate(gates, gate, evidence) for gate in gates.gates]
    results = tuple(_decide(gates, trials))
    kinds = {kind: _is_kind_passed(gates, results, kind) for kind in GATE_KINDS}
    passed = all(kinds.values())
    return Verdict(
        evaluated=_list_records(gates, evidence),
        gates=digest_bytes(encode_value(gates)),
        passed=passed,
        regression_passed=kinds["regression"],
        results=results,
        target_passed=kinds["target"],
        version=1,
        why=_explain(gates, results, passed),
    )


def correction_factor(gates: GatesFile, evaluated_before: int) -> int:
    """Return the factor on a p-value that corrects for the runs evaluated on the set before."""
    number = evaluated_before + 1
    return {"divide": number, "once": 1, "spend": number * (number + 1)}[gates.run_correction]


def _find_spent(
    gates: GatesFile, name: str, rows: int, named_before: int | None, overlap: TrainingOverlap | None
) -> str | None:
    """Return the reason why a set can show nothing for this run; None where it can.

    The set is final and the adapter's name was evaluated on it before, or too many of its rows are training rows.
    """
    if named_before:
        return f"the set {name} is final, and {named_before} runs of this adapter's name were evaluated on it before"
    if overlap is None:
        return None
    for count, most, what in (
        (overlap.duplicates, gates.most_overlap, "trained on"),
        (overlap.near_duplicates, gates.most_near_overlap, "nearly the same as one that is trained on"),
    ):
        if isinstance(count, str):
            if count == MANY and Fraction(most) < 1:
                return f"many of {rows} rows of {name}, a blind set, are {what}, and at most a share of {most} may be"
        elif count > Fraction(most) * rows:
            return f"{count} of {rows} rows of {name} are {what}, and at most a share of {most} may be"
    return None


def _evaluate_gate(gates: GatesFile, gate: Gate, evidence: VerdictInputs) -> _Trial:
    before = evidence.evaluated_before.get(gate.set, 0)
    trial = _Trial(gate, before, correction_factor(gates, before))
    items = evidence.sets.get(gate.set)
    if items is None:
        return replace(trial, reason=f"expected items of the set {gate.set}, got none")
    named, overlap = evidence.named_before.get(gate.set), evidence.overlaps.get(gate.set)
    if spent := _find_spent(gates, gate.set, len(items), named, overlap):
        return replace(trial, reason=spent)
    if gates.run_correction == "once" and before:
        reason = f"the set {gate.set} can be used once, and {before} runs were evaluated on it before"
        return replace(trial, reason=reason)
    compared = (gate.comparison, gate.set)
    others = None if gate.comparison == "base" else evidence.others.get(compared)
    if gate.comparison == "released" and others is None and compared in evidence.others:
        return replace(trial, outcome="not-applicable", reason="no version is released to compare with")
    if gate.comparison != "base" and others is None:
        return replace(trial, reason=f"expected items of {gate.comparison} on the set {gate.set}, got none")
    try:
        pairs = pair_items(items, others, gate.metric)
    except BadInput as error:
        return replace(trial, reason=error.message)
    return _test_gate(gates, replace(trial, pairs=pairs), pairs)


def _test_gate(gates: GatesFile, trial: _Trial, pairs: PairedValues) -> _Trial:
    gate = trial.gate
    if len(pairs.items) < gate.least_items:
        return replace(trial, reason=f"expected {gate.least_items} items or more, got {len(pairs.items)}")
    if reason := find_unsuitable_reason(gate, pairs):
        return replace(trial, reason=reason)
    if gate.chance is not None and above_chance(pairs, Fraction(gate.chance)) > Fraction(gates.alpha):
        reason = f"not informative: {gate.comparison} is not shown to be above chance ({gate.chance})"
        return replace(trial, outcome="not-informative", reason=reason)
    return replace(trial, test=run_test(gate, pairs, gates.seed))


def _decide(gates: GatesFile, trials: list[_Trial]) -> list[GateResult]:
    """Apply the corrections for earlier runs and over the gates, and return the results.

    The correction over the gates counts every gate with a test, and every gate that failed without one.
    """
    counted = [index for index, trial in enumerate(trials) if trial.test is not None or trial.outcome == "failed"]
    values = [
        Fraction(1) if (test := trials[index].test) is None else min(Fraction(1), test.p * trials[index].run_factor)
        for index in counted
    ]
    if gates.correction == "holm":
        adjusted, factors = distributions.adjust(values), dict(distributions.rank(values))
    else:
        adjusted, factors = values, dict.fromkeys(range(len(values)), 1)
    corrections = {index: (adjusted[number], factors[number]) for number, index in enumerate(counted)}
    return [_result(gates, trial, *corrections.get(index, (Fraction(1), 1))) for index, trial in enumerate(trials)]


def _result(gates: GatesFile, trial: _Trial, adjusted: Fraction, factor: int) -> GateResult:
    gate, pairs, test = trial.gate, trial.pairs, trial.test
    outcome, reason = trial.outcome, trial.reason
    level = Fraction(gates.alpha) / (trial.run_factor * factor)
    if test is not None:
        outcome = "passed" if adjusted <= Fraction(gates.alpha) else "failed"
        reason = _reason(gates, trial, adjusted, factor)
    ours, theirs, gain = (None, None, None) if pairs is None else map(write_near, pairs.means)
    lower, upper = (None, None) if test is None else write_bounds(test.interval(level))
    return GateResult(
        adjusted=None if test is None else write_up(adjusted),
        confidence=None if test is None else write_down(1 - 2 * level),
        gain=gain,
        gate=gate.name,
        items=0 if pairs is None else len(pairs.items),
        lower=lower,
        metric=gate.metric,
        ours=ours,
        outcome=outcome,
        p=None if test is None else write_up(test.p),
        reason=reason,
        slices=() if pairs is None else evaluate_slices(gates, gate, pairs),
        theirs=theirs,
        units=0 if pairs is None else len(pairs.units.sums),
        upper=upper,
    )


_CLAIMS = {"better": "better", "no-worse": "no worse", "equivalent": "equivalent"}


def _reason(gates: GatesFile, trial: _Trial, adjusted: Fraction, factor: int) -> str:
    """Return the gate's result in words.

    For example `accuracy 0.8120, base 0.6400: better (p below 0.0001 after correction, alpha 0.05)`.
    """
    gate, pairs = trial.gate, trial.pairs
    assert pairs is not None
    ours, theirs, _ = pairs.means
    claim = _CLAIMS[gate.claim] + (f" by the margin {gate.margin}" if gate.margin_value else "")
    holds = adjusted <= Fraction(gates.alpha)
    sentence = (
        f"{gate.metric} {show(ours)}, {gate.comparison} {show(theirs)}: {'' if holds else 'not shown to be '}{claim}"
    )
    sentence += f" ({show_p(adjusted)} after correction, alpha {gates.alpha})"
    if not holds and trial.run_factor > 1:
        sentence += f"; corrected for {_count(trial.before, 'earlier evaluation')} on {gate.set}"
    if gate.draws and trial.run_factor * factor > (gate.draws + 1) * Fraction(gates.alpha):
        sentence += f"; {gate.draws} resamples can show nothing here: name more, or a set with fewer evaluations"
    return sentence


def _is_kind_passed(gates: GatesFile, results: tuple[GateResult, ...], kind: str) -> bool:
    """Return True if the gates of this kind are passed: none of them failed.

    For `target`, one of them must have passed; for `regression`, no subgroup of any gate may be worse.
    """
    own = [result.outcome for gate, result in zip(gates.gates, results, strict=True) if gate.kind == kind]
    if "failed" in own:
        return False
    if kind == "target":
        return "passed" in own
    return not any(part.worse for result in results for part in result.slices)


MOST_NAMED = 3
"""Most gates or subgroups that the summary of a verdict names."""


def _explain(gates: GatesFile, results: tuple[GateResult, ...], passed: bool) -> str:
    """Return the summary: how many gates passed, which failed, and what is known about the subgroups."""
    counts = Counter(result.outcome for result in results)
    if passed:
        others = [f"{counts[other]} {other.replace('-', ' ')}" for other in _UNTESTED if counts[other]]
        first = f"Passed {counts['passed']} of {_count(len(results), 'gate')}{''.join(f'; {one}' for one in others)}."
    elif failed := [result.gate for result in results if result.outcome == "failed"]:
        first = f"Not passed: {len(failed)} of {_count(len(results), 'gate')} failed: {_name(failed)}."
    elif not _is_kind_passed(gates, results, "target"):
        first = "Not passed: no gate of the target metric could be evaluated."
    else:
        first = "Not passed: a subgroup is worse."
    return " ".join([first, *_explain_subgroups([part for result in results for part in result.slices])])


_UNTESTED: tuple[Outcome, ...] = ("not-applicable", "not-informative")


def _explain_subgroups(parts: list[SliceResult]) -> Iterator[str]:
    """Yield the sentences about the subgroups of all gates: those that are worse, and those with too few rows."""
    noun = "label" if all(part.by == "label" for part in parts) else "subgroup"
    tested, worse = [part for part in parts if part.p is not None], [part.value for part in parts if part.worse]
    if worse:
        names = _name([repr(value) for value in worse])
        yield f"Significant regression in {len(worse)} of {_count(len(tested), noun)}: {names}."
    elif tested:
        yield f"No significant regression in {_count(len(tested), noun)}."
    if few := len(parts) - len(tested):
        yield f"{few} of {_count(len(parts), noun)} could not be evaluated: too few rows."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _name(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _list_records(gates: GatesFile, evidence: VerdictInputs) -> tuple[EvaluatedSet, ...]:
    """Return the records of items that the gates compare, sorted by model and set."""
    found: dict[tuple[str, str], EvaluatedSet] = {}
    for gate in gates.gates:
        records = {("run", gate.set): evidence.sets.get(gate.set)}
        if gate.comparison != "base":
            records[(gate.comparison, gate.set)] = evidence.others.get((gate.comparison, gate.set))
        for (model, name), items in records.items():
            if items is not None and (model, name) not in found:
                overlap = evidence.overlaps.get(name)
                found[(model, name)] = EvaluatedSet(
                    digest=digest_bytes(encode_items(items)),
                    duplicates=None if overlap is None else overlap.duplicates,
                    items=len(items),
                    evaluated_before=evidence.evaluated_before.get(name, 0),
                    model=model,  # type: ignore[arg-type] # a comparison, or `run`
                    named_before=evidence.named_before.get(name),
                    near_duplicates=None if overlap is None else overlap.near_duplicates,
                    set=name,
                )
    return tuple(found[key] for key in sorted(found))


class CalibrationFile(Canonical):
    """The contents of calibration.json. `seed` is that of the gates file, or 0 without one."""

    adapter: ModelCalibration
    base: ModelCalibration
    seed: int = Field(ge=0)
    version: Literal[1]


class Conclusion(NamedTuple):
    """The files that are sealed beside the items, as canonical JSON.

    `verdict` is None without a gates file, and `calibration` is None where answers have no confidence.
    """

    verdict: bytes | None
    calibration: bytes | None


def conclude(gates: GatesFile | None, items: tuple[EvaluationItem, ...], evidence: VerdictInputs) -> Conclusion:
    """Compute the verdict and the calibration of a run.

    `items` are the run's own items on its held-out rows, which `evidence` has, too.
    """
    verdict = None if gates is None else write_canonical(evaluate_gates(gates, evidence))
    if not {"right", "confidence"} <= set(kinds_of(items[0].adapter)):
        return Conclusion(verdict, None)
    seed = 0 if gates is None else gates.seed
    adapter, base = (measure_calibration(items, model, seed) for model in ("adapter", "base"))
    return Conclusion(verdict, write_canonical(CalibrationFile(adapter=adapter, base=base, seed=seed, version=1)))


def read_verdict_inputs(verdict: Verdict, gates: GatesFile, read: Callable[[EvaluatedSet], bytes]) -> VerdictInputs:
    """Read the evidence that a stored verdict names. `read` returns the bytes of a record of items.

    The ledger rules check which records must be compared and their counts (`check_evaluation`).

    Raises: Tampered where a record has another digest.
    """
    sets: dict[str, tuple[EvaluationItem, ...]] = {}
    others: dict[tuple[str, str], tuple[EvaluationItem, ...] | None] = {}
    for record in verdict.evaluated:
        data = read(record)
        if digest_bytes(data) != record.digest:
            raise Tampered(
                f"items of {record.model} on {record.set}: expected {record.digest}, got {digest_bytes(data)}"
            )
        items = parse_items(data, f"items of {record.model} on {record.set}")
        if record.model == "run":
            sets[record.set] = items
        else:
            others[(record.model, record.set)] = items
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        if result.outcome == "not-applicable":
            others.setdefault((gate.comparison, gate.set), None)
    return VerdictInputs(
        sets,
        others,
        {record.set: record.evaluated_before for record in verdict.evaluated},
        {record.set: record.named_before for record in verdict.evaluated if record.named_before is not None},
        {record.set: record.overlap for record in verdict.evaluated if record.overlap is not None},
    )
