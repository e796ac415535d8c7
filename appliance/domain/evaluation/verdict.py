"""The verdict over a gate set: is the task better, and is nothing else worse?

A function of gate set, items and how often the sets were judged before: the same three give the same bytes.
docs/formats/evaluation.md is the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

from pydantic import Field

from appliance.domain.core.names import Canonical, Digest, Identifier, encode_value, parse_value
from appliance.domain.evaluation.comparison import Pairs, Test, above_chance, find_unfit, pair_items, run_test
from appliance.domain.evaluation.gates import Gate, GateSet
from appliance.domain.evaluation.items import Item, ScoreName, encode_items
from appliance.domain.evaluation.measures import PValue, Signed, show, show_p, write_bounds
from appliance.domain.evaluation.slices import SliceResult, judge_slices
from appliance.domain.evaluation.statistics import holm
from appliance.domain.evaluation.statistics.numbers import write_down, write_near, write_up
from appliance.errors import BadInput, Tampered
from appliance.formats.core.digest import digest_bytes

Outcome = Literal["failed", "not-applicable", "nothing-to-lose", "passed"]


class Overlap(NamedTuple):
    """How many rows of a set are also trained on: the same ones, and others nearly the same."""

    duplicates: int
    near_duplicates: int


@dataclass(frozen=True)
class Evidence:
    """What a run is judged on.

    `sets`: the run's items by the name of their set. `others`: by comparison and set, the items of the run that made
    the released version, or of full fine-tuning; None where no version is released. `judged_before`: by set, the runs
    that were judged on it before this one; a set that is not named has none. `named_before`: of each final set, those
    of them whose adapter has the same name. `overlaps`: by set, what of it is trained on, where that was counted.
    """

    sets: Mapping[str, tuple[Item, ...]]
    others: Mapping[tuple[str, str], tuple[Item, ...] | None]
    judged_before: Mapping[str, int]
    named_before: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)


class Judged(Canonical):
    """A record that the verdict rests on. `model`: `run` for the items of the run itself.

    `duplicates`, `near_duplicates`: rows of the set that are trained on, null where they were not counted.
    `named_before`: null of a set that is not final.
    """

    digest: Digest
    duplicates: int | None = Field(ge=0)
    items: int = Field(ge=1)
    judged_before: int = Field(ge=0)
    model: Literal["full-fine-tuning", "released", "run"]
    named_before: int | None = Field(ge=0)
    near_duplicates: int | None = Field(ge=0)
    set: Identifier

    @property
    def overlap(self) -> Overlap | None:
        if self.duplicates is None or self.near_duplicates is None:
            return None
        return Overlap(self.duplicates, self.near_duplicates)


class GateResult(Canonical):
    """One gate. Numbers are null where nothing was tested.

    `adjusted`: the p-value after luck and correction, which alpha is compared with. `lower` and `upper`: of the gain,
    at the level that the gate was judged at; `confidence` is the interval's.
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
    """`task`: the task is better. `rest`: nothing else is worse. `passed`: both. `why`: one sentence for people."""

    gates: Digest
    judged: tuple[Judged, ...]
    passed: bool
    rest: bool
    results: tuple[GateResult, ...]
    task: bool
    version: Literal[1]
    why: str

    @property
    def failed_gates(self) -> tuple[str, ...]:
        """Where it was not passed, the gates that stand in the way: those that failed, and those with a part that is
        worse. Where there are none of either, no gate of the task could be judged: all of them."""
        if self.passed:
            return ()
        against = [one.gate for one in self.results if one.outcome == "failed" or any(p.worse for p in one.slices)]
        return tuple(against or [one.gate for one in self.results])


def parse_verdict(data: bytes, what: str = "verdict") -> Verdict:
    """The verdict of canonical bytes; that it follows from its evidence is for `verify_verdict` to say."""
    return parse_value(Verdict, data, what)


def verify_verdict(verdict: Verdict, gates: GateSet, evidence: Evidence) -> None:
    """Tampered unless the same verdict is computed again, to the last byte."""
    again = judge(gates, evidence)
    if encode_value(again) != encode_value(verdict):
        names = [name for name in Verdict.model_fields if getattr(again, name) != getattr(verdict, name)]
        raise Tampered(f"verdict: expected what gates and items give ({again.why}), got other {', '.join(names)}")


