"""Sweeps: the runs that fall behind, and the limit on runs."""

from __future__ import annotations

import pytest

from appliance.domain.data.imports import ImportRequested
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.runs.replays import find_behind, is_rung
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, manifest, policy_set, stage
from tests.kit.refusals import refuses

VALIDATING = {"validation": "0.1", "eval_steps": 1}


def readings(*losses: float) -> list[tuple[int, str]]:
    return [(5 * number, f"{loss:.6f}") for number, loss in enumerate(losses, start=1)]


def test_rungs_double() -> None:
    assert [number for number in range(20) if is_rung(number)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("own", "others", "behind"),
    [
        ([2.0], [], False),
        ([2.0], [[1.0]], True),
        ([1.0], [[2.0]], False),
        ([1.0], [[1.0]], False),
        # Of three the better two go on.
        ([2.0], [[1.0], [3.0]], False),
        ([3.0], [[1.0], [2.0]], True),
        # Others that have not come there do not count, nor do those that were stopped before.
        ([1.0, 2.0], [[0.5], [3.0]], False),
        ([1.0, 2.0], [[0.5, 1.5], [3.0]], True),
        # The third reading is no rung.
        ([1.0, 1.0, 9.0], [[1.0, 1.0, 0.1]], False),
        ([1.0, 1.0, 0.1, 9.0], [[1.0, 1.0, 1.0, 1.0]], True),
    ],
)
def test_a_run_continues_from_a_rung_among_the_better_half(
    own: list[float], others: list[list[float]], behind: bool
) -> None:
    found = find_behind(readings(*own), [readings(*other) for other in others])
    assert (found is not None) == behind
    if found is not None:
        assert float(found[0]) == own[-1] > float(found[1])


@pytest.fixture
def site() -> LogBuilder:
    return stage("imported")


def test_a_sweep_orders_no_more_runs_than_policy_lets_it(site: LogBuilder) -> None:
    site.adopt(policy_set(most_sweep_runs=2))
    for _ in range(2):
        site.request_run(recipe=VALIDATING, sweep="choosing-1")
    with refuses(site, Denied, "Policy (most_sweep_runs) allows 2 runs in one sweep, together with the"):
        site.request_run(recipe=VALIDATING, sweep="choosing-1")
    site.request_run(recipe=VALIDATING)
    assert [run.sweep for run in site.state.runs.values()] == ["choosing-1"] * 2 + [None]


def test_another_name_does_not_get_around_the_count_while_runs_have_not_ended(site: LogBuilder) -> None:
    site.adopt(policy_set(most_sweep_runs=2))
    first, _ = (site.request_run(recipe=VALIDATING, sweep=f"choosing-{number}") for number in (1, 2))
    with refuses(site, Denied, "Policy (most_sweep_runs) allows 2 runs in one sweep, together with the"):
        site.request_run(recipe=VALIDATING, sweep="choosing-3")
    site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=first))
    site.request_run(recipe=VALIDATING, sweep="choosing-3")
    with refuses(site, Denied, "Policy (most_sweep_runs) allows 2 runs in one sweep, together with the"):
        site.request_run(recipe=VALIDATING, sweep="choosing-3")


def test_a_sweep_is_one_signer_s_on_one_dataset(site: LogBuilder) -> None:
    """Otherwise another person's runs under this name could fill the sweep, or have its own runs cancelled."""
    site.request_run(recipe=VALIDATING, sweep="choosing-1")
    site.enrol("oscar", "operator")
    with refuses(site, Denied, "The name of this sweep belongs to another person or another dataset."):
        site.request_run(recipe=VALIDATING, sweep="choosing-1", signer="oscar")
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    documents = {"manifest": manifest("clauses", 2, {"rows": b"others"})}
    site.add(site.dataset_imported(requested, dataset="clauses@2"), documents=documents)
    with refuses(site, Denied, "The name of this sweep belongs to another person or another dataset."):
        site.request_run(recipe={**VALIDATING, "dataset": "clauses@2"}, sweep="choosing-1")


def test_a_run_that_does_not_validate_is_of_no_sweep(site: LogBuilder) -> None:
    with refuses(site, Denied, "A sweep chooses a run by its validation losses. The recipe reads none."):
        site.request_run(sweep="choosing-1")
