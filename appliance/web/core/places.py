"""So many requests at once, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import TooMany


class Places:
    """All of them live in one event loop."""

    def __init__(self, most: int, what: str = "requests") -> None:
        self._most = most
        self._what = what
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """TooMany where all are taken."""
        if self._taken >= self._most:
            raise TooMany(f"{self._what}: expected fewer than {self._most} at once, got one more")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
