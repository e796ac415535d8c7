"""Arithmetic for verdicts: integers, fractions, and decimals of 60 digits, but no floats.

Python's Decimal rounds sums, products, quotients, roots, exponentials and logarithms correctly (General Decimal
Arithmetic, IEEE 754-2008). With the context that is fixed here, every machine computes the same digits.
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
"""Decimal places of every stored number."""
UNIT = 10**PLACES
"""The number of steps of the last stored place in 1."""
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
    """Make a function compute in CONTEXT, whatever decimal context its caller has."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with localcontext(CONTEXT):
            return function(*args, **kwargs)

    return inside


def to_decimal(value: Fraction | int) -> Decimal:
    """Convert to a decimal of 60 digits, rounded once, half to even. Call it only in a `fixed` function."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def settle(value: Decimal) -> Fraction:
    """Round an irrational number to 20 places, half to even, before it is compared or written.

    The verdict then does not depend on the last digits, in which other algorithms may differ. Call it only in a `fixed`
    function.
    """
    return Fraction(value.quantize(_SETTLED))


def write_down(value: Fraction) -> str:
    """Write a lower bound: nine places, never above the value."""
    return _write(value.numerator * UNIT // value.denominator)


def write_up(value: Fraction) -> str:
    """Write an upper bound or a p-value: nine places, never below the value.

    For an alpha of at most nine places, the written p-value is at most alpha exactly if the p-value itself is.
    """
    return _write(-(-value.numerator * UNIT // value.denominator))


def write_near(value: Fraction) -> str:
    """Write an estimate: nine places, rounded half to even."""
    return _write(round(value * UNIT))


def _write(units: int) -> str:
    whole, rest = divmod(abs(units), UNIT)
    return f"{'-' if units < 0 else ''}{whole}.{rest:0{PLACES}d}"


def find_last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last integer from `low` to `high` for which `holds` is true, or `low` if there is none.

    `holds` must be true up to some integer and false after it.
    """
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
