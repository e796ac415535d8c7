"""Differential privacy of a recipe: its fields, its checks, and the epsilon of its noise.

Training uses DP-SGD (Abadi et al., 2016, https://arxiv.org/abs/1607.00133): each step samples every row with the same
probability, clips the gradient of each row to one norm, and adds Gaussian noise to their sum.
docs/guides/training.md explains what this covers and what it does not.

The epsilon is computed by Renyi differential privacy of this sampled Gaussian mechanism (Mironov, Talwar and Zhang,
2019, https://arxiv.org/abs/1908.10530). At whole orders the divergence is their finite sum. Between two whole orders,
(order - 1) times the divergence is convex in the order, so the chord is an upper bound. The sum over all steps is
converted to (epsilon, delta) by proposition 12 of Canonne, Kamath and Steinke (2020, https://arxiv.org/abs/2004.00010).
Two datasets are neighbours if one has a row more.

Decimal arithmetic of fixed precision gives every machine the same result, which a verifier compares as text.
docs/formats/private-training.md describes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_HALF_EVEN, Context, localcontext
from decimal import Decimal as Number
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from appliance.domain.core.names import Decimal, Value
from appliance.errors import BadInput

_ARITHMETIC = Context(prec=60, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX)
WHOLE_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
"""Whole Renyi orders at which the divergence is computed."""
TENTHS = 100
"""Tenths above order 1 up to which fractional orders are used, between whole ones."""
_SLACK = Number("1e-30")
"""Bound on all rounding errors, which is added to epsilon."""
PLACES, NOISE_PLACES = Number("0.000001"), Number("0.0001")
"""Steps of a written epsilon, and of a noise that is chosen."""
LEAST_NOISE, MOST_NOISE = Number("0.2"), Number("1000")
"""Range of the noise, as a multiple of the clipping norm. Less noise gives no useful guarantee."""


def find_epsilon(rows: int, expected: int, steps: int, noise: str, delta: str) -> str:
    """Return the epsilon of a run, rounded up to six places.

    `rows`: all rows that steps sample from. `expected`: the expected rows of a step. `noise`: the standard deviation as
    a multiple of the clipping norm.
    """
    with localcontext(_ARITHMETIC):
        found = _compute_epsilon(rows, min(expected, rows), steps, Number(noise), Number(delta))
        return f"{found.quantize(PLACES, ROUND_CEILING):f}"


def find_noise(rows: int, expected: int, steps: int, epsilon: str, delta: str) -> str:
    """Return the least noise, in steps of NOISE_PLACES from LEAST_NOISE on, whose epsilon is at most this.

    Raises: BadInput where even MOST_NOISE does not reach it.
    """
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
def _compute_epsilon(rows: int, expected: int, steps: int, noise: Number, delta: Number) -> Number:
    """Return the least epsilon over all orders, at least 0. Call it in the context of `_ARITHMETIC`."""
    least = min(
        steps * moment / (order - 1) + ((order - 1) / order).ln() - (delta.ln() + order.ln()) / (order - 1)
        for order, moment in _list_moments(rows, expected, noise)
    )
    return max(Number(0), least) * (1 + _SLACK) + _SLACK


def _list_moments(rows: int, expected: int, noise: Number) -> Iterator[tuple[Number, Number]]:
    """Yield (order, (order - 1) times the divergence of one step at this order, or an upper bound of that)."""
    whole = {order: _compute_moment(order, rows, expected, noise) for order in WHOLE_ORDERS}
    yield from ((Number(order), moment) for order, moment in whole.items())
    # At order 1 it is 0.
    whole[1] = Number(0)
    for tenth in range(11, TENTHS + 10):
        below, rest = divmod(tenth, 10)
        if rest:
            share = Number(rest) / 10
            yield Number(tenth) / 10, (1 - share) * whole[below] + share * whole[below + 1]


def _compute_moment(order: int, rows: int, expected: int, noise: Number) -> Number:
    """Return ln of the sum over k of C(order, k) (1 - q)^(order - k) q^k exp(k (k - 1) / (2 noise^2)).

    It is (order - 1) times the divergence of one step that samples rows with probability q.
    """
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


CLIP = "1.0"
"""Default clipping norm."""
_Auto = Literal["auto"]


class PrivacyParameters(Value):
    """The privacy of a recipe as its author writes it: either `noise` or `epsilon`, from which the other follows."""

    noise: Decimal | None = Field(None, description="standard deviation as a multiple of clip")
    epsilon: Decimal | None = Field(None, description="the largest acceptable epsilon, from which noise follows")
    clip: Decimal | _Auto = Field("auto", description="norm that the gradient of each row is clipped to; auto: 1")
    delta: Decimal | _Auto = Field(
        "auto", description="delta of the guarantee; auto: the largest power of ten below a tenth of 1 / rows"
    )

    @model_validator(mode="after")
    def _check_noise_or_epsilon(self) -> PrivacyParameters:
        if (self.noise is None) == (self.epsilon is None):
            got = "neither" if self.noise is None else "both"
            raise ValueError(f"expected noise or epsilon, got {got}")
        return self


class ResolvedPrivacy(Value):
    """The privacy of a resolved recipe."""

    noise: Decimal = Field(description="standard deviation as a multiple of clip")
    clip: Decimal = Field(description="norm that the gradient of each row is clipped to")
    epsilon: Decimal = Field(description="epsilon of the noise at this delta, rounded up")
    delta: Decimal


WrittenPrivacy = Annotated[
    PrivacyParameters | None,
    Field(
        description="differential privacy for each training row: {epsilon: 3} or {noise: 1.1}, optionally with clip "
        "and delta; the noise for an epsilon is computed"
    ),
]


def resolve_privacy(written: Mapping[str, Any], rows: int, expected: int, steps: int) -> dict[str, str]:
    """Return the fields of a ResolvedPrivacy.

    Raises: BadInput for an epsilon that no noise reaches, or a noise or delta outside its range.
    """
    clip = CLIP if written["clip"] == "auto" else written["clip"]
    delta = choose_delta(rows) if written["delta"] == "auto" else written["delta"]
    noise = written["noise"]
    if problem := _find_delta_problem(delta, rows):
        raise BadInput(problem)
    if noise is None:
        noise = _find_noise(rows, expected, steps, written["epsilon"], delta)
    elif problem := _find_noise_problem(noise):
        raise BadInput(problem)
    return {"noise": noise, "clip": clip, "delta": delta, "epsilon": find_epsilon(rows, expected, steps, noise, delta)}


_find_noise = lru_cache(maxsize=64)(find_noise)


def choose_delta(rows: int) -> str:
    """Return the default delta: the largest power of ten below a tenth of 1 / rows."""
    return f"0.{'0' * len(str(rows))}1"


def list_privacy_problems(
    privacy: ResolvedPrivacy,
    recipe: Mapping[str, Any],
    rows: object,
    steps: int,
    rows_a_step: int,
    *,
    preferences: bool,
) -> list[str]:
    """Return what is wrong with the privacy of a recipe, each as one sentence. `recipe` has the recipe's values."""
    problems = _find_value_problems(recipe)
    if preferences:
        problems.append("recipe, privacy: expected none for preferences, whose reference is not accounted for")
    if not Number(privacy.clip):
        problems.append("recipe, privacy, clip: expected a number above 0, got 0.0")
    if problem := _find_noise_problem(privacy.noise):
        return [*problems, problem]
    if not isinstance(rows, int):
        return [
            *problems,
            f"recipe, privacy: expected a dataset whose training rows are counted, got {recipe['dataset']}",
        ]
    if problem := _find_delta_problem(privacy.delta, rows):
        return [*problems, problem]
    found = find_epsilon(rows, rows_a_step, steps, privacy.noise, privacy.delta)
    if privacy.epsilon != found:
        problems.append(
            f"recipe, privacy, epsilon: expected {found}, which noise {privacy.noise} comes to in {steps} steps among "
            f"{rows} rows at delta {privacy.delta}, got {privacy.epsilon}"
        )
    return problems


