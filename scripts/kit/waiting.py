"""Waits for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

WAIT_S = 240.0
"""Seconds that nothing takes, also on a machine that does other work."""
PAUSE_S = 0.02

Found = TypeVar("Found")


def wait_for(
    find: Callable[[], Found], what: str | Callable[[], object] = "what was awaited", *, pause_s: float = PAUSE_S
) -> Found:
    """Return the first true value of `find`, which is called every `pause_s`.

    Raises:
        AssertionError: There is none within WAIT_S; it says `what` was expected.
    """
    deadline = time.monotonic() + WAIT_S
    while not (found := find()):
        if time.monotonic() > deadline:
            raise AssertionError(f"expected within {WAIT_S:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause_s)
    return found
