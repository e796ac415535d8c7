"""When a run stops early: decided from the recorded validation losses, so that every verifier can decide it again.

The loop asks while it trains, the rule of `run.finished` asks again, and so does every verifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal as Number

Reading = tuple[int, str]
"""A step, and the validation loss after it."""


def is_read(step: int, planned: int, every: int) -> bool:
    """Whether the validation loss is read after this step: each so many steps, and after the last; 0: never."""
    return every > 0 and (step % every == 0 or step == planned)


def count_readings(step: int, planned: int, every: int) -> int:
    """So many were made by the end of this step."""
    if every == 0:
        return 0
    return step // every + (step == planned and step % every != 0)


def read_steps(step: int, planned: int, every: int) -> tuple[int, ...]:
    """After which steps they were made."""
    return tuple(
        planned if number * every > planned else number * every
        for number in range(1, count_readings(step, planned, every) + 1)
    )


def best_step(readings: Sequence[Reading]) -> int:
    """The step of the lowest loss, the first of equals."""
    return min(readings, key=lambda reading: (Number(reading[1]), reading[0]))[0]


def stops(readings: Sequence[Reading], patience: int) -> bool:
    """Whether the last `patience` readings are none lower than the best before them; never with a patience of 0."""
    if not patience or len(readings) <= patience:
        return False
    return best_step(readings) <= readings[-patience - 1][0]
