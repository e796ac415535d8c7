"""The verdict: a significant gain, no regression elsewhere, and the same bytes wherever it is computed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.evaluation.comparison import SliceResult
from appliance.domain.evaluation.confusion import measure_calibration
from appliance.domain.evaluation.detectable import list_detectable
from appliance.domain.evaluation.gates import GatesFile, parse_gate_file, parse_gates
from appliance.domain.evaluation.items import SCALE, EvaluationItem, encode_items, parse_items
from appliance.domain.evaluation.statistics.proportions import greater
from appliance.domain.evaluation.verdict import (
    EvaluatedSet,
    GateResult,
    Verdict,
    VerdictInputs,
    correction_factor,
    evaluate_gates,
    parse_verdict,
    verify_verdict,
)
from appliance.errors import BadInput, Tampered
from scripts.kit.item_groups import Group, digest, make_items

ROOT = Path(__file__).resolve().parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "evaluation.json").read_text(encoding="utf-8"))

BETTER = {
    "name": "better",
    "kind": "target",
    "set": "held-out",
    "metric": "accuracy",
    "comparison": "base",
    "claim": "better",
    "test": "mcnemar",
    "least_items": 100,
    "slices": ["label"],
}
NO_WORSE = BETTER | {
    "name": "no-worse",
    "kind": "regression",
    "comparison": "released",
    "claim": "no-worse",
    "test": "tango",
    "margin": "0.05",
    "slices": [],
}


def gates_file(*gates: dict[str, Any], **members: Any) -> GatesFile:
    value = {"version": 1, "name": "site", "seed": 1, "gates": list(gates or (BETTER,)), **members}
    return parse_gate_file(json.dumps(value).encode())


def on(
    items: tuple[EvaluationItem, ...], *, before: int = 0, **others: tuple[EvaluationItem, ...] | None
) -> VerdictInputs:
    known = {(name.replace("_", "-"), "held-out"): found for name, found in others.items()}
    return VerdictInputs({"held-out": items}, known, {"held-out": before})


GOOD = make_items(
    [Group(204, True, True), Group(30, True, False), Group(6, False, True), Group(60, False, False, "other")]
)
"""300 items: 30 that only the adapter has right, and 6 that only the base has."""


def test_an_adapter_that_is_better_passes_with_its_interval() -> None:
    verdict = evaluate_gates(gates_file(run_correction="divide"), on(GOOD))
    (result,) = verdict.results
    assert (verdict.target_passed, verdict.regression_passed, verdict.passed) == (True, True, True)
    assert (result.ours, result.theirs, result.gain) == ("0.780000000", "0.700000000", "0.080000000")
    assert result.p == result.adjusted == "0.000034801"
    assert result.lower is not None and 0 < float(result.lower) < 0.08 < float(result.upper or 0)
    assert result.reason.startswith("accuracy 0.7800, base 0.7000: better (p below 0.0001 after correction")
    assert verdict.why.startswith("Passed 1 of 1 gate.")


def test_one_that_is_better_by_luck_alone_does_not() -> None:
    lucky = make_items([Group(180, True, True), Group(14, True, False), Group(8, False, True)])
    verdict = evaluate_gates(gates_file(run_correction="divide"), on(lucky))
    assert (verdict.target_passed, verdict.regression_passed, verdict.passed) == (False, True, False)
    assert verdict.results[0].reason.startswith("accuracy 0.9604, base 0.9307: not shown to be better")
    assert verdict.why.startswith("Not passed: 1 of 1 gate failed: better.")


def test_one_that_is_better_and_worse_in_a_part_does_not() -> None:
    harmed = make_items(
        [
            Group(200, True, True),
            Group(60, True, False),
            Group(12, False, True, "refund"),
            Group(20, True, True, "refund"),
        ]
    )
    verdict = evaluate_gates(gates_file(), on(harmed))
    assert (verdict.target_passed, verdict.regression_passed, verdict.passed) == (True, False, False)
    worse = {part.value: part.worse for part in verdict.results[0].slices}
    assert worse == {"billing": False, "refund": True}
    assert verdict.why == "Not passed: a subgroup is worse. Significant regression in 1 of 2 labels: 'refund'."


def test_a_part_with_few_items_is_shown_and_not_evaluated() -> None:
    items = make_items([Group(200, True, True), Group(60, True, False), Group(9, False, True, "refund")])
    verdict = evaluate_gates(gates_file(), on(items))
    refund = verdict.results[0].slices[1]
    assert (refund.value, refund.items, refund.gain, refund.p, refund.worse) == (
        "refund",
        9,
        "-1.000000000",
        None,
        False,
    )


def test_parts_are_corrected_over_all_of_a_gate() -> None:
    """A part with six lost items (p 0.0156) is marked alone, and not as one of five."""
    harmed = [Group(30, True, True, "a"), Group(6, False, True, "a"), Group(60, True, False, "b")]
    others = [Group(30, True, True, name) for name in "cdef"]
    alone = evaluate_gates(gates_file(), on(make_items(harmed))).results[0].slices
    assert [(part.value, part.worse) for part in alone] == [("a", True), ("b", False)]
    among = evaluate_gates(gates_file(), on(make_items([*harmed, *others]))).results[0].slices
    assert not any(part.worse for part in among) and among[0].adjusted == "0.093750000"


@pytest.mark.parametrize(("run_correction", "passes"), [("divide", 25), ("spend", 4)])
def test_every_run_on_a_set_makes_the_next_ones_proof_harder(run_correction: str, passes: int) -> None:
    """p is 0.00195: as the twenty-fifth run it still passes where alpha is divided, where it is spent as the fourth."""
    items = make_items([Group(200, True, True), Group(9, True, False), Group(0, False, True)])
    gates = gates_file(run_correction=run_correction)
    assert evaluate_gates(gates, on(items, before=passes - 1)).passed
    late = evaluate_gates(gates, on(items, before=passes))
    assert not late.passed and f"corrected for {passes} earlier evaluations on held-out" in late.results[0].reason


def test_a_final_set_evaluates_once() -> None:
    gates = gates_file(run_correction="once")
    assert evaluate_gates(gates, on(GOOD)).passed
    again = evaluate_gates(gates, on(GOOD, before=1))
    assert not again.passed and "can be used once, and 1 runs were evaluated on it before" in again.results[0].reason


def test_luck_is_never_better_than_the_first_time() -> None:
    """Of 400 sets of runs without any effect, twenty runs each: alpha is spent, so one in twenty has a pass at most."""
    coins, gates, passed = random.Random(4), gates_file(run_correction="spend"), 0
    for _ in range(400):
        for run in range(20):
            better = sum(coins.random() < 0.5 for _ in range(60))
            if greater(better, 60 - better) * correction_factor(gates, run) <= 0.05:
                passed += 1
                break
    assert passed <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_holm_counts_every_gate_that_could_fail() -> None:
    gates = gates_file(BETTER, NO_WORSE, run_correction="divide")
    released = make_items([Group(300, True, True)])
    verdict = evaluate_gates(
        gates,
        on(make_items([Group(285, True, True), Group(10, True, False), Group(5, False, True)]), released=released),
    )
    better, no_worse = verdict.results
    assert better.p is not None and no_worse.p is not None
    ordered = sorted([(float(better.p), better), (float(no_worse.p), no_worse)], key=lambda pair: pair[0])
    assert float(ordered[0][1].adjusted or 0) == pytest.approx(2 * ordered[0][0], abs=2e-9)
    alone = evaluate_gates(
        gates_file(BETTER, NO_WORSE, run_correction="divide", correction="none"), on(GOOD, released=GOOD)
    )
    assert [result.adjusted for result in alone.results] == [result.p for result in alone.results]


def test_the_released_version_may_be_missing_and_full_fine_tuning_not() -> None:
    full = NO_WORSE | {"name": "near-full", "comparison": "full-fine-tuning"}
    first = evaluate_gates(gates_file(BETTER, NO_WORSE, run_correction="divide"), on(GOOD, released=None))
    assert first.passed and first.results[1].outcome == "not-applicable"
    for evidence in (on(GOOD), on(GOOD, full_fine_tuning=None)):
        missing = evaluate_gates(gates_file(BETTER, full), evidence)
        assert (
            not missing.passed
            and "expected items of full-fine-tuning on the set held-out, got none" in missing.results[1].reason
        )
    forgotten = evaluate_gates(gates_file(BETTER, NO_WORSE), on(GOOD))
    assert not forgotten.passed, "that nothing is released must be said"


def test_an_adapter_worse_than_the_released_one_by_more_than_the_margin_fails_the_rest() -> None:
    released = tuple(
        item.model_copy(update={"adapter": item.adapter.model_copy(update={"right": True})}) for item in GOOD
    )
    verdict = evaluate_gates(gates_file(BETTER, NO_WORSE), on(GOOD, released=released))
    assert (verdict.target_passed, verdict.regression_passed) == (True, False)
    assert (
        verdict.results[1].gain == "-0.220000000"
        and "not shown to be no worse by the margin 0.05" in verdict.results[1].reason
    )


def test_where_the_other_model_only_guesses_there_is_nothing_to_lose() -> None:
    guessing = NO_WORSE | {"comparison": "base", "set": "general", "chance": "0.25"}
    gates = gates_file(BETTER, guessing, run_correction="divide")
    general = make_items([Group(27, True, True), Group(25, False, True), Group(148, False, False)])
    verdict = evaluate_gates(gates, VerdictInputs({"held-out": GOOD, "general": general}, {}, {}))
    assert verdict.results[1].outcome == "not-informative" and verdict.passed
    assert "base is not shown to be above chance (0.25)" in verdict.results[1].reason
    knowing = make_items([Group(150, False, True), Group(50, False, False)])
    assert (
        evaluate_gates(gates, VerdictInputs({"held-out": GOOD, "general": knowing}, {}, {})).results[1].outcome
        == "failed"
    )


def test_a_gate_that_cannot_be_evaluated_has_failed() -> None:
    few = make_items([Group(99, True, False)])
    assert "expected 100 items or more, got 99" in str(evaluate_gates(gates_file(), on(few)).results)
    assert "expected items of the set held-out, got none" in str(
        evaluate_gates(gates_file(), VerdictInputs({}, {}, {})).results
    )
    other = gates_file(BETTER | {"test": "permutation", "metric": "rouge_l"})
    assert "expected rouge_l in every answer, got right, confidence, token_f1" in str(
        evaluate_gates(other, on(GOOD)).results
    )
    released = make_items([Group(299, True, True)])
    mixed = evaluate_gates(gates_file(BETTER, NO_WORSE), on(GOOD, released=released))
    assert "the same 300 rows in both records, got 1 that only the first has and 0 that" in mixed.results[1].reason


def test_rows_that_belong_together_are_not_counted_one_by_one() -> None:
    together = make_items([Group(200, True, True), Group(60, True, False), Group(20, False, True)], cluster=20)
    refused = evaluate_gates(gates_file(), on(together))
    assert not refused.passed and "of 280 some belong together" in str(refused.results)
    gates = gates_file(BETTER | {"test": "permutation"}, run_correction="divide")
    apart = make_items([Group(200, True, True), Group(60, True, False), Group(20, False, True)])
    clustered, alone = evaluate_gates(gates, on(together)).results[0], evaluate_gates(gates, on(apart)).results[0]
    assert (clustered.units, alone.units) == (14, 280)
    assert float(clustered.p or 0) > 0.05 > float(alone.p or 1)
    assert float(clustered.lower or 1) < float(alone.lower or 0), "the interval by clusters is the wider one"


@pytest.mark.parametrize(
    ("test", "claim", "fits"),
    [
        ("bootstrap", "better", False),
        ("bootstrap", "no-worse", False),
        ("tost", "no-worse", False),
        ("tost", "equivalent", False),
        ("permutation", "better", True),
        ("permutation", "no-worse", True),
    ],
)
def test_few_clusters_are_evaluated_by_permutation_alone(test: str, claim: str, fits: bool) -> None:
    """All items of a cluster gain the same, so that nothing varies between resamples, or between clusters."""
    margin = "0.0" if claim == "better" else "0.05"
    groups = [Group(200, True, claim == "equivalent")]
    gates = gates_file(BETTER | {"test": test, "claim": claim, "margin": margin}, run_correction="divide")
    for clusters, passed in ((1, False), (2, False), (19, fits), (20, True)):
        items = tuple(
            item.model_copy(update={"cluster": digest(str(place % clusters))})
            for place, item in enumerate(make_items(groups))
        )
        result = evaluate_gates(gates, on(items)).results[0]
        assert (result.units, result.outcome) == (clusters, "passed" if passed else "failed")
        said = f"{test} needs 20 units or more, and 200 items that belong together are {clusters}: a gates file"
        assert fits or passed or said in result.reason


@pytest.mark.parametrize(("clusters", "outcome"), [(1, "failed"), (19, "failed"), (20, "passed")])
def test_few_clusters_do_not_show_that_there_is_nothing_to_lose(clusters: int, outcome: str) -> None:
    items = tuple(
        item.model_copy(update={"cluster": digest(str(place % clusters))})
        for place, item in enumerate(make_items([Group(200, True, True)]))
    )
    gate = BETTER | {"test": "permutation", "claim": "no-worse", "margin": "0.05", "chance": "0.5"}
    assert evaluate_gates(gates_file(gate, run_correction="divide"), on(items)).results[0].outcome == outcome


@pytest.mark.parametrize("test", ["tango", "permutation", "bootstrap"])
def test_each_test_that_can_show_better_shows_a_gain_and_no_loss(test: str) -> None:
    gates = gates_file(BETTER | {"test": test}, run_correction="divide")
    assert evaluate_gates(gates, on(GOOD)).passed
    swapped = tuple(item.model_copy(update={"adapter": item.base, "base": item.adapter}) for item in GOOD)
    verdict = evaluate_gates(gates, on(swapped))
    assert not verdict.target_passed and float(verdict.results[0].p or 0) > 0.99


@pytest.mark.parametrize("test", ["tango", "permutation", "bootstrap", "tost"])
def test_each_test_of_no_worse_holds_the_margin_from_both_sides(test: str) -> None:
    """Two of 300 lost: no more than five points worse, and not within a tenth of one."""
    items = make_items([Group(290, True, True), Group(2, True, False), Group(4, False, True), Group(4, False, False)])
    for margin, passed in (("0.05", True), ("0.001", False)):
        gate = BETTER | {"name": "kept", "test": test, "claim": "no-worse", "margin": margin}
        assert evaluate_gates(gates_file(gate, run_correction="divide"), on(items)).target_passed is passed


def test_equivalence_is_refused_to_what_is_far_better() -> None:
    gate = BETTER | {"test": "tost", "claim": "equivalent", "margin": "0.1", "metric": "token_f1"}
    assert evaluate_gates(
        gates_file(gate, run_correction="divide"), on(make_items([Group(297, True, True), Group(3, True, False)]))
    ).target_passed
    assert not evaluate_gates(
        gates_file(gate, run_correction="divide"), on(make_items([Group(200, True, True), Group(99, True, False)]))
    ).target_passed


@pytest.mark.thorough
def test_of_a_falling_measure_less_is_better() -> None:
    def with_loss(ours: int, theirs: int) -> tuple[EvaluationItem, ...]:
        return tuple(
            item.model_copy(
                update={
                    "adapter": item.adapter.model_copy(update={"scores": {"loss": ours + place % 7}}),
                    "base": item.base.model_copy(update={"scores": {"loss": theirs + place % 5}}),
                }
            )
            for place, item in enumerate(GOOD)
        )

    gates = gates_file(
        BETTER | {"test": "permutation", "metric": "loss", "slices": ["length"]}, run_correction="divide"
    )
    better, worse = (
        evaluate_gates(gates, on(with_loss(SCALE, 2 * SCALE))),
        evaluate_gates(gates, on(with_loss(2 * SCALE, SCALE))),
    )
    assert better.target_passed and better.results[0].gain is not None and float(better.results[0].gain) > 0.9
    assert not worse.target_passed and worse.results[0].slices[0].worse
    brier = gates_file(BETTER | {"test": "permutation", "metric": "brier"}, run_correction="divide")
    assert evaluate_gates(brier, on(GOOD)).target_passed


def test_too_few_resamples_after_many_runs_are_said_to_be_too_few() -> None:
    gates = gates_file(BETTER | {"test": "permutation", "resamples": 999})
    late = evaluate_gates(gates, on(GOOD, before=30))
    assert not late.passed and "999 resamples can show nothing here" in str(late.results)


def test_a_set_says_what_it_can_show_before_anything_is_evaluated() -> None:
    gates = gates_file(
        BETTER,
        NO_WORSE,
        BETTER | {"name": "text", "metric": "token_f1", "test": "permutation"},
        run_correction="divide",
    )
    first = list_detectable(gates, {"held-out": 500}, {})
    assert [one.gate for one in first] == ["better", "no-worse", "text"]
    assert first[0].sentence == (
        "the smallest gain that accuracy can show is 4.189 points, with 500 items, one-sided alpha 0.016666667, "
        "power 0.8, 0.1 of the items answered differently"
    )
    assert "the smallest margin" in first[1].sentence and "standard deviations" in first[2].sentence
    later = list_detectable(gates, {"held-out": 500}, {"held-out": 9})
    assert all(float(b.smallest or 9) > float(a.smallest or 0) for a, b in zip(first, later, strict=True))
    assert "it cannot be passed" in list_detectable(gates, {"held-out": 99}, {})[0].sentence
    assert list_detectable(gates, {"held-out": 100}, {"held-out": 9})[0].sentence == (
        "a gain of up to 10.00 points cannot be shown with 100 items, one-sided alpha 0.001666667, "
        "power 0.8, 0.1 of the items answered differently; a larger one may be"
    )
    assert (
        "can be used once"
        in list_detectable(gates_file(run_correction="once"), {"held-out": 500}, {"held-out": 1})[0].sentence
    )


@pytest.mark.parametrize(
    ("changes", "smallest", "told"),
    [
        (BETTER | {"test": "tango"}, 0.0395, "0.1 of the items answered differently"),
        (BETTER | {"test": "tango", "margin": "0.02"}, 0.0595, "the gate's margin of 2.000 points is included"),
        (BETTER | {"test": "tango", "margin": "0.07"}, None, "the gate's margin of 7.000 points is included"),
        (NO_WORSE | {"kind": "target", "slices": ["label"]}, 0.0396, "the gate's margin of 5.000 points is enough"),
        (
            NO_WORSE | {"kind": "target", "slices": ["label"], "margin": "0.03"},
            0.0396,
            "is smaller: an adapter that is as good will probably not pass",
        ),
    ],
)
def test_what_a_set_can_show_is_compared_with_the_gates_margin(
    changes: dict[str, Any], smallest: float | None, told: str
) -> None:
    (found,) = list_detectable(gates_file(changes), {"held-out": 500}, {})
    assert found.sentence.endswith(told)
    assert (None if found.smallest is None else float(found.smallest)) == pytest.approx(smallest, abs=0.0005)


def test_calibration_is_measured_with_its_intervals() -> None:
    found = measure_calibration(GOOD, "adapter", 1)
    assert (found.items, found.error.value, found.bins[8].items) == (300, "0.120000000", 300)
    assert found.error.lower < found.error.value < found.error.upper
    assert found.brier.lower < found.brier.value < found.brier.upper
    assert found == measure_calibration(GOOD, "adapter", 1)
    unsure = tuple(item.model_copy(update={"base": item.base.model_copy(update={"confidence": None})}) for item in GOOD)
    with pytest.raises(BadInput, match="expected right and confidence in every answer, got right, token_f1"):
        measure_calibration(unsure, "base", 1)


def test_the_page_names_every_member_of_a_verdict() -> None:
    page = (ROOT / "docs" / "formats" / "evaluation.md").read_text(encoding="utf-8").partition("## The verdict")[2]
    for model in (Verdict, EvaluatedSet, GateResult, SliceResult):
        for name in model.model_fields:
            assert f"`{name}`" in page, f"{model.__name__}.{name}: expected it on the page"


# The frozen verdict.


def frozen() -> tuple[GatesFile, VerdictInputs, Verdict]:
    items, released = (parse_items(VECTORS[name].encode()) for name in ("items", "released"))
    evidence = VerdictInputs({"held-out": items}, {("released", "held-out"): released}, {"held-out": 1})
    return parse_gates(VECTORS["gates"].encode()), evidence, parse_verdict(VECTORS["verdict"].encode())


def test_the_recorded_verdict_is_computed_again_bit_for_bit() -> None:
    gates, evidence, verdict = frozen()
    assert encode_value(evaluate_gates(gates, evidence)).decode() == VECTORS["verdict"]
    assert {gate.test for gate in gates.gates} == {"mcnemar", "tango", "permutation", "bootstrap", "tost"}
    verify_verdict(verdict, gates, evidence)


@pytest.mark.thorough
def test_another_process_computes_the_same_whatever_its_hash_seed_is() -> None:
    program = (
        "import json,sys\n"
        "from tests.domain.evaluation.test_verdict import evaluate_gates, frozen, encode_value\n"
        "gates, evidence, _ = frozen()\n"
        "sys.stdout.write(encode_value(evaluate_gates(gates, evidence)).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == VECTORS["verdict"]


@pytest.mark.parametrize(
    ("member", "value"), [("passed", True), ("why", "Passed."), ("target_passed", True), ("regression_passed", True)]
)
def test_a_verdict_that_was_typed_in_is_tampered(member: str, value: object) -> None:
    gates, evidence, verdict = frozen()
    typed = verdict.model_copy(update={member: value})
    if typed == verdict:
        typed = verdict.model_copy(update={member: not value})
    with pytest.raises(Tampered, match=f"got other {member}"):
        verify_verdict(typed, gates, evidence)


def test_a_number_of_a_result_that_was_typed_in_is_tampered() -> None:
    gates, evidence, verdict = frozen()
    typed = verdict.results[0].model_copy(update={"p": "0.000000001"})
    with pytest.raises(Tampered, match="got other results"):
        verify_verdict(verdict.model_copy(update={"results": (typed, *verdict.results[1:])}), gates, evidence)


@pytest.mark.parametrize("change", ["dropped", "flipped", "runs", "gates"])
def test_a_verdict_on_other_evidence_is_tampered(change: str) -> None:
    gates, evidence, verdict = frozen()
    items = evidence.sets["held-out"]
    right = items[0].adapter.model_copy(update={"right": not items[0].adapter.right})
    flipped = (items[0].model_copy(update={"adapter": right}), *items[1:])
    changed = {
        "dropped": (gates, replace(evidence, sets={"held-out": items[1:]})),
        "flipped": (gates, replace(evidence, sets={"held-out": flipped})),
        "runs": (gates, replace(evidence, evaluated_before={})),
        "gates": (gates.model_copy(update={"seed": 8}), evidence),
    }
    with pytest.raises(Tampered):
        verify_verdict(verdict, *changed[change])


# Speed. `scripts/bench verdicts` measures what was promised: 1 s where items are counted and 10 s where they are drawn.
# Here three times as much of the processor's time is allowed, which something quadratic would need many times over.


def many(count: int) -> tuple[EvaluationItem, ...]:
    groups = [Group(count * 6 // 10, True, True), Group(count * 3 // 10, True, False), Group(count // 10, False, True)]
    return tuple(
        item.model_copy(
            update={"adapter": item.adapter.model_copy(update={"scores": {"token_f1": int(digest(item.row)[:5], 16)}})}
        )
        for item in make_items(groups)
    )


def spent(gates: GatesFile, items: tuple[EvaluationItem, ...]) -> float:
    start = time.process_time()
    assert evaluate_gates(gates, on(items, released=items)).results
    return time.process_time() - start


@pytest.mark.outside
def test_ten_thousand_items_take_no_more_than_three_times_the_promised_time() -> None:
    items = parse_items(encode_items(many(10_000)))
    counted = gates_file(BETTER | {"slices": ["label", "length"]}, NO_WORSE)
    assert spent(counted, items) < 3
    resampled = gates_file(BETTER | {"metric": "token_f1", "test": "permutation", "slices": ["label", "length"]})
    assert spent(resampled, items) < 30
    drawn = gates_file(BETTER | {"metric": "token_f1", "test": "bootstrap"})
    assert spent(drawn, items) < 30
