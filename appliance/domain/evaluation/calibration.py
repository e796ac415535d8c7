"""How far a model's confidence can be believed, of adapter and base on one set: a value for the review."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field

from appliance.domain.core.names import Canonical
from appliance.domain.evaluation.items import SCALE, Item, kinds_of
from appliance.domain.evaluation.measures import Signed
from appliance.domain.evaluation.statistics import calibration
from appliance.domain.evaluation.statistics.bootstrap import Bootstrap
from appliance.domain.evaluation.statistics.generator import stream_key
from appliance.domain.evaluation.statistics.numbers import write_down, write_near, write_up
from appliance.errors import BadInput

RESAMPLES = 999
"""Of each interval; nothing is decided by them."""
LEVEL = Fraction(1, 40)
"""One-sided: intervals of 95 %."""

Model = Literal["adapter", "base"]


class Estimate(Canonical):
    """A number from 0 to 1 with its 95 % interval; an end that the resamples cannot give is 0 or 1."""

    lower: Signed
    upper: Signed
    value: Signed


class CalibrationBin(Canonical):
    """Answers of a confidence above number/10, up to (number + 1)/10: their mean confidence, and the share right."""

    confidence: Signed | None
    items: int = Field(ge=0)
    right: Signed | None


class Calibration(Canonical):
    """`error`: expected calibration error; `brier`: mean Brier score of the chosen label."""

    bins: tuple[CalibrationBin, ...]
    brier: Estimate
    error: Estimate
    items: int = Field(ge=1)
    model: Model


def measure_calibration(items: Sequence[Item], model: Model, seed: int) -> Calibration:
    """BadInput where the answers have no confidence, or are neither right nor wrong.

    The generator's purpose is `calibration/MODEL`, for both intervals.
    """
    answers = []
    for item in items:
        answer = getattr(item, model)
        if answer.confidence is None or answer.right is None:
            got = ", ".join(kinds_of(answer)) or "nothing"
            raise BadInput(f"items, calibration: expected right and confidence in every answer, got {got}")
        answers.append((answer.confidence, answer.right))
    clusters, key = [item.cluster for item in items], stream_key(seed, f"calibration/{model}")
    return Calibration(
        bins=tuple(_bin(found) for found in calibration.count_bins(answers)),
        brier=_estimate(calibration.bootstrap_brier(answers, clusters, key, RESAMPLES), SCALE),
        error=_estimate(calibration.bootstrap_error(answers, clusters, key, RESAMPLES), 1),
        items=len(answers),
        model=model,
    )


def _bin(found: calibration.Bin) -> CalibrationBin:
    if not found.items:
        return CalibrationBin(confidence=None, items=0, right=None)
    return CalibrationBin(
        confidence=write_near(Fraction(found.confidence, calibration.WHOLE * found.items)),
        items=found.items,
        right=write_near(Fraction(found.right, found.items)),
    )


def _estimate(drawn: Bootstrap, scale: int) -> Estimate:
    lower, upper = drawn.lower(LEVEL), drawn.upper(LEVEL)
    return Estimate(
        lower=write_down(Fraction(0) if lower is None else lower / scale),
        upper=write_up(Fraction(1) if upper is None else upper / scale),
        value=write_near(drawn.estimate / scale),
    )
