"""Accuracy and macro-F1, counted exactly and written as decimal text. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from appliance.errors import BadInput

_PLACES = Decimal("0.000001")


def accuracy(expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    """The share of rows answered as expected."""
    _check(expected, answered)
    return Fraction(sum(a == b for a, b in zip(expected, answered, strict=True)), len(expected))


def macro_f1(expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    """The mean over labels of F1; a label counts where it was expected or answered, and 0 where never hit."""
    _check(expected, answered)
    labels = sorted(set(expected) | set(answered))
    return sum((_f1(label, expected, answered) for label in labels), Fraction(0)) / len(labels)


def _f1(label: str, expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    hits = sum(a == b == label for a, b in zip(expected, answered, strict=True))
    # 2 precision recall / (precision + recall), in one fraction.
    return Fraction(2 * hits, expected.count(label) + answered.count(label))


def _check(expected: Sequence[str], answered: Sequence[str]) -> None:
    if not expected or len(expected) != len(answered):
        raise BadInput(
            f"metrics: expected as many answers as rows, at least one, got {len(answered)} of {len(expected)}"
        )


def encode_metric(value: Fraction) -> str:
    """Six places, half to even: `0.812500`."""
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return str(decimal.quantize(_PLACES, rounding=ROUND_HALF_EVEN))


def summarize(expected: Sequence[str], answered: Sequence[str]) -> dict[str, str | int]:
    """What a record holds of one evaluation."""
    return {
        "accuracy": encode_metric(accuracy(expected, answered)),
        "macro_f1": encode_metric(macro_f1(expected, answered)),
        "rows": len(expected),
    }