def check_conclusion(gates: GateSet, verdict: Verdict) -> None:
    """Tampered where the verdict contradicts itself or its gate set: what can be said without the items.

    Outcomes follow from the p-values, no p-value counts fewer times than luck asks, legs and sentence follow from the
    outcomes.
    """
    if verdict.gates != digest_bytes(encode_value(gates)):
        raise Tampered(f"verdict, gates: expected {digest_bytes(encode_value(gates))}, got {verdict.gates}")
    named = [(result.gate, result.metric) for result in verdict.results]
    if named != (wanted := [(gate.name, gate.metric) for gate in gates.gates]):
        raise Tampered(f"verdict, results: expected {wanted}, got {named}")
    own = {one.set: one for one in verdict.judged if one.model == "run"}
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        judged = own.get(gate.set)
        allowed = _allowed(gates, gate, result, luck_of(gates, 0 if judged is None else judged.judged_before))
        if judged is None or _find_spent(gates, gate.set, judged.items, judged.named_before, judged.overlap):
            allowed = ("failed",)
        if result.outcome not in allowed:
            raise Tampered(f"verdict, gate {gate.name}: expected {' or '.join(allowed)}, got {result.outcome}")
        for part in result.slices:
            worse = part.adjusted is not None and Fraction(part.adjusted) <= Fraction(gates.alpha)
            if part.worse != worse:
                where = f"verdict, gate {gate.name}, {part.by} {part.value!r}"
                raise Tampered(f"{where}, worse: expected {worse}, by its p-value, got {part.worse}")
    legs = {leg: _holds(gates, verdict.results, leg) for leg in ("task", "rest")}
    concluded = (legs["task"], legs["rest"], all(legs.values()))
    if (verdict.task, verdict.rest, verdict.passed) != concluded:
        got = (verdict.task, verdict.rest, verdict.passed)
        raise Tampered(f"verdict, task, rest, passed: expected {concluded}, got {got}")
    if verdict.why != (why := _explain(gates, verdict.results, verdict.passed)):
        raise Tampered(f"verdict, why: expected {why!r}, got {verdict.why!r}")


def _allowed(gates: GateSet, gate: Gate, result: GateResult, times: int) -> tuple[Outcome, ...]:
    """The outcomes that a result's numbers allow."""
    if result.p is None or result.adjusted is None:
        found: tuple[Outcome, ...] = ("failed",)
        found += ("nothing-to-lose",) if gate.chance is not None else ()
        return found + (("not-applicable",) if gate.comparison == "released" else ())
    # Written upwards, to nine places: the p-value itself is less than one unit of the last place below.
    least = min(Fraction(1), (Fraction(result.p) - Fraction(1, 10**9)) * times)
    if Fraction(result.adjusted) < least:
        raise Tampered(
            f"verdict, gate {gate.name}, adjusted: expected {write_up(least)} at least, since p counts {times} times, "
            f"got {result.adjusted}"
        )
    return ("passed",) if Fraction(result.adjusted) <= Fraction(gates.alpha) else ("failed",)


@dataclass(frozen=True)
class _Trial:
    """A gate before the correction. Without a test: `outcome` and `reason` say why."""

    gate: Gate
    times: int
    pairs: Pairs | None = None
    test: Test | None = None
    outcome: Outcome = "failed"
    reason: str = ""


def judge(gates: GateSet, evidence: Evidence) -> Verdict:
    """The verdict. A gate that cannot be judged has failed; only two things are no failure: that no version is
    released yet, and that the other model is no better than guessing."""
    trials = [_try(gates, gate, evidence) for gate in gates.gates]
    results = tuple(_decide(gates, trials))
    legs = {leg: _holds(gates, results, leg) for leg in ("task", "rest")}
    passed = all(legs.values())
    return Verdict(
        gates=digest_bytes(encode_value(gates)),
        judged=_judged(gates, evidence),
        passed=passed,
        rest=legs["rest"],
        results=results,
        task=legs["task"],
        version=1,
        why=_explain(gates, results, passed),
    )


