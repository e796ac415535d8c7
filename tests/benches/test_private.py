"""The table of `scripts/bench private`. No time is asserted; the real workers train and evaluate."""

from __future__ import annotations

from scripts.benches.private import FULL, QUICK, PrivateResult, table


def test_a_row_shows_what_its_epsilon_cost_beside_a_run_without() -> None:
    plain = PrivateResult(None, 160, 8, "0.9", "0.8", "0.1", (), 2_000_000)
    noisy = {"epsilon": "7.99", "delta": "0.0001", "noise": "0.5", "clip": "1.0"}
    private = PrivateResult(noisy, 160, 8, "0.5", "0.4", "0.1", (0.5, 0.4, 0.45), 3_000_000)
    _, _, without, with_it = table([plain, private])
    assert without == "| – | – | – | 160 | 8 | 0.900 | 0.800 | – | 2 | 0.100 |"
    assert with_it == "| 7.99 | 0.0001 | 0.5 | 160 | 8 | 0.500 | 0.400 | 0.45 (0.40 to 0.50) | 3 | 0.100 |"


def test_every_plan_begins_with_the_run_that_the_others_are_compared_with() -> None:
    assert [plan.epsilons[0] for plan in (FULL, QUICK)] == [None, None]
    assert all(plan.written["batch_size"] * plan.written["gradient_accumulation_steps"] >= 40 for plan in (FULL, QUICK))
