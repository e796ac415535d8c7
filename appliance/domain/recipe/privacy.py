"""What a recipe says of differential privacy: how much noise, or how much may be told of a row. Pure.

DP-SGD (Abadi et al., 2016, https://arxiv.org/abs/1607.00133): each step draws every row with one probability, the
gradient of each row is clipped to one norm, and Gaussian noise is added to their sum. docs/training.md says what this
covers and what it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal as Number
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from appliance.domain.core.names import Decimal, Value
from appliance.domain.recipe.accountant import LEAST_NOISE, MOST_NOISE, find_epsilon, find_noise
from appliance.errors import BadInput

PRIVATE = ("qlora", "lora", "rslora", "lora-plus")
"""Methods whose every trained weight is LoRA's A or B, begun from random numbers: nothing of a row is in them before
the first step, and the gradient of each row is all that changes them."""
CLIP = "1.0"
FRACTIONS = ("noise", "epsilon", "clip", "delta")

_Auto = Literal["auto"]


class Privacy(Value):
    """What an author writes: `noise` or `epsilon`, and the other follows from it."""

    noise: Decimal | None = Field(None, description="standard deviation as a multiple of clip")
    epsilon: Decimal | None = Field(None, description="the most that may be told of a row")
    clip: Decimal | _Auto = Field("auto", description="the norm that a row's gradient is clipped to; auto: 1")
    delta: Decimal | _Auto = Field("auto", description="auto: the largest power of ten below a tenth of 1 / rows")

    @model_validator(mode="after")
    def _one(self) -> Privacy:
        if (self.noise is None) == (self.epsilon is None):
            got = "neither" if self.noise is None else "both"
            raise ValueError(f"expected noise or epsilon, got {got}")
        return self


class ResolvedPrivacy(Value):
    noise: Decimal = Field(description="standard deviation as a multiple of clip")
    clip: Decimal = Field(description="the norm that a row's gradient is clipped to")
    epsilon: Decimal = Field(description="what the noise comes to at this delta, rounded up")
    delta: Decimal


Written = Annotated[
    Privacy | None,
    Field(
        description="differential privacy for each training row: {epsilon: 3}, or {noise: 1.1}, and with it clip and "
        "delta; noise is chosen for an epsilon"
    ),
]


def resolve_privacy(written: Mapping[str, Any], rows: int, expected: int, steps: int) -> dict[str, str]:
    """The members of a ResolvedPrivacy. BadInput for an epsilon that no noise reaches."""
    clip = CLIP if written["clip"] == "auto" else written["clip"]
    delta = choose_delta(rows) if written["delta"] == "auto" else written["delta"]
    noise = written["noise"]
    if problem := _misfit_delta(delta, rows):
        raise BadInput(problem)
    if noise is None:
        noise = _find_noise(rows, expected, steps, written["epsilon"], delta)
    elif problem := _misfit_noise(noise):
        raise BadInput(problem)
    return {"noise": noise, "clip": clip, "delta": delta, "epsilon": find_epsilon(rows, expected, steps, noise, delta)}


_find_noise = lru_cache(maxsize=64)(find_noise)


def choose_delta(rows: int) -> str:
    """The largest power of ten below a tenth of 1 / rows."""
    return f"0.{'0' * len(str(rows))}1"


def misfits_privacy(
    privacy: ResolvedPrivacy, recipe: Mapping[str, Any], rows: object, steps: int, *, preferences: bool
) -> list[str]:
    """What is wrong with a private recipe, whose values these are, each as one sentence."""
    problems = _misfit_values(recipe)
    if preferences:
        problems.append("recipe, privacy: expected none for preferences, whose reference is not accounted for")
    if not Number(privacy.clip):
        problems.append("recipe, privacy, clip: expected a number above 0, got 0.0")
    if problem := _misfit_noise(privacy.noise):
        return [*problems, problem]
    if not isinstance(rows, int):
        return [
            *problems,
            f"recipe, privacy: expected a dataset whose training rows are counted, got {recipe['dataset']}",
        ]
    if problem := _misfit_delta(privacy.delta, rows):
        return [*problems, problem]
    expected = recipe["batch_size"] * recipe["accumulation"]
    found = find_epsilon(rows, expected, steps, privacy.noise, privacy.delta)
    if privacy.epsilon != found:
        problems.append(
            f"recipe, privacy, epsilon: expected {found}, which noise {privacy.noise} comes to in {steps} steps among "
            f"{rows} rows at delta {privacy.delta}, got {privacy.epsilon}"
        )
    return problems


def _misfit_values(recipe: Mapping[str, Any]) -> list[str]:
    """Values that would tell more of a row than its clipped gradient does, or that have nothing to do then."""
    problems = []
    if recipe["method"] not in PRIVATE:
        able = ", ".join(PRIVATE)
        problems.append(f"recipe, method: expected one of {able} with privacy, got {recipe['method']}")
    if recipe["early_stopping"] or recipe["validate_every"] or Number(recipe["validation"]):
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


def _misfit_noise(noise: str) -> str | None:
    if LEAST_NOISE <= Number(noise) <= MOST_NOISE:
        return None
    return f"recipe, privacy, noise: expected {LEAST_NOISE} to {MOST_NOISE}, got {noise}"


def _misfit_delta(delta: str, rows: int) -> str | None:
    if 0 < Number(delta) * rows < 1:
        return None
    return (
        f"recipe, privacy, delta: expected more than 0 and less than 1 / {rows}, one row among those that are trained "
        f"on, got {delta}"
    )