def _find_value_problems(recipe: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the recipe's other values.

    They must not reveal more of a row than its clipped gradient does, and privacy must use them.
    """
    problems = []
    if recipe["early_stopping"] or recipe["eval_steps"] or Number(recipe["validation"]):
        problems.append(
            "recipe, validation: expected 0.0, and no early stopping, with privacy, since validation losses are "
            f"recorded without noise, got {recipe['validation']} with early_stopping {recipe['early_stopping']}"
        )
    if Number(recipe["max_grad_norm"]):
        problems.append(
            "recipe, max_grad_norm: expected 0.0 or auto with privacy, where clip bounds each row, "
            f"got {recipe['max_grad_norm']}"
        )
    if Number(recipe["dropout"]):
        problems.append(f"recipe, dropout: expected 0.0 or auto with privacy, got {recipe['dropout']}")
    if recipe["processes"] != 1:
        problems.append(f"recipe, processes: expected 1 with privacy, got {recipe['processes']}")
    return problems


def _find_noise_problem(noise: str) -> str | None:
    if LEAST_NOISE <= Number(noise) <= MOST_NOISE:
        return None
    return f"recipe, privacy, noise: expected {LEAST_NOISE} to {MOST_NOISE}, got {noise}"


def _find_delta_problem(delta: str, rows: int) -> str | None:
    if 0 < Number(delta) * rows < 1:
        return None
    return (
        f"recipe, privacy, delta: expected more than 0 and less than 1 / {rows}, one row among those that are trained "
        f"on, got {delta}"
    )
