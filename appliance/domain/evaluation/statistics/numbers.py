"""The arithmetic that a verdict rests on: integers, fractions, and decimals of 60 digits; never a float.

Decimal's sum, product, quotient, root, exponential and logarithm are rounded correctly (General Decimal Arithmetic,
IEEE 754-2008), so with a context that is fixed here every machine gets the same digits.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from fractions import Fraction
from functools import wraps
from typing import ParamSpec, TypeVar

PLACES = 9
"""Digits behind the point of everything that is stored."""
UNIT = 10**PLACES
CONTEXT = Context(
    prec=60,
    rounding=ROUND_HALF_EVEN,
    Emin=-999_999,
    Emax=999_999,
    capitals=1,
    clamp=0,
    traps=[InvalidOperation, DivisionByZero, Overflow],
)

_SETTLED = Decimal("1E-20")

P = ParamSpec("P")
R = TypeVar("R")


def fixed(function: Callable[P, R]) -> Callable[P, R]:
    """The function in CONTEXT, whatever context its caller has."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(CONTEXT):
            return function(*args, **kwargs)

    return inside


def to_decimal(value: Fraction | int) -> Decimal:
    """Rounded once, half to even, to 60 digits. Call it in a function that is `fixed`."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def settle(value: Decimal) -> Fraction:
    """To 20 places, half to even: an irrational number before it is compared or written. Call it in a `fixed` function.

    So a verdict does not depend on the last digits, in which another way to compute the same may differ.
    """
    return Fraction(value.quantize(_SETTLED))


def write_down(value: Fraction) -> str:
    """Nine places, never above the value: a lower bound."""
    return _write(value.numerator * UNIT // value.denominator)


def write_up(value: Fraction) -> str:
    """Nine places, never below the value: an upper bound, a p-value.

    A p-value that is written so is at most an alpha of nine places exactly where the p-value itself is.
    """
    return _write(-(-value.numerator * UNIT // value.denominator))


def write_near(value: Fraction) -> str:
    """Nine places, half to even: an estimate."""
    return _write(round(value * UNIT))


def _write(units: int) -> str:
    whole, rest = divmod(abs(units), UNIT)
    return f"{'-' if units < 0 else ''}{whole}.{rest:0{PLACES}d}"


def find_last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last integer from `low` to `high` for which it holds; it holds up to one and for none after. `low` if none"""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
