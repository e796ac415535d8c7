"""Whether this process knows the ledger of now: beside other processes it must, to answer and to append.

What others append, such as a revocation, reaches this process through the database alone. Where that was not reached
for `SILENT_S`, nothing is answered and nothing is appended until it is, and the state has caught up. Others take over
from a process after twice that time (`store/database/processes.py`), so whoever is taken over from has stopped by then.
"""

from __future__ import annotations

import math
import threading
import time

from appliance.errors import Unavailable

SILENT_S = 5.0


def now_s() -> float:
    """A clock that goes on while the host is suspended: others do not wait for one that sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Contact:
    """Without a `made`, the ledger is this process's alone, and contact never ends."""

    def __init__(self) -> None:
        self._at, self._is_over = math.inf, False
        self._lock = threading.Lock()

    def made(self, began: float) -> None:
        """The state holds whatever was in the ledger at this moment of `now_s`, and was acted upon."""
        with self._lock:
            self._at = began if self._at is math.inf else max(self._at, began)

    def end(self) -> None:
        """For good: others have taken over."""
        self._is_over = True

    @property
    def is_lost(self) -> bool:
        return self._is_over or now_s() - self._at > SILENT_S

    def check(self) -> None:
        """Unavailable (`no-contact`) while the ledger of now is not known here."""
        if self.is_lost:
            raise Unavailable(
                f"ledger: expected contact with the database in the last {SILENT_S:.0f} s, got none; nothing is "
                "answered or recorded until it is back",
                code="no-contact",
            )
