"""Which prompt is read next, and when. A long prompt must not delay the short prompts or the tokens of other slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol, TypeVar

DRAWING = 2
"""While a long prompt is read, other requests get this many times its time to draw tokens."""


class Reading(Protocol):
    """What turns need of a running request: its slot, and whether its prompt takes more than one chunk."""

    slot: str | None
    is_long: bool


T = TypeVar("T", bound=Reading)


class Turns:
    """Slots take turns, and the requests of a slot are read in the order in which they came.

    While requests of other slots draw tokens, a long prompt is read for at most half the time in which they draw. So it
    takes at most a third of the time, whatever its length.
    """

    def __init__(self) -> None:
        self._number = count(1)
        self._last: dict[str | None, int] = {}
        self._lead_s = 0.0

    def choose(self, unread: Sequence[T], drawing: Sequence[T]) -> T | None:
        """The request to read a chunk of; None where there is none, or where it is the others' turn to draw."""
        may = [row for row in unread if self._lead_s <= 0 or not _holds_up(row, drawing)]
        if not may:
            return None
        chosen = min(may, key=lambda row: self._last.get(row.slot, 0))
        self._last[chosen.slot] = next(self._number)
        return chosen

    def spend_reading(self, row: Reading, drawing: Sequence[Reading], seconds: float) -> None:
        """What a chunk took."""
        if _holds_up(row, drawing):
            self._lead_s += seconds * DRAWING

    def spend_drawing(self, seconds: float) -> None:
        """What the tokens of a step took; what nothing was read in is not saved up."""
        self._lead_s = max(0.0, self._lead_s - seconds)

    def forget(self, slot: str) -> None:
        """A slot that is gone."""
        self._last.pop(slot, None)


def _holds_up(row: Reading, drawing: Sequence[Reading]) -> bool:
    return row.is_long and any(other.slot != row.slot for other in drawing)
