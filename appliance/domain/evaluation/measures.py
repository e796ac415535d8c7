"""Numbers as a verdict writes them: decimal text of nine places."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from appliance.domain.core.words import form
from appliance.domain.evaluation.statistics.numbers import write_down, write_up

Signed = Annotated[str, form(r"^-?(?:0|[1-9][0-9]{0,17})\.[0-9]{9}$", "a decimal of nine places such as -0.012000000")]
PValue = Annotated[str, form(r"^(?:0\.[0-9]{9}|1\.0{9})$", "a decimal of nine places from 0 to 1")]


def write_bounds(interval: tuple[Fraction | None, Fraction | None]) -> tuple[str | None, str | None]:
    """Outwards: the written interval never is narrower than the computed one."""
    lower, upper = interval
    return None if lower is None else write_down(lower), None if upper is None else write_up(upper)


def show(value: Fraction | str) -> str:
    """Four places, half to even, for a sentence."""
    units = round(Fraction(value) * 10_000)
    return f"{'-' if units < 0 else ''}{abs(units) // 10_000}.{abs(units) % 10_000:04d}"


def show_p(value: Fraction) -> str:
    """`p 0.0312` or `p below 0.0001`."""
    return "p below 0.0001" if value < Fraction(1, 10_000) else f"p {show(value)}"
