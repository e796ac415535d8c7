"""Places for requests that run at the same time, divided fairly between units."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.domain.core.state import State
from appliance.errors import RateLimited


class SharedPlaces:
    """The places of a listener or an engine. A unit can always take its share, whatever the other units hold.

    The share is `most` divided by the number of units with a release, and at least one. Beyond its share a unit can
    take places while fewer than `most` are taken. So all units together hold fewer than twice `most`, or one more place
    for each unit if there are more units than places.
    """

    def __init__(self, what: str, most: int, count_units: Callable[[], int]) -> None:
        """Create the places. `what` is the subject of the refusal's message."""
        self._what = what
        self._most = most
        self._count_units = count_units
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Return the number of places that are taken now."""
        return self._held.total()

    def enter(self, unit: str) -> None:
        """Take a place.

        Raises:
            RateLimited: All places are taken, and the unit holds its share or more.
        """
        with self._lock:
            if self.taken >= self._most and self._held[unit] >= max(1, self._most // max(1, self._count_units())):
                raise RateLimited(
                    f"{self._what}: expected at most {self._most} requests at once, got one more; ask again"
                )
            self._held[unit] += 1

    @contextmanager
    def take(self, unit: str) -> Iterator[None]:
        """Hold a place during the block.

        Raises:
            RateLimited: All places are taken, and the unit holds its share or more.
        """
        self.enter(unit)
        try:
            yield
        finally:
            self.leave(unit)

    def leave(self, unit: str) -> None:
        """Give a place back."""
        with self._lock:
            self._held[unit] -= 1
            self._held += Counter()  # drops units that hold no place


def count_units(state: State) -> int:
    """Return the number of units that have a release."""
    return len({release.unit for release in list(state.releases.values())})
