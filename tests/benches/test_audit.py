"""The simulated audit of a run: never above the stated epsilon of a private run, and high for one without noise."""

from __future__ import annotations

import pytest

from scripts.benches.audit import bound_epsilon, simulate, table


def test_the_bound_of_a_perfect_auditor_is_that_of_the_coins_alone() -> None:
    """All of 100 guesses right: (e^x / (1 + e^x))^100 is 0.05."""
    assert bound_epsilon(400, 100, 100, 0.0) == pytest.approx(3.4923, abs=0.001)
    assert bound_epsilon(400, 100, 50, 0.0) == 0.0
    assert bound_epsilon(400, 100, 100, 0.001) < 3.4


@pytest.mark.thorough
@pytest.mark.parametrize("epsilon", ["8.0", "3.0", "1.0"])
def test_no_simulated_audit_shows_more_than_a_private_run_states(epsilon: str) -> None:
    assert max(simulate(epsilon, 100, 20).lower) < float(epsilon)


def test_without_noise_every_simulated_audit_shows_that_rows_are_told() -> None:
    found = simulate(None, 100, 20)
    assert min(found.lower) > 2
    assert table([found])[2].startswith("| none | 0 | 100 | ")
