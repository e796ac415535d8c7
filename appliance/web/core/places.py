"""So many requests at once, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import TooMany


class Places:
    """All of them live in one event loop. `most_of_one`: of those that one asker has at once; None: as many as all."""

    def __init__(self, most: int, what: str = "requests", most_of_one: int | None = None) -> None:
        self._most = most
        self._most_of_one = most if most_of_one is None else most_of_one
        self._what = what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, who: str = "") -> Iterator[None]:
        """TooMany where all are taken, or those of this asker."""
        if self._taken.total() >= self._most:
            raise TooMany(f"{self._what}: expected fewer than {self._most} at once, got one more")
        if self._taken[who] >= self._most_of_one:
            raise TooMany(f"{self._what}: expected fewer than {self._most_of_one} at once of yours, got one more")
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            self._taken += Counter()  # forgets who has none
