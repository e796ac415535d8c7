"""The gates of an order are fixed before the run: the rules refuse every other verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.names import encode_value
from appliance.domain.core.records.runs import AdapterEvaluation
from appliance.domain.data.imports import ImportRequested
from appliance.domain.evaluation.basis import find_released
from appliance.domain.evaluation.gates import GatesFile, parse_gate_file, parse_gates
from appliance.domain.evaluation.items import MOST_ITEMS, EvaluationItem, encode_items
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.runs.training import RunRequested, Train
from appliance.errors import ApplianceError, BadInput, Denied, Tampered
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LogBuilder, manifest, policy_set, stage


def gates_file(**members: Any) -> GatesFile:
    return parse_gate_file(json.dumps({"version": 1, "name": "tried", "seed": 1} | members).encode())


BETTER = make_items([Group(30, adapter=True, base=False), Group(70, adapter=True, base=True)])
ALIKE = make_items([Group(50, adapter=True, base=True), Group(50, adapter=False, base=False)])


def one_gate(**members: Any) -> dict[str, Any]:
    defaults = {
        "name": "better-than-base",
        "kind": "target",
        "set": "held-out",
        "metric": "accuracy",
        "comparison": "base",
        "claim": "better",
        "test": "mcnemar",
        "least_items": 20,
        "slices": ["label"],
    }
    return defaults | members


GATES = gates_file(gates=[one_gate()])
RELEASED = one_gate(
    name="no-worse-than-released",
    kind="regression",
    comparison="released",
    claim="no-worse",
    test="tango",
    margin="0.1",
)
AGAINST_RELEASED = gates_file(gates=[one_gate(), RELEASED])


def evaluated(site: LogBuilder, version: int = 1) -> AdapterEvaluation:
    found = site.state.evaluations.get(f"clauses@{version}")
    assert found is not None
    return found


def verdict_of(site: LogBuilder, version: int = 1) -> Verdict:
    digest = evaluated(site, version).verdict
    assert digest is not None
    return parse_verdict(site.documents[digest])


def sealed(
    site: LogBuilder, items: tuple[EvaluationItem, ...] = BETTER, gates: GatesFile | None = GATES, **recipe: Any
) -> int:
    """One run more, evaluated on these items; its version."""
    version = len(site.state.evaluations.values()) + 1
    site.seal(site.train(recipe=recipe, gates=gates), version, items=encode_items(items))
    return version


def refused(site: LogBuilder, run: str, **fields: Any) -> str:
    """Return why the sealing is refused; the state does not change."""
    body, documents = site.sealing(run, **fields)
    entry, documents = site.entry(body, documents=documents)
    before = site.state.evaluations.values()
    with pytest.raises(ApplianceError) as error:
        apply(site.state, entry, documents)
    assert isinstance(error.value, Denied | Tampered | BadInput)
    assert site.state.evaluations.values() == before
    return error.value.message


def test_a_run_is_evaluated_by_the_gates_of_its_order() -> None:
    site = stage("imported").fork()
    sealed(site)
    found, verdict = evaluated(site), verdict_of(site)
    assert (found.gates, found.items) == (digest_bytes(encode_value(GATES)), digest_bytes(encode_items(BETTER)))
    assert (found.passed, found.target_passed, found.regression_passed) == (True, True, True)
    assert [(one.model, one.set, one.evaluated_before) for one in verdict.evaluated] == [("run", "held-out", 0)]
    assert verdict.results[0].reason.startswith("accuracy 1.000, base 0.7000")


def test_a_run_without_gates_has_items_and_no_verdict() -> None:
    site = stage("imported").fork()
    sealed(site, gates=None)
    assert evaluated(site).items and evaluated(site).verdict is None and evaluated(site).passed is None


def test_gates_that_changed_after_the_order_are_refused() -> None:
    site = stage("imported").fork()
    run = site.train(gates=gates_file(gates=[one_gate(test="tango", margin="0.5")]))
    easier = encode_value(GATES)
    verdict = stage("imported").fork()
    sealed(verdict)
    passed = verdict.documents[str(evaluated(verdict).verdict)]
    told = refused(site, run, items=encode_items(BETTER), verdict={"gates": easier, "verdict": passed})
    assert "which the run's order bound" in told


def test_a_verdict_without_gates_in_the_order_is_refused() -> None:
    other = stage("imported").fork()
    sealed(other)
    documents = {role: other.documents[str(getattr(evaluated(other), role))] for role in ("gates", "verdict")}
    site = stage("imported").fork()
    told = refused(site, site.train(), items=encode_items(BETTER), verdict=documents)
    assert "as the run's order bound gates or none" in told
    told = refused(site, "r-000001", files={"verdict.json": documents["verdict"]})
    assert "expected no verdict, since the run's order bound no gates, got ['verdict.json']" in told


def change(verdict: Verdict, **members: Any) -> bytes:
    return encode_value(verdict.model_copy(update=members))


def change_gate(verdict: Verdict, **members: Any) -> bytes:
    return change(verdict, results=(verdict.results[0].model_copy(update=members), *verdict.results[1:]))


def change_evaluated(verdict: Verdict, **members: Any) -> bytes:
    return change(verdict, evaluated=(verdict.evaluated[0].model_copy(update=members), *verdict.evaluated[1:]))


TYPED_IN: list[tuple[str, Callable[[Verdict], bytes]]] = [
    (
        "verdict, target_passed, regression_passed, passed: expected (False, True, False)",
        lambda verdict: change(verdict, passed=True),
    ),
    (
        "verdict, target_passed, regression_passed, passed:",
        lambda verdict: change(verdict, passed=True, target_passed=True),
    ),
    ("verdict, why: expected 'Not passed", lambda verdict: change(verdict, why="Passed: all is well.")),
    ("expected failed, got passed", lambda verdict: change_gate(verdict, outcome="passed")),
    ("gate better-than-base: expected failed, got passed", lambda v: change_gate(v, outcome="passed", p=None)),
    ("adjusted: expected 1.000000000 at least", lambda v: change_gate(v, adjusted="0.000000001", outcome="passed")),
    ("verdict, results: expected", lambda verdict: change_gate(verdict, gate="another")),
    ("verdict, gates: expected sha256:", lambda verdict: change(verdict, gates=digest_bytes(b"others"))),
    ("verdict, evaluated: expected", lambda verdict: change_evaluated(verdict, digest=digest_bytes(b"other items"))),
    ("verdict, evaluated: expected", lambda verdict: change(verdict, evaluated=())),
    ("0 evaluated before", lambda verdict: change_evaluated(verdict, evaluated_before=3)),
    ("expected another outcome", lambda v: _not_applicable(v)),
]


def _not_applicable(verdict: Verdict) -> bytes:
    """As if no version were released to compare with."""
    first = verdict.results[0].model_copy(
        update={"outcome": "not-applicable", "p": None, "adjusted": None, "slices": ()}
    )
    why = "Not passed: no gate of the target metric could be evaluated."
    return change(verdict, results=(first,), regression_passed=True, why=why)


@pytest.mark.parametrize(("message", "typed"), TYPED_IN, ids=range(len(TYPED_IN)))
def test_a_verdict_that_was_typed_in_is_refused(message: str, typed: Callable[[Verdict], bytes]) -> None:
    site = stage("imported").fork()
    gates = gates_file(gates=[one_gate(comparison="released")]) if "another outcome" in message else GATES
    if gates is not GATES:
        release(site)
    run = site.train(gates=gates)
    version = len(site.state.evaluations.values()) + 1
    right = parse_verdict(site.evaluate(run, encode_items(ALIKE))["verdict"])
    assert not right.passed
    told = refused(site, run, version=version, items=encode_items(ALIKE), verdict={"verdict": typed(right)})
    assert message in told


def release(site: LogBuilder, items: tuple[EvaluationItem, ...] = BETTER) -> None:
    """clauses@1 serves legal/labels."""
    sealed(site, items, gates=None)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.activate()


def test_the_twentieth_try_on_one_set_does_not_pass_by_what_the_first_would() -> None:
    """Six to none of 50: p is 0.016, and alpha 0.05."""
    lucky = make_items([Group(6, adapter=True, base=False), Group(44, adapter=True, base=True)])
    site = stage("imported").fork()
    assert evaluated_version(site, lucky).passed
    for _ in range(18):
        sealed(site, ALIKE, gates=None)
    last = evaluated_version(site, lucky)
    assert not last.passed
    assert last.evaluated[0].evaluated_before == 19, "runs without gates have shown their results, too"
    assert "corrected for 19 earlier evaluations on held-out" in last.results[0].reason


def import_more(site: LogBuilder, name: str = "clauses", version: int = 2, **terms: Any) -> None:
    """Import another dataset, by default clauses@2 of another file."""
    terms = {"file": digest_bytes(b"another file"), **terms}
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(dataset=name, **terms))
    listed = manifest(name, version, {"rows": b"other rows"})
    site.add(site.dataset_imported(requested, dataset=f"{name}@{version}"), documents={"manifest": listed})


def evaluated_version(site: LogBuilder, items: tuple[EvaluationItem, ...]) -> Verdict:
    return verdict_of(site, sealed(site, items))


def test_a_try_is_counted_in_every_version_of_the_dataset() -> None:
    site = stage("imported").fork()
    sealed(site, ALIKE)
    import_more(site)
    run = site.train(recipe={"dataset": "clauses@2"}, gates=GATES)
    site.seal(run, 2, items=encode_items(BETTER))
    assert verdict_of(site, 2).evaluated[0].evaluated_before == 1


@pytest.mark.parametrize(
    ("terms", "counted"),
    [
        ({"file": digest_bytes(b"csv")}, 1),
        ({"file": digest_bytes(b"csv"), "seed": 2}, 1),
        ({"held_out": digest_bytes(b"csv")}, 1),
        ({}, 0),
    ],
)
def test_a_file_imported_again_under_another_name_does_not_begin_anew(terms: dict[str, Any], counted: int) -> None:
    site = stage("imported").fork()
    sealed(site, ALIKE)
    import_more(site, "renamed", 1, **terms)
    run = site.train(recipe={"dataset": "renamed@1"}, gates=GATES)
    site.seal(run, 2, items=encode_items(BETTER))
    assert verdict_of(site, 2).evaluated[0].evaluated_before == counted


def test_a_set_that_evaluates_once_fails_every_run_after_the_first() -> None:
    once = gates_file(run_correction="once", gates=[one_gate()])
    site = stage("imported").fork()
    assert verdict_of(site, sealed(site, BETTER, once)).passed
    again = verdict_of(site, sealed(site, BETTER, once))
    assert not again.passed and "can be used once, and 1 runs were evaluated on it before" in again.results[0].reason


def test_without_a_released_version_the_comparison_with_it_does_not_apply() -> None:
    site = stage("imported").fork()
    found = verdict_of(site, sealed(site, BETTER, AGAINST_RELEASED))
    assert [result.outcome for result in found.results] == ["passed", "not-applicable"] and found.passed


def test_a_version_is_compared_with_the_one_that_is_released() -> None:
    site = stage("imported").fork()
    release(site)
    worse = make_items([Group(40, True, False), Group(20, False, False), Group(40, True, True)])
    found = verdict_of(site, sealed(site, worse, AGAINST_RELEASED))
    assert [one.model for one in found.evaluated] == ["released", "run"]
    assert found.evaluated[0].digest == evaluated(site).items
    assert (found.target_passed, found.regression_passed, found.passed) == (True, False, False)
    assert "accuracy 0.8000, released 1.000: not shown to be no worse" in str(found.results)


def test_a_released_version_that_was_evaluated_on_other_rows_is_evaluated_on_these() -> None:
    site = stage("imported").fork()
    release(site)
    import_more(site)
    run = site.train(recipe={"dataset": "clauses@2"}, gates=AGAINST_RELEASED)
    told = refused(site, run, version=2, items=encode_items(BETTER))
    assert "expected {('run', 'held-out'):" in told and "('released', 'held-out'): None" in told
    theirs = encode_items(ALIKE)
    site.seal(run, 2, items=encode_items(BETTER), sets={"items-held-out-released.jsonl": theirs})
    found = verdict_of(site, 2)
    assert found.passed and found.evaluated[0].digest == digest_bytes(theirs)
    assert [(one.model, one.evaluated_before) for one in found.evaluated] == [("released", 1), ("run", 1)]


def test_another_name_is_compared_with_what_is_released_on_the_same_rows() -> None:
    """Otherwise a run under a new name would be compared with nothing."""
    site = stage("imported").fork()
    release(site)
    import_more(site)
    import_more(site, "others", 1)
    for name, dataset in (("clauses", "others@1"), ("another", "clauses@1"), ("another", "clauses@2")):
        assert find_released(site.state, name, dataset, site.base_digest) == site.state.adapters.get("clauses@1")
    assert find_released(site.state, "another", "others@1", site.base_digest) is None
    assert find_released(site.state, "another", "clauses@1", digest_bytes(b"another base")) is None


def test_a_revoked_version_is_not_the_released_one() -> None:
    site = stage("imported").fork()
    release(site)
    order = site.order(RevokeAdapter, "rita", **site.on_adapter(1))
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    found = verdict_of(site, sealed(site, BETTER, AGAINST_RELEASED))
    assert found.results[1].outcome == "not-applicable"


def test_full_fine_tuning_is_the_last_finished_run_of_that_method_on_the_same_rows() -> None:
    near = one_gate(name="near", comparison="full-fine-tuning", claim="no-worse", test="tango", margin="0.1")
    gates = gates_file(
        gates=[near, one_gate(name="rest", kind="regression", claim="no-worse", test="tango", margin="0.1")]
    )
    site = stage("imported").fork()
    alone = verdict_of(site, sealed(site, BETTER, gates))
    assert "expected items of full-fine-tuning on the set held-out, got none" in str(alone.results)
    full = {
        "method": "full",
        "quantisation": "none",
        "purpose": "baseline",
        "rank": 0,
        "alpha": 0,
        "target_modules": (),
    }
    sealed(site, BETTER, None, **full, dropout="0.0")
    found = verdict_of(site, sealed(site, BETTER, gates))
    assert [one.model for one in found.evaluated] == ["full-fine-tuning", "run"]
    assert found.results[0].outcome == "passed"


def test_policy_can_require_gates_of_what_is_to_be_released() -> None:
    digest = digest_bytes(encode_value(GATES))
    site = stage("imported", policy_set(required_gates=(digest,))).fork()
    with pytest.raises(Denied, match=r"Policy requires one of these gates files for a release: .*\. The order"):
        site.request_run()
    with pytest.raises(Denied, match=r"Policy requires one of these gates files for a release: .*\. The order"):
        site.request_run(gates=gates_file(gates=[one_gate(least_items=21)]))
    site.request_run(gates=GATES)
    site.request_run(recipe={"purpose": "baseline"})


def test_the_gate_set_beside_an_order_is_the_one_that_it_binds() -> None:
    site = stage("imported").fork()
    order = site.train_order(gates=digest_bytes(encode_value(GATES)))
    body = RunRequested(policy=site.in_force, run="r-000001")
    for documents, message in (
        ({"gates": encode_value(AGAINST_RELEASED)}, "gates: expected sha256:"),
        ({}, r"documents beside the order: expected \['gates'\], got \[\]"),
    ):
        with pytest.raises(ApplianceError, match=message):
            site.ordered(body, order, documents=documents)
    unbound: Train = site.train_order()
    with pytest.raises(BadInput, match=r"documents beside the order: expected \[\], got \['gates'\]"):
        site.ordered(body, unbound, documents={"gates": encode_value(GATES)})


def test_a_gate_on_rows_that_no_run_is_evaluated_on_is_refused_with_the_order() -> None:
    site = stage("imported").fork()
    with pytest.raises(BadInput, match="validation sets: expected outside, which its gates name, got none"):
        site.request_run(gates=gates_file(gates=[one_gate(set="outside")]))


def test_no_run_is_sealed_without_its_items() -> None:
    site = stage("imported").fork()
    assert "manifest: expected items.jsonl, got none" in refused(site, site.train(), files={"items.jsonl": None})


def test_a_set_that_an_order_binds_reads_back_as_it_was_written() -> None:
    site = stage("imported").fork()
    sealed(site)
    run = site.state.runs.get("r-000001")
    assert run is not None and run.gates is not None
    assert parse_gates(site.documents[run.gates]) == GATES


def test_a_dataset_has_no_more_held_out_rows_than_an_evaluation_uses() -> None:
    site = stage("staffed").fork()
    site.import_base()
    site.import_dataset(facts={"rows": 200_000, "held_out_rows": MOST_ITEMS + 1})
    order = site.train_order()
    assert [reason.code for reason in list_refusal_reasons(site.state, order, site.now)] == ["too-many-held-out-rows"]
    with pytest.raises(Denied, match=r"Dataset clauses@1 has 100001 held-out rows\. An evaluation uses 100000 of them"):
        site.request_run()
