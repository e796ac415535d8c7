"""What a private run reveals of one row: (epsilon, delta) of its noise, by Renyi differential privacy. Pure.

A step draws each row with probability q, adds up gradients of a bounded norm, and adds Gaussian noise: the sampled
Gaussian mechanism (Mironov, Talwar and Zhang, 2019, https://arxiv.org/abs/1908.10530). Its divergence at a whole order
is their finite sum. Between two whole orders (order - 1) times the divergence is convex in the order, so the chord is a
bound. All steps add up, and become (epsilon, delta) by Canonne, Kamath and Steinke (2020,
https://arxiv.org/abs/2004.00010), proposition 12. Two datasets are neighbours where one has a row more.

Computed in decimal arithmetic of fixed precision, which every machine rounds alike, so that a verifier gets the same
text; docs/formats/private-training.md is the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_HALF_EVEN, Context, localcontext
from decimal import Decimal as Number
from functools import lru_cache

from appliance.errors import BadInput

_ARITHMETIC = Context(prec=60, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX)
WHOLE_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
TENTHS = 100
"""Orders between two whole ones are tenths, up to this many of them above 1."""
_SLACK = Number("1e-30")
"""More than all roundings together can have taken off."""
PLACES, NOISE_PLACES = Number("0.000001"), Number("0.0001")
LEAST_NOISE, MOST_NOISE = Number("0.2"), Number("1000")
"""As a multiple of the clipping norm. Less protects nothing that could be said in numbers."""


def find_epsilon(rows: int, expected: int, steps: int, noise: str, delta: str) -> str:
    """The epsilon of so many steps, rounded up to six places. `rows`: all that are drawn from, of which a step is
    expected to have `expected`; `noise`: standard deviation as a multiple of the clipping norm."""
    with localcontext(_ARITHMETIC):
        found = _find(rows, min(expected, rows), steps, Number(noise), Number(delta))
        return f"{found.quantize(PLACES, ROUND_CEILING):f}"


def find_noise(rows: int, expected: int, steps: int, epsilon: str, delta: str) -> str:
    """The least noise, to four places and at least `LEAST_NOISE`, whose epsilon is at most this; BadInput where
    `MOST_NOISE` does not reach it."""
    aim = Number(epsilon)
    lowest = find_epsilon(rows, expected, steps, f"{MOST_NOISE:f}", delta)
    if Number(lowest) > aim:
        raise BadInput(
            f"recipe, privacy, epsilon: expected at least {lowest}, which noise of {MOST_NOISE} times the clipping "
            f"norm reaches in {steps} steps of {min(expected, rows)} among {rows} rows at delta {delta}, got {epsilon}"
        )
    low, high = int(LEAST_NOISE / NOISE_PLACES), int(MOST_NOISE / NOISE_PLACES)
    while low < high:
        middle = (low + high) // 2
        if Number(find_epsilon(rows, expected, steps, str(middle * NOISE_PLACES), delta)) <= aim:
            high = middle
        else:
            low = middle + 1
    return str(low * NOISE_PLACES)


@lru_cache(maxsize=256)
def _find(rows: int, expected: int, steps: int, noise: Number, delta: Number) -> Number:
    """Within the arithmetic: the least epsilon over all orders, never below 0."""
    least = min(
        steps * moment / (order - 1) + ((order - 1) / order).ln() - (delta.ln() + order.ln()) / (order - 1)
        for order, moment in _list_moments(rows, expected, noise)
    )
    return max(Number(0), least) * (1 + _SLACK) + _SLACK


def _list_moments(rows: int, expected: int, noise: Number) -> Iterator[tuple[Number, Number]]:
    """(order, (order - 1) times the divergence of one step at it, or a bound on that)."""
    whole = {order: _moment(order, rows, expected, noise) for order in WHOLE_ORDERS}
    yield from ((Number(order), moment) for order, moment in whole.items())
    # At order 1 it is 0.
    whole[1] = Number(0)
    for tenth in range(11, TENTHS + 10):
        below, rest = divmod(tenth, 10)
        if rest:
            share = Number(rest) / 10
            yield Number(tenth) / 10, (1 - share) * whole[below] + share * whole[below + 1]


def _moment(order: int, rows: int, expected: int, noise: Number) -> Number:
    """ln of the sum over k of C(order, k) (1 - q)^(order - k) q^k exp(k (k - 1) / (2 noise^2))."""
    per_square = 1 / (2 * noise * noise)
    if expected == rows:
        return order * (order - 1) * per_square
    share, other = Number(expected) / rows, Number(rows - expected) / rows
    step, ratio = (2 * per_square).exp(), share / other
    term, growth, total = other**order, Number(1), Number(0)
    for k in range(order + 1):
        total += term
        # From k to k + 1 the exponent grows by 2 k / (2 noise^2).
        term = term * (order - k) / (k + 1) * ratio * growth
        growth *= step
    return total.ln()
