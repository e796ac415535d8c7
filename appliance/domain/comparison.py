"""What a replay of a window of steps amounts to: the same bytes, the same within a tolerance, or different.

Bits are owed only on one kind of hardware and libraries. Where those are the same, or nothing could be measured, a
difference is a difference. docs/formats/training-checkpoint.md says how the tolerance was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal as Number
from typing import Any, Literal

Verdict = Literal["identical", "within-tolerance", "different"]

TOLERANCE = "0.02"
"""The largest distance between two ends of a window, as a share of what the window changed, for the worst weight."""


def judge(
    expected: str, got: str, *, recorded: Mapping[str, Any], machine: Mapping[str, Any], largest_difference: str | None
) -> Verdict:
    """The verdict over two digests, the machines that made them, and the difference where one was measured."""
    if expected == got:
        return "identical"
    if dict(recorded) == dict(machine) or largest_difference is None:
        return "different"
    return "within-tolerance" if Number(largest_difference) <= Number(TOLERANCE) else "different"
