"""Validation sets: their import, the fields that an order binds, and the rules for their verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.records.data import BoundSet, ValidationSet
from appliance.domain.core.records.runs import AdapterEvaluation
from appliance.domain.data.imports import ImportRequested
from appliance.domain.evaluation.basis import count_evaluations, rows_of_dataset, rows_of_set
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.items import encode_items
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.domain.releases.approval import find_blockers, find_review_status
from appliance.errors import ApplianceError, BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LogBuilder, manifest, stage
from tests.domain.evaluation.test_rules import (
    ALIKE,
    BETTER,
    change_evaluated,
    evaluated,
    gates_file,
    import_more,
    one_gate,
    refused,
    release,
    verdict_of,
)

EXAM = "items-exam.jsonl"
ON_EXAM = gates_file(gates=[one_gate(set="exam")])
"""One gate: better than the base on the validation set."""
AGAINST_RELEASED = gates_file(
    gates=[
        one_gate(set="exam"),
        one_gate(
            set="exam",
            name="released",
            kind="regression",
            comparison="released",
            claim="no-worse",
            test="tango",
            margin="0.1",
        ),
    ]
)
LUCKY = make_items([Group(30, adapter=True, base=False), Group(30, adapter=True, base=True)])


def counted(duplicates: int = 0, near: int = 0, name: str = "exam") -> dict[str, Any]:
    return {"sets": {name: {"rows": 60, "duplicates": duplicates, "near_duplicates": near}}}


CLEAN = counted()


def seal(
    site: LogBuilder, version: int = 1, gates: GatesFile = ON_EXAM, metrics: dict[str, Any] = CLEAN, **recipe: Any
) -> Verdict:
    """One run more: no better on the held-out rows, better on the set."""
    run = site.train(recipe=recipe, gates=gates)
    site.seal(run, version, items=encode_items(ALIKE), sets={EXAM: encode_items(BETTER)}, metrics=metrics)
    return verdict_of(site, version)


def the_set(site: LogBuilder, name: str = "exam@1") -> ValidationSet:
    found = site.state.validation_sets.get(name)
    assert found is not None
    return found


def bound(site: LogBuilder, name: str = "exam@1", **changes: Any) -> tuple[BoundSet, ...]:
    return (BoundSet(**{"validation_set": name, "digest": the_set(site, name).digest} | changes),)


@pytest.fixture
def site() -> LogBuilder:
    site = stage("imported").fork()
    site.import_set()
    return site


# Who brings them in.


@pytest.mark.parametrize("name", ["olga", "rita", "legal", "anna", "audrey", "otto"])
def test_a_validator_and_nobody_else_imports_a_validation_set(name: str) -> None:
    site = stage("imported").fork()
    with pytest.raises(Denied, match=r".* is .*\. This action needs .*\."):
        site.ordered(ImportRequested(policy=site.in_force), site.set_order(name))


@pytest.mark.parametrize("roles", [("operator", "validator"), ("unit", "validator"), ("validator", "auditor")])
def test_an_operator_or_a_unit_is_no_validator(roles: tuple[str, ...]) -> None:
    site = stage("staffed").fork()
    with pytest.raises(Denied, match=r"One person cannot have|can have no other role"):
        site.enrol("vera", *roles)


@pytest.mark.parametrize("name", ["held-out", "exam-released"])
def test_a_name_that_stands_for_other_rows_is_refused(name: str) -> None:
    site = stage("imported").fork()
    with pytest.raises(Denied, match=r"The name .* is reserved for other sets\."):
        site.import_set(validation_set=name)


@pytest.mark.parametrize("terms", [{"file": digest_bytes(b"exam")}, {"held_out": digest_bytes(b"exam")}])
def test_the_file_of_a_validation_set_is_no_dataset(site: LogBuilder, terms: dict[str, str]) -> None:
    with pytest.raises(Denied, match=r"This file was ordered as exam, which is a validation set\. Adapters are"):
        import_more(site, **terms)


def test_no_run_trains_on_a_validation_set(site: LogBuilder) -> None:
    with pytest.raises(Denied, match=r"No dataset with the name exam@1 was imported\."):
        site.request_run(recipe={"dataset": "exam@1"})


@pytest.mark.parametrize("name", ["vera", "anna", "rita"])
def test_a_validator_an_administrator_or_a_reviewer_revokes_one_once(site: LogBuilder, name: str) -> None:
    site.revoke_set(name)
    with pytest.raises(Denied, match=r"Validation set exam@1 was revoked by entry 25\."):
        site.revoke_set(name)


@pytest.mark.parametrize("name", ["olga", "legal", "audrey"])
def test_others_do_not_revoke_one(site: LogBuilder, name: str) -> None:
    with pytest.raises(Denied, match=r".* is .*\. This action needs .*\."):
        site.revoke_set(name)


# What an order binds.


def test_an_order_binds_each_set_that_its_gates_name(site: LogBuilder) -> None:
    verdict = seal(site)
    run = site.state.runs.get("r-000001")
    assert run is not None and run.sets == bound(site)
    assert verdict.passed and "accuracy 1.000, base 0.7000" in str(verdict.results)
    (record,) = verdict.evaluated
    assert (record.model, record.set, record.digest) == ("run", "exam", digest_bytes(encode_items(BETTER)))
    assert (record.evaluated_before, record.named_before, record.duplicates, record.near_duplicates) == (0, None, 0, 0)
    assert [(one.validation_set, one.items) for one in evaluated(site).sets] == [("exam@1", record.digest)]


@pytest.mark.parametrize(
    ("message", "prepare"),
    [
        (
            "No validation set with the name other@1",
            lambda s: (BoundSet(validation_set="other@1", digest="sha256:" + "0" * 64),),
        ),
        ("The order names exam@1 by the digest sha256:", lambda s: bound(s, digest="sha256:" + "0" * 64)),
        ("was revoked by entry", lambda s: (s.revoke_set(), bound(s))[1]),
        ("has a newer valid version, 2", lambda s: (s.import_set(2, file=digest_bytes(b"2")), bound(s))[1]),
    ],
)
def test_an_order_binds_a_set_that_stands_by_its_digest_in_its_newest_version(
    site: LogBuilder, message: str, prepare: Any
) -> None:
    sets = prepare(site)
    gates = gates_file(gates=[one_gate(set=sets[0].validation_set.partition("@")[0])])
    with pytest.raises(Denied) as error:
        site.request_run(gates=gates, sets=sets)
    assert message in error.value.message


def test_a_set_of_another_base_is_refused(site: LogBuilder) -> None:
    site.import_base("other")
    other = site.state.bases.get("other")
    assert other is not None
    site.enrol("victor", "validator")
    order = site.set_order("victor", validation_set="elsewhere", base="other", base_digest=other.digest)
    requested = site.ordered(ImportRequested(policy=site.in_force), order)
    body = site.set_imported(requested, validation_set="elsewhere@1", base="other")
    site.add(body, documents={"manifest": manifest("elsewhere", 1, {"rows": b"rows"})})
    with pytest.raises(Denied, match=r"Validation set elsewhere@1 was rendered for the base model other\. The"):
        site.request_run(gates=gates_file(gates=[one_gate(set="elsewhere")]), sets=bound(site, "elsewhere@1"))


@pytest.mark.parametrize("on", ["exam", "held-out"])
def test_resamples_times_rows_of_an_order_are_bounded(site: LogBuilder, on: str) -> None:
    """Everybody who checks the verdict computes it again."""
    gates = gates_file(gates=[one_gate(set=on, test="permutation", resamples=50_000, name=f"g{n}") for n in range(2)])
    sets = bound(site) if on == "exam" else ()
    for rows, fits in ((40_000, True), (40_001, False)):
        one, dataset = site.state.validation_sets.get("exam@1"), site.state.datasets.get("clauses@1")
        assert one is not None and dataset is not None
        if on == "exam":
            changed = one.model_copy(update={"facts": one.facts | {"rows": rows}})
            site.state.validation_sets.put("exam@1", changed)
        else:
            facts = dataset.facts | {"held_out_rows": rows}
            site.state.datasets.put("clauses@1", dataset.model_copy(update={"facts": facts}))
        if fits:
            site.request_run(gates=gates, sets=sets)
        else:
            with pytest.raises(BadInput, match="expected at most 4000000000 resamples times rows of all gates"):
                site.request_run(gates=gates, sets=sets)


def test_sets_and_the_sets_of_the_gates_are_the_same(site: LogBuilder) -> None:
    with pytest.raises(BadInput, match="validation sets: expected exam, which its gates name, got none"):
        site.request_run(gates=ON_EXAM, sets=())
    with pytest.raises(BadInput, match="expected none, which its gates name, got exam"):
        site.request_run(gates=gates_file(gates=[one_gate()]), sets=bound(site))
    with pytest.raises(Denied, match=r"The order names sets of rows, and no gates file that uses them\."):
        site.request_run(sets=bound(site))


# What a verdict is held to.


def test_the_items_of_each_set_are_sealed_and_no_others(site: LogBuilder) -> None:
    run = site.train(gates=ON_EXAM)
    assert "manifest: expected items-exam.jsonl, got none" in refused(site, run, metrics=CLEAN)
    more = {EXAM: encode_items(BETTER), "items-other.jsonl": encode_items(BETTER)}
    assert "no other items than those that were evaluated" in refused(site, run, sets=more, metrics=CLEAN)


def test_the_items_of_another_set_are_not_those_of_this_one(site: LogBuilder) -> None:
    run = site.train(gates=ON_EXAM)
    right = site.evaluate(run, encode_items(ALIKE), {EXAM: encode_items(BETTER)}, CLEAN)
    told = refused(site, run, items=encode_items(ALIKE), sets={EXAM: encode_items(ALIKE)}, metrics=CLEAN, verdict=right)
    assert "verdict, evaluated: expected" in told


def test_a_try_is_counted_on_the_rows_that_it_was_evaluated_on(site: LogBuilder) -> None:
    seal(site)
    assert count_evaluations(site.state, rows_of_set(the_set(site))) == 1
    assert count_evaluations(site.state, rows_of_dataset(site.state, "clauses@1")) == 1
    site.import_set(2, file=digest_bytes(b"second"))
    assert seal(site, 2).evaluated[0].evaluated_before == 1, "any version of the name"
    site.import_set(1, validation_set="copy")
    assert count_evaluations(site.state, rows_of_set(the_set(site, "copy@1"))) == 1, "the same file by another name"
    site.import_set(1, validation_set="fresh", file=digest_bytes(b"fresh"))
    assert count_evaluations(site.state, rows_of_set(the_set(site, "fresh@1"))) == 0


def test_held_out_rows_of_the_same_file_are_the_same_rows() -> None:
    site = stage("imported").fork()
    import_more(site, held_out=digest_bytes(b"exam"))
    site.seal(site.train(recipe={"dataset": "clauses@2"}, gates=None), 1)
    site.import_set()
    assert count_evaluations(site.state, rows_of_set(the_set(site))) == 1


def test_a_final_set_evaluates_each_adapter_name_once() -> None:
    site = stage("imported").fork()
    site.import_set(final=True)
    first = seal(site)
    assert first.passed and first.evaluated[0].named_before == 0
    again = seal(site, 2)
    assert (
        not again.passed
        and "the set exam is final, and 1 runs of this adapter's name were evaluated on it before" in str(again.results)
    )


def test_a_final_set_that_was_used_before_cannot_be_typed_into_a_first_evaluation() -> None:
    site = stage("imported").fork()
    site.import_set(final=True)
    first = seal(site)
    run = site.train(gates=ON_EXAM)
    typed = {"verdict": change_evaluated(first, evaluated_before=1)}
    told = refused(
        site, run, version=2, items=encode_items(ALIKE), sets={EXAM: encode_items(BETTER)}, metrics=CLEAN, verdict=typed
    )
    assert "(1, None)" not in told and "evaluated before, 1 of this name" in told


def test_another_adapter_is_evaluated_by_a_final_set_and_pays_for_luck() -> None:
    site = stage("imported").fork()
    site.import_set(final=True)
    seal(site)
    run = site.train(gates=ON_EXAM, recipe={"name": "other"})
    made = site.evaluate(run, encode_items(ALIKE), {EXAM: encode_items(BETTER)}, CLEAN)
    found = parse_verdict(made["verdict"])
    assert found.passed and (found.evaluated[0].named_before, found.evaluated[0].evaluated_before) == (0, 1)


@pytest.mark.parametrize(
    ("metrics", "members", "passed"),
    [
        (counted(1), {}, False),
        (counted(1), {"most_overlap": "0.01"}, True),
        (counted(2), {"most_overlap": "0.01"}, False),
        (counted(0, 10), {}, True),
        (counted(0, 11), {}, False),
        (counted(0, 50), {"most_near_overlap": "1.0"}, True),
        (counted(0, 50), {"most_near_overlap": "0.4"}, False),
    ],
)
def test_rows_that_are_trained_on_fail_the_gates_above_the_share_that_the_set_allows(
    site: LogBuilder, metrics: dict[str, Any], members: dict[str, str], passed: bool
) -> None:
    verdict = seal(site, gates=gates_file(gates=[one_gate(set="exam")], **members), metrics=metrics)
    assert verdict.passed is passed
    if not passed:
        assert "rows of exam are" in str(verdict.results) and "at most a share of" in str(verdict.results)


@pytest.mark.parametrize(
    ("told", "members", "failure"),
    [
        (("few", "few"), {}, None),
        (
            ("many", "few"),
            {},
            "many of 100 rows of exam, a blind set, are trained on, and at most a share of 0.0 may be",
        ),
        (("few", "many"), {}, "are nearly the same as one that is trained on, and at most a share of 0.1 may be"),
        (("many", "few"), {"most_overlap": "0.9"}, "many of 100 rows"),
        (("many", "many"), {"most_overlap": "1.0", "most_near_overlap": "1.0"}, None),
    ],
)
def test_of_a_blind_set_many_rows_that_are_trained_on_fail_every_share_below_all(
    told: tuple[str, str], members: dict[str, str], failure: str | None
) -> None:
    site = stage("imported").fork()
    site.import_set(blind=True)
    sets = {"sets": {"exam": {"rows": 60, "duplicates": told[0], "near_duplicates": told[1]}}}
    verdict = seal(site, gates=gates_file(gates=[one_gate(set="exam")], **members), metrics=sets)
    assert (verdict.evaluated[0].duplicates, verdict.evaluated[0].near_duplicates) == told
    assert verdict.passed is (failure is None) and (failure is None or failure in str(verdict.results))


@pytest.mark.parametrize(("blind", "told"), [(True, 0), (False, "few")])
def test_a_blind_set_has_no_counts_and_an_open_one_has_them(blind: bool, told: int | str) -> None:
    site = stage("imported").fork()
    site.import_set(blind=blind)
    with pytest.raises(Denied, match=r"duplicates: expected (few or many, since the set is blind|a count), got"):
        seal(site, metrics={"sets": {"exam": {"rows": 60, "duplicates": told, "near_duplicates": told}}})


def test_the_counts_of_a_verdict_are_those_of_the_entry_and_are_there(site: LogBuilder) -> None:
    run, sets = site.train(gates=ON_EXAM), {EXAM: encode_items(BETTER)}
    right = site.evaluate(run, encode_items(ALIKE), sets, CLEAN)
    told = refused(site, run, items=encode_items(ALIKE), sets=sets, metrics=counted(7), verdict=right)
    assert "duplicates: expected (7, 0), as the metrics say, got (0, 0)" in told
    told = refused(site, run, items=encode_items(ALIKE), sets=sets, metrics={})
    assert "duplicates: expected a count, got (None, None)" in told


def test_the_released_version_is_evaluated_on_a_set_that_it_was_not_evaluated_on(site: LogBuilder) -> None:
    release(site)
    run = site.train(gates=AGAINST_RELEASED)
    theirs = {"items-exam-released.jsonl": encode_items(ALIKE)}
    sets = {EXAM: encode_items(BETTER)}
    told = refused(site, run, version=2, items=encode_items(ALIKE), sets=sets, metrics=CLEAN)
    assert "('released', 'exam'): None" in told
    site.seal(run, 2, items=encode_items(ALIKE), sets=sets | theirs, metrics=CLEAN)
    found = verdict_of(site, 2)
    assert found.passed and {one.model: one.digest for one in found.evaluated} == {
        "released": digest_bytes(encode_items(ALIKE)),
        "run": digest_bytes(encode_items(BETTER)),
    }


def test_the_released_version_is_not_evaluated_again_where_its_record_has_the_rows(site: LogBuilder) -> None:
    seal(site, gates=ON_EXAM)
    for name, field in (("rita", "privacy"), ("raul", "model-risk")):
        site.review(name, field)
    site.activate()
    run = site.train(gates=AGAINST_RELEASED)
    site.seal(run, 2, items=encode_items(ALIKE), sets={EXAM: encode_items(LUCKY)}, metrics=CLEAN)
    by_model = {one.model: one.digest for one in verdict_of(site, 2).evaluated}
    assert by_model["released"] == digest_bytes(encode_items(BETTER))


# A set that is revoked.


def test_a_run_of_a_revoked_set_is_not_sealed(site: LogBuilder) -> None:
    run = site.train(gates=ON_EXAM)
    site.revoke_set()
    told = refused(site, run, items=encode_items(ALIKE), sets={EXAM: encode_items(BETTER)}, metrics=CLEAN)
    assert "Validation set exam@1 was revoked by entry" in told


def test_approvals_that_rest_on_a_revoked_set_go_stale_and_none_is_given(site: LogBuilder) -> None:
    seal(site)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None and not find_blockers(site.state, adapter, "legal", site.now)
    site.revoke_set()
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    assert "approvals-missing" in {one.code for one in find_blockers(site.state, adapter, "legal", site.now)}
    status = find_review_status(site.state, adapter, adapter.reviews[0], site.now)
    assert status.state == "stale" and "Validation set exam@1 was revoked" in str(status.refusal)
    with pytest.raises(ApplianceError, match="Validation set exam@1 was revoked"):
        site.review("rita", "privacy", valid_until=add_seconds(site.now, 600))


def test_what_answers_on_a_revoked_set_answers_no_more(site: LogBuilder) -> None:
    seal(site)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.activate()
    site.load()
    site.add(site.request(1))
    site.revoke_set()
    with pytest.raises(ApplianceError, match=r"Adapter clauses@1 needs 2 valid approvals for legal and has 0\."):
        site.add(site.request(2))


def test_an_earlier_evaluation_had_no_other_sets() -> None:
    """Rows of a state that an earlier build wrote are read as they are."""
    value = {name: None for name in ("gates", "verdict", "target_passed", "regression_passed", "passed")}
    row = AdapterEvaluation(adapter="a@1", run="r-000001", dataset="d@1", items="sha256:" + "0" * 64, index=1, **value)
    assert row.sets == ()
