"""Local sets: shipped sets, tasks and metrics. An order binds each by its digest."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.imports import ImportRequested
from appliance.domain.evaluation.basis import count_evaluations, items_path, rows_of_local
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.items import EvaluationItem, encode_items
from appliance.domain.evaluation.shipped.sets import digest_set, list_shipped_rows
from appliance.errors import BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LogBuilder, manifest, stage
from tests.domain.evaluation.test_rules import (
    BETTER,
    evaluated,
    gates_file,
    one_gate,
    refused,
    sealed,
    verdict_of,
)

KEPT = one_gate(
    name="kept", kind="regression", set="general", claim="no-worse", test="tango", margin="0.1", least_items=200,
    chance="0.25", slices=["column"],
)  # fmt: skip
GATES = gates_file(gates=[one_gate(), KEPT])
TASK = gates_file(gates=[one_gate(), one_gate(name="task", set="harness-colours")])
ROWS = list_shipped_rows("general")
SAME = [Group(120, adapter=True, base=True, column="reading"), Group(80, adapter=False, base=False, column="reading")]


def on_general(*groups: Group) -> tuple[EvaluationItem, ...]:
    return make_items(groups or SAME, rows=ROWS)


def seal(site: LogBuilder, *groups: Group, gates: GatesFile = GATES, **fields: Any) -> None:
    version = len(site.state.evaluations.values()) + 1
    sets = {items_path("general"): encode_items(on_general(*groups))}
    defaults: dict[str, Any] = {"items": encode_items(BETTER), "sets": sets}
    site.seal(site.train(gates=gates), version, **defaults | fields)


@pytest.fixture
def site() -> LogBuilder:
    return stage("imported").fork()


def test_a_run_is_evaluated_on_the_set_whose_digest_its_order_bound(site: LogBuilder) -> None:
    seal(site)
    (found,) = evaluated(site).local_sets
    assert (found.set, found.digest) == ("general", digest_set("general"))
    assert found.items == digest_bytes(encode_items(on_general()))
    verdict = verdict_of(site)
    assert verdict.passed and [(one.set, one.items) for one in verdict.evaluated] == [
        ("general", 200),
        ("held-out", 100),
    ]


def test_what_was_forgotten_stops_a_run_that_is_better_at_its_task(site: LogBuilder) -> None:
    seal(site, Group(60, adapter=False, base=True, column="reading"), Group(140, adapter=True, base=True))
    verdict = verdict_of(site)
    assert (verdict.target_passed, verdict.regression_passed, verdict.passed) == (True, False, False)
    assert "accuracy 0.7000, base 1.000: not shown to be no worse by the margin 0.1" in str(verdict.results)
    (part,) = [one for one in verdict.results[1].slices if one.worse]
    assert (part.by, part.value) == ("column", "reading")


def test_where_the_base_guesses_there_is_nothing_to_lose_and_nothing_is_passed(site: LogBuilder) -> None:
    seal(site, Group(52, adapter=False, base=True), Group(148, adapter=False, base=False))
    verdict = verdict_of(site)
    assert [result.outcome for result in verdict.results] == ["passed", "not-informative"]
    assert verdict.results[1].reason == "not informative: base is not shown to be above chance (0.25)"
    assert verdict.passed


def test_an_order_binds_exactly_the_sets_that_its_gates_name(site: LogBuilder) -> None:
    bound = LocalSet(set="general", digest=digest_set("general"))
    for gates, local in ((GATES, ()), (gates_file(gates=[one_gate()]), (bound,)), (GATES, (bound, bound))):
        with pytest.raises(BadInput, match=r"sets of no log: expected (general|none), which its gates name, got"):
            site.request_run(gates=gates, local_sets=local)
    with pytest.raises(Denied, match=r"The order names sets of rows, and no gates file that uses them\."):
        site.request_run(local_sets=(bound,))


@pytest.mark.parametrize("name", ["elsewhere", "harness-colours-released"])
def test_a_name_that_no_set_of_this_machine_has_is_refused(site: LogBuilder, name: str) -> None:
    bound = LocalSet(set=name, digest=digest_bytes(b"texts"))
    order = site.train_order(gates=digest_bytes(b"gates"), sets=(), local_sets=(bound,))
    assert [reason.code for reason in list_refusal_reasons(site.state, order, site.now)] == ["local-set-name"]


def test_items_of_the_set_are_needed_and_none_may_be_dropped(site: LogBuilder) -> None:
    run = site.train(gates=GATES)
    assert "manifest: expected items-general.jsonl, got none" in refused(site, run, items=encode_items(BETTER))
    fewer = {items_path("general"): encode_items(on_general()[1:])}
    told = refused(site, run, items=encode_items(BETTER), sets=fewer)
    assert "verdict, run on general: expected 200 items, the rows of the set" in told


def test_a_set_that_had_other_texts_when_it_was_bound_has_as_many_items_as_were_evaluated(site: LogBuilder) -> None:
    """What another build of the appliance came with is not known here; its log still holds."""
    bound = (LocalSet(set="general", digest=digest_bytes(b"earlier texts")),)
    run = site.request_run(gates=GATES, local_sets=bound)
    for body in (site.started(run), site.checkpointed(run), site.finished(run)):
        site.add(body)
    items = make_items([Group(210, adapter=True, base=True)])
    site.seal(run, items=encode_items(BETTER), sets={items_path("general"): encode_items(items)})
    assert evaluated(site).local_sets[0].digest == digest_bytes(b"earlier texts")


def test_runs_on_the_same_dataset_count_as_tries_and_no_others(site: LogBuilder) -> None:
    bound = LocalSet(set="general", digest=digest_set("general"))
    seal(site)
    assert count_evaluations(site.state, rows_of_local(site.state, bound, "clauses@1")) == 1
    assert count_evaluations(site.state, rows_of_local(site.state, bound, "other@1")) == 0
    sealed(site)
    rows = rows_of_local(site.state, bound, "clauses@1")
    assert count_evaluations(site.state, rows) == 1, "a run that was not evaluated on it"
    seal(site)
    assert [one.evaluated_before for one in verdict_of(site, 3).evaluated] == [1, 2]


def test_a_dataset_under_another_name_is_no_first_try_where_its_held_out_rows_came_in_the_same_file(
    site: LogBuilder,
) -> None:
    bound = LocalSet(set="general", digest=digest_set("general"))
    seal(site)
    for name, file in (("copy", b"csv"), ("other", b"another csv")):
        order = site.dataset_order(dataset=name, file=digest_bytes(file))
        requested = site.ordered(ImportRequested(policy=site.in_force), order)
        body = site.dataset_imported(requested, dataset=f"{name}@1")
        site.add(body, documents={"manifest": manifest(name, 1, {"rows": b"rows"})})
    assert count_evaluations(site.state, rows_of_local(site.state, bound, "copy@1")) == 1
    assert count_evaluations(site.state, rows_of_local(site.state, bound, "other@1")) == 0


def test_a_task_of_lm_eval_is_evaluated_by_the_digest_of_its_folder(site: LogBuilder) -> None:
    sets = {items_path("harness-colours"): encode_items(BETTER)}
    site.seal(site.train(gates=TASK), items=encode_items(BETTER), sets=sets)
    (found,) = evaluated(site).local_sets
    assert (found.set, verdict_of(site).passed) == ("harness-colours", True)


def test_no_validation_set_has_the_name_of_a_set_of_no_log(site: LogBuilder) -> None:
    for name in ("general", "refusal", "harness-colours", "metric-rouge"):
        with pytest.raises(Denied, match=r"The name .* is reserved for other sets\."):
            site.import_set(validation_set=name)


def test_a_metric_needs_a_task_with_answers(site: LogBuilder) -> None:
    gates = gates_file(
        gates=[one_gate(), one_gate(name="metric", set="metric-rouge", metric="rouge1", test="bootstrap")]
    )
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(dataset="talk"))
    body = site.dataset_imported(requested, dataset="talk@1", facts={"dataset_kind": "chat"})
    site.add(body, documents={"manifest": manifest("talk", 1, {"rows": b"rows"})})
    with pytest.raises(Denied, match="Metrics of evaluate need a dataset of one of these kinds: classification,"):
        site.request_run(recipe={"dataset": "talk@1"}, gates=gates)
