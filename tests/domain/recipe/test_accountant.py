"""The privacy accountant: an upper bound, near that of other accountants, and the same text on every machine."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext, localcontext
from typing import Any

import pytest

from appliance.domain.recipe import privacy
from appliance.domain.recipe.privacy import find_epsilon, find_noise
from appliance.errors import BadInput

MNIST = (60_000, 256, 14_062)
"""60 epochs of batches of 256: the example of TensorFlow Privacy's tutorial."""
PUBLISHED = [
    (*MNIST, "1.1", "0.00001", 2.5965558),
    (*MNIST, "4.0", "0.00001", 0.4942408),
    (343, 8, 215, "1.0", "0.001", 1.6884437),
    (343, 8, 215, "0.5", "0.001", 11.3345630),
    (343, 343, 20, "5.0", "0.001", 3.0894711),
    (10_000, 64, 780, "0.8", "0.00001", 2.4224349),
]
"""What dp-accounting 0.6.0 says with its own orders (RdpAccountant, PoissonSampledDpEvent, GaussianDpEvent)."""


@pytest.mark.parametrize(("rows", "expected", "steps", "noise", "delta", "theirs"), PUBLISHED)
def test_it_never_says_less_than_dp_accounting_and_hardly_more(
    rows: int, expected: int, steps: int, noise: str, delta: str, theirs: float
) -> None:
    found = float(find_epsilon(rows, expected, steps, noise, delta))
    assert theirs <= found <= 1.04 * theirs


def divergence(order: float, share: float, noise: float) -> float:
    """(order - 1) times the Rényi divergence of the mixture from the plain noise, integrated by Simpson's rule."""
    wide, parts = 10 * noise + order, 4_000
    width = 2 * wide / parts
    total = 0.0
    for place in range(parts + 1):
        x = -wide + place * width
        ratio = 1 - share + share * math.exp((2 * x - 1) / (2 * noise * noise))
        weight = 1 if place in (0, parts) else 4 if place % 2 else 2
        total += weight * math.exp(order * math.log(ratio) - x * x / (2 * noise * noise))
    return math.log(total * width / 3 / (noise * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize(("rows", "expected", "noise"), [(100, 8, 1.0), (50, 20, 2.0), (1000, 10, 0.7)])
def test_epsilon_is_the_least_over_the_orders_of_the_integrated_divergence(
    rows: int, expected: int, noise: float
) -> None:
    """At every order alone, by another way than the finite sum: no order gives less than what is said."""
    steps, delta = 40, 1e-4
    orders = [1 + number / 4 for number in range(2, 80)]
    bounds = [
        steps * divergence(order, expected / rows, noise) / (order - 1)
        + math.log((order - 1) / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in orders
    ]
    found = float(find_epsilon(rows, expected, steps, str(noise), "0.0001"))
    assert min(bounds) * (1 - 1e-3) <= found <= min(bounds) * 1.12


def test_more_noise_fewer_steps_a_larger_delta_and_rarer_rows_tell_less() -> None:
    usual = float(find_epsilon(1000, 50, 100, "1.0", "0.0001"))
    for less in (
        (1000, 50, 100, "1.1", "0.0001"),
        (1000, 50, 90, "1.0", "0.0001"),
        (1000, 50, 100, "1.0", "0.0005"),
        (1000, 40, 100, "1.0", "0.0001"),
    ):
        assert float(find_epsilon(*less)) < usual


def test_the_text_depends_on_no_setting_of_decimal_arithmetic() -> None:
    usual = find_epsilon(343, 8, 86, "0.9", "0.0001")
    with localcontext() as context:
        context.prec, context.rounding = 5, "ROUND_DOWN"
        privacy._compute_epsilon.cache_clear()
        assert find_epsilon(343, 8, 86, "0.9", "0.0001") == usual
    assert getcontext().prec == 28
    # Frozen: a verifier of any version says the same of a run of today.
    assert usual == FROZEN


FROZEN = "2.126231"


@pytest.mark.thorough
def test_noise_is_the_least_that_keeps_within_an_epsilon() -> None:
    found = find_noise(343, 8, 86, "3.0", "0.0001")
    below = str(Decimal(found) - Decimal("0.0001"))
    assert float(find_epsilon(343, 8, 86, found, "0.0001")) <= 3.0
    assert float(find_epsilon(343, 8, 86, below, "0.0001")) > 3.0
    assert find_noise(343, 8, 86, "999999.0", "0.0001") == "0.2000"


def test_an_epsilon_that_no_noise_reaches_is_refused_with_the_least_that_can_be() -> None:
    with pytest.raises(BadInput, match=r"privacy, epsilon: expected at least 0\.0\d+, which noise of 1000 times"):
        find_noise(343, 8, 86, "0.000001", "0.0001")


@pytest.mark.parametrize("rows", [8, 5])
def test_a_step_that_draws_every_row_is_the_gaussian_mechanism(rows: int) -> None:
    """Of which epsilon is known in a closed form for each order."""
    steps, noise, delta = 10, 8.0, 1e-3
    said: Any = find_epsilon(rows, 8, steps, "8.0", "0.001")
    orders = [1 + number / 100 for number in range(10, 20_000)]
    exact = min(
        steps * order / (2 * noise * noise) + math.log((order - 1) / order) - math.log(delta * order) / (order - 1)
        for order in orders
    )
    assert exact <= float(said) <= 1.01 * exact
