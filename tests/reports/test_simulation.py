"""The simulation of many hosts: a queue that is known, bounds that are the service's own, and bad arguments."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from scripts.simulating import __main__ as program
from scripts.simulating.model import Costs, Site, _waits, simulate


def test_the_wait_for_a_turn_is_that_of_a_queue_with_equal_service_times() -> None:
    """Pollaczek and Khinchine, M/D/1: load over twice what is idle, in service times."""
    costs = Costs(turn_s=1.0, entry_s=0.0)
    site = Site(hosts=1, requests=0.35)  # 0.7 entries a second, so that each turn has one
    waits = np.array(list(_waits(np.random.default_rng(3), site, costs, 20_000))) - 1.0
    assert waits.mean() == pytest.approx(0.7 / (2 * (1 - 0.7)), rel=0.05)


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    first, again, other = (simulate(Site(10, 1.0), Costs(), seed, 50) for seed in (1, 1, 2))
    assert (first.last_token == again.last_token).all() and (first.unloaded == again.unloaded).all()
    assert (first.last_token != other.last_token).any()


def test_more_hosts_never_make_a_revocation_quicker_and_none_is_slower_than_the_rule_of_silence() -> None:
    outcomes = [simulate(Site(hosts, 1.0, appender=True), Costs(), 1, 300) for hosts in (1, 100, 1_000)]
    medians = [float(np.median(one.last_token)) for one in outcomes]
    assert medians == sorted(medians)
    broken = simulate(Site(100, 1.0), replace(Costs(), loss=1.0, poll_s=3_600.0), 1, 20)
    assert 5.0 <= broken.last_token.max() < 5.1


def test_a_host_that_waits_for_its_cores_is_slower_by_that_wait_for_each_act() -> None:
    """The order, the reading of its entry, the worker and its word: four waits, of which two before the last token."""
    calm, busy = (simulate(Site(1, 1.0), Costs(core_wait_s=wait), 1, 4_000) for wait in (0.0, 0.5))
    assert busy.last_token.mean() - calm.last_token.mean() == pytest.approx(2 * 0.5, rel=0.05)
    assert busy.unloaded.mean() - calm.unloaded.mean() == pytest.approx(4 * 0.5, rel=0.05)


def test_a_ledger_that_cannot_keep_up_is_named_and_has_no_times() -> None:
    costs = replace(Costs(), wake_s=0.0)
    outcome = simulate(Site(1_000, 10.0), costs, 1)
    assert not outcome.keeps_up and outcome.busy >= 1 and outcome.last_token.size == 0
    assert outcome.bottleneck == "the ledger's turns"


@pytest.mark.parametrize("given", [["--hosts", "0"], ["--requests", "-1"], ["--workers", "0"], ["--core-wait", "-1"]])
def test_a_site_of_nothing_is_refused(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["simulate", *given])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2 and "simulate: site: expected" in capsys.readouterr().err


def test_the_program_prints_tables_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ([], ["--markdown"], ["--json"]):
        monkeypatch.setattr("sys.argv", ["simulate", "--hosts", "3", "--revocations", "20", *form])
        program.main()
    text = capsys.readouterr().out
    values = json.loads(text[text.rindex("\n[\n") :])
    assert [(one["hosts"], one["appender"]) for one in values] == [(3, False), (3, True)]
    assert all(
        0 < one["last_token_s"]["p50"] <= one["last_token_s"]["p99"] < one["unloaded_s"]["p99"] < 5 for one in values
    )
    assert "| 3 | each host | 6 |" in text