def luck_of(gates: GateSet, judged_before: int) -> int:
    """How many times a p-value counts on a set on which so many runs were judged before."""
    number = judged_before + 1
    return {"divide": number, "once": 1, "spend": number * (number + 1)}[gates.luck]


def _find_spent(gates: GateSet, name: str, rows: int, named_before: int | None, overlap: Overlap | None) -> str | None:
    """Why a set can show nothing of this run: it is final and judged the adapter before, or too much of it is trained
    on."""
    if named_before:
        return f"the set {name} is final, and judged {named_before} runs of this adapter's name before"
    if overlap is None:
        return None
    for count, most, what in (
        (overlap.duplicates, gates.most_overlap, "trained on"),
        (overlap.near_duplicates, gates.most_near_overlap, "nearly the same as one that is trained on"),
    ):
        if count > Fraction(most) * rows:
            return f"{count} of {rows} rows of {name} are {what}, and at most a share of {most} may be"
    return None


def _try(gates: GateSet, gate: Gate, evidence: Evidence) -> _Trial:
    before = evidence.judged_before.get(gate.set, 0)
    times = luck_of(gates, before)
    items = evidence.sets.get(gate.set)
    if items is None:
        return _Trial(gate, times, reason=f"expected items of the set {gate.set}, got none")
    named, overlap = evidence.named_before.get(gate.set), evidence.overlaps.get(gate.set)
    if spent := _find_spent(gates, gate.set, len(items), named, overlap):
        return _Trial(gate, times, reason=spent)
    if gates.luck == "once" and before:
        return _Trial(gate, times, reason=f"the set {gate.set} judges once, and {before} runs were judged on it before")
    others = None
    if gate.comparison != "base":
        others = evidence.others.get((gate.comparison, gate.set))
        if others is None:
            return _without(gate, times, evidence)
    try:
        pairs = pair_items(items, others, gate.metric)
    except BadInput as error:
        return _Trial(gate, times, reason=error.message)
    return _measure(gates, _Trial(gate, times, pairs))


def _without(gate: Gate, times: int, evidence: Evidence) -> _Trial:
    if gate.comparison == "released" and (gate.comparison, gate.set) in evidence.others:
        return _Trial(gate, times, outcome="not-applicable", reason="no version is released to compare with")
    return _Trial(gate, times, reason=f"expected items of {gate.comparison} on the set {gate.set}, got none")


def _measure(gates: GateSet, trial: _Trial) -> _Trial:
    gate, times, pairs = trial.gate, trial.times, trial.pairs
    assert pairs is not None
    if len(pairs.items) < gate.least_items:
        reason = f"expected {gate.least_items} items or more, got {len(pairs.items)}"
        return _Trial(gate, times, pairs, reason=reason)
    if unfit := find_unfit(gate, pairs):
        return _Trial(gate, times, pairs, reason=unfit)
    if gate.chance is not None and above_chance(pairs, Fraction(gate.chance)) > Fraction(gates.alpha):
        reason = f"nothing to lose here: {gate.comparison} is not shown to be above chance ({gate.chance})"
        return _Trial(gate, times, pairs, outcome="nothing-to-lose", reason=reason)
    return _Trial(gate, times, pairs, run_test(gate, pairs, gates.seed))


def _decide(gates: GateSet, trials: list[_Trial]) -> list[GateResult]:
    """After luck, and after the correction over all gates that could have failed a test."""
    counted = [place for place, trial in enumerate(trials) if trial.test is not None or trial.outcome == "failed"]
    values = [
        Fraction(1) if (test := trials[place].test) is None else min(Fraction(1), test.p * trials[place].times)
        for place in counted
    ]
    if gates.correction == "holm":
        adjusted, factors = holm.adjust(values), dict(holm.rank(values))
    else:
        adjusted, factors = values, dict.fromkeys(range(len(values)), 1)
    found = {place: (adjusted[number], factors[number]) for number, place in enumerate(counted)}
    return [_result(gates, trial, *found.get(place, (Fraction(1), 1))) for place, trial in enumerate(trials)]


