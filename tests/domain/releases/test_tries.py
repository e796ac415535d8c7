"""A review page counts every run on the dataset, whatever the sweep's name and whoever ordered it."""

from __future__ import annotations

import pytest

from appliance.domain.queries.review.reported_state import count_previous_runs
from appliance.domain.queries.review.values import PreviousRuns
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.reports.review.words import describe_previous_runs
from scripts.kit.log_builder import LogBuilder, stage

VALIDATING = {"validation": "0.1", "eval_steps": 1}


@pytest.fixture
def site() -> LogBuilder:
    return stage("imported")


def test_runs_are_counted_under_every_name_until_the_adapter_is_sealed(site: LogBuilder) -> None:
    site.seal(site.train(), 1)
    assert count_previous_runs(site.state, site.state.adapters.get("clauses@1")) == PreviousRuns(
        runs=0, people=0, swept=0, sweeps=0, sealed=0, cancelled=0, failed=0
    )
    runs = [site.request_run(recipe=VALIDATING, sweep=f"choosing-{number}") for number in (1, 1, 2)]
    waiting = site.request_run(recipe=VALIDATING, sweep="choosing-2")
    for run in runs:
        site.add(site.started(run))
    for run in (*runs, waiting):
        site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=run))
    queued = site.request_run(recipe=VALIDATING, sweep="choosing-3")
    site.seal(site.train(), 2)
    site.request_run()
    found = site.state.runs.get(queued)
    assert found is not None and found.status == "queued", "of a sweep that has not come so far"
    assert count_previous_runs(site.state, site.state.adapters.get("clauses@2")) == PreviousRuns(
        runs=4, people=1, swept=3, sweeps=2, sealed=1, cancelled=3, failed=0
    )


def test_the_sentence_says_who_tried_how_often_and_what_became_of_it() -> None:
    one = PreviousRuns(runs=1, people=1, swept=0, sweeps=0, sealed=1, cancelled=0, failed=0)
    assert describe_previous_runs(one) == (
        "1 other run on this dataset before it was sealed, by 1 person. Sealed: 1, cancelled: 0, failed: 0."
    )
    many = PreviousRuns(runs=20, people=2, swept=16, sweeps=3, sealed=4, cancelled=15, failed=1)
    assert describe_previous_runs(many) == (
        "20 other runs on this dataset before it was sealed, by 2 people, 16 of them in 3 sweeps. "
        "Sealed: 4, cancelled: 15, failed: 1."
    )
    none = PreviousRuns(runs=0, people=0, swept=0, sweeps=0, sealed=0, cancelled=0, failed=0)
    assert describe_previous_runs(none).startswith("No other run")
