"""The confusion matrix and the calibration of one set, computed from its items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from pydantic import Field

from appliance.domain.core.names import Canonical, Identifier, Value
from appliance.domain.evaluation.comparison import Signed
from appliance.domain.evaluation.items import SCALE, EvaluationItem, kinds_of
from appliance.domain.evaluation.statistics import calibration
from appliance.domain.evaluation.statistics.numbers import write_down, write_near, write_up
from appliance.domain.evaluation.statistics.resampling import Bootstrap, stream_key
from appliance.errors import BadInput


class ConfusedLabels(Value):
    """The rows of one label for which the adapter chose a certain other label.

    `base_items` is the number of rows for which the base chose that label.
    """

    expected: str
    answered: str
    items: int = Field(ge=0)
    base_items: int = Field(ge=0)


class LabelCount(Value):
    """The rows of one label. `answered` is the number of rows of any label for which the adapter chose this one."""

    label: str
    items: int = Field(ge=0)
    answered: int = Field(ge=0)
    right: int = Field(ge=0)
    base_right: int = Field(ge=0)


class Confusion(Value):
    """The confusion matrix of a set, without its zeros.

    `pairs`: the adapter's confusions, the most frequent first. `labels`: every label that is expected or chosen,
    sorted. The diagonal of the matrix is `right` of each label.
    """

    set: Identifier
    items: int = Field(ge=1)
    right: int = Field(ge=0)
    base_right: int = Field(ge=0)
    labels: tuple[LabelCount, ...]
    pairs: tuple[ConfusedLabels, ...]


def count_confusions(items: Sequence[EvaluationItem], set_name: str) -> Confusion | None:
    """Return the confusion matrix of a set; None where a row or an answer has no label."""
    triples = [(item.slices.label, item.adapter.label, item.base.label) for item in items]
    if not triples or any(None in triple for triple in triples):
        return None
    known = [(str(expected), str(ours), str(theirs)) for expected, ours, theirs in triples]
    adapter_counts = Counter((expected, chosen) for expected, chosen, _ in known)
    base_counts = Counter((expected, chosen) for expected, _, chosen in known)
    expected, answered = Counter(row[0] for row in known), Counter(row[1] for row in known)
    labels = sorted({*expected, *answered, *(row[2] for row in known)})
    wrong = [(pair, count) for pair, count in adapter_counts.items() if pair[0] != pair[1]]
    return Confusion(
        set=set_name,
        items=len(known),
        right=sum(adapter_counts[label, label] for label in labels),
        base_right=sum(base_counts[label, label] for label in labels),
        labels=tuple(
            LabelCount(
                label=label,
                items=expected[label],
                answered=answered[label],
                right=adapter_counts[label, label],
                base_right=base_counts[label, label],
            )
            for label in labels
        ),
        pairs=tuple(
            ConfusedLabels(expected=pair[0], answered=pair[1], items=count, base_items=base_counts[pair])
            for pair, count in sorted(wrong, key=lambda one: (-one[1], one[0]))
        ),
    )


RESAMPLES = 999
"""Resamples of each calibration interval. No decision depends on them."""
LEVEL = Fraction(1, 40)
"""One-sided level of the interval's ends, which makes intervals of 95 %."""

Model = Literal["adapter", "base"]


class Estimate(Canonical):
    """A number from 0 to 1 with its 95 % interval. An end that the resamples do not determine is 0 or 1."""

    lower: Signed
    upper: Signed
    value: Signed


class CalibrationBin(Canonical):
    """The answers with a confidence above number/10 and at most (number + 1)/10.

    `confidence` is their mean confidence, and `right` the share of right answers; both are null where there are no
    answers.
    """

    confidence: Signed | None
    items: int = Field(ge=0)
    right: Signed | None


class ModelCalibration(Canonical):
    """The calibration of one model on one set.

    `error`: the expected calibration error. `brier`: the mean Brier score of the chosen label.
    """

    bins: tuple[CalibrationBin, ...]
    brier: Estimate
    error: Estimate
    items: int = Field(ge=1)
    model: Model


def measure_calibration(items: Sequence[EvaluationItem], model: Model, seed: int) -> ModelCalibration:
    """Return a model's calibration on these items.

    The generator's purpose is `calibration/MODEL`, for both intervals.

    Raises: BadInput where an answer has no confidence, or is neither right nor wrong.
    """
    answers = []
    for item in items:
        answer = getattr(item, model)
        if answer.confidence is None or answer.right is None:
            got = ", ".join(kinds_of(answer)) or "nothing"
            raise BadInput(f"items, calibration: expected right and confidence in every answer, got {got}")
        answers.append((answer.confidence, answer.right))
    clusters, key = [item.cluster for item in items], stream_key(seed, f"calibration/{model}")
    return ModelCalibration(
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