def _result(gates: GateSet, trial: _Trial, adjusted: Fraction, factor: int) -> GateResult:
    gate, pairs, test = trial.gate, trial.pairs, trial.test
    outcome, reason = trial.outcome, trial.reason
    level = Fraction(gates.alpha) / (trial.times * factor)
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
        slices=() if pairs is None else judge_slices(gates, gate, pairs),
        theirs=theirs,
        units=0 if pairs is None else len(pairs.units.sums),
        upper=upper,
    )


_CLAIMS = {"better": "better", "no-worse": "no worse", "equivalent": "equivalent"}


def _reason(gates: GateSet, trial: _Trial, adjusted: Fraction, factor: int) -> str:
    """`accuracy 0.8120, base 0.6400: better (p 0.0001)`."""
    gate, pairs = trial.gate, trial.pairs
    assert pairs is not None
    ours, theirs, _ = pairs.means
    claim = _CLAIMS[gate.claim] + (f" by the margin {gate.margin}" if gate.margin_value else "")
    holds = adjusted <= Fraction(gates.alpha)
    told = f"{gate.metric} {show(ours)}, {gate.comparison} {show(theirs)}: {'' if holds else 'not shown to be '}{claim}"
    told += f" ({show_p(adjusted)} after correction, alpha {gates.alpha})"
    if not holds and trial.times > 1:
        told += f"; for the runs judged on {gate.set} before, p counts {trial.times} times"
    if gate.draws and trial.times * factor > (gate.draws + 1) * Fraction(gates.alpha):
        told += f"; {gate.draws} resamples can show nothing here: name more, or a set that was not judged on so often"
    return told


def _holds(gates: GateSet, results: tuple[GateResult, ...], leg: str) -> bool:
    """Every gate of the leg; of the task, one at least is passed; of the rest, no part of any gate is worse."""
    own = [result.outcome for gate, result in zip(gates.gates, results, strict=True) if gate.leg == leg]
    if "failed" in own:
        return False
    if leg == "task":
        return "passed" in own
    return not any(part.worse for result in results for part in result.slices)


def _explain(gates: GateSet, results: tuple[GateResult, ...], passed: bool) -> str:
    """One sentence: the first thing in the way, or what was shown."""
    if passed:
        first = next(
            result.reason
            for gate, result in zip(gates.gates, results, strict=True)
            if gate.leg == "task" and result.outcome == "passed"
        )
        parts = sum(part.p is not None for result in results for part in result.slices)
        return f"Passed: {first}; no gate of {len(results)} failed and none of {parts} parts is shown to be worse."
    against = [f"gate {result.gate}: {result.reason}" for result in results if result.outcome == "failed"]
    against += [
        f"gate {result.gate}: worse where {part.by} is {part.value!r} ({part.items} items, "
        f"{show(part.ours)} against {show(part.theirs)})"
        for result in results
        for part in result.slices
        if part.worse
    ]
    if not against:
        against = ["no gate of leg task could be judged"]
    more = f" ({len(against) - 1} more against it)" if len(against) > 1 else ""
    return f"Not passed: {against[0]}{more}."


def _judged(gates: GateSet, evidence: Evidence) -> tuple[Judged, ...]:
    """The records that the gates name, by model and set."""
    found: dict[tuple[str, str], Judged] = {}
    for gate in gates.gates:
        records = {("run", gate.set): evidence.sets.get(gate.set)}
        if gate.comparison != "base":
            records[(gate.comparison, gate.set)] = evidence.others.get((gate.comparison, gate.set))
        for (model, name), items in records.items():
            if items is not None and (model, name) not in found:
                overlap = evidence.overlaps.get(name)
                found[(model, name)] = Judged(
                    digest=digest_bytes(encode_items(items)),
                    duplicates=None if overlap is None else overlap.duplicates,
                    items=len(items),
                    judged_before=evidence.judged_before.get(name, 0),
                    model=model,  # type: ignore[arg-type] # a comparison, or `run`
                    named_before=evidence.named_before.get(name),
                    near_duplicates=None if overlap is None else overlap.near_duplicates,
                    set=name,
                )
    return tuple(found[key] for key in sorted(found))
