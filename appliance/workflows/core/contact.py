"""The check that this process has read the ledger recently enough to serve requests and to append entries.

Entries of other processes, such as a revocation, reach this process through the database alone. If the process has not
read the database for `SILENT_S`, it serves and appends only after it has reached the database and has caught up. Other
processes take over its work after twice that time (`store/database/processes.py`), so it has stopped by then.
"""

from __future__ import annotations

import math
import threading
import time

from appliance.errors import Unavailable

SILENT_S = 5.0
"""Seconds without a read of the database after which contact is lost."""


def now_s() -> float:
    """Return the seconds of a clock that also runs while the host is suspended (CLOCK_BOOTTIME).

    Other processes do not wait for a suspended one, so the time of the suspension must count.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Contact:
    """The contact of this process with the database.

    Until the first call of `record_reading`, the ledger belongs to this process alone, and contact is never lost.
    """

    def __init__(self) -> None:
        self._at, self._is_over = math.inf, False
        self._lock = threading.Lock()

    def record_reading(self, began: float) -> None:
        """Record that the state holds and has applied every entry that was in the ledger at `began`, a time of
        `now_s`.
        """
        with self._lock:
            self._at = began if self._at is math.inf else max(self._at, began)

    def end(self) -> None:
        """End contact for good, because another process has taken over."""
        self._is_over = True

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the last read of the database, or None while the ledger belongs to this process."""
        return None if self._at is math.inf else max(0.0, now_s() - self._at)

    @property
    def is_lost(self) -> bool:
        """Return True if the last read of the database is too old or another process has taken over."""
        return self._is_over or now_s() - self._at > SILENT_S

    def check(self) -> None:
        """Raise an error if contact is lost.

        Raises:
            Unavailable: With the code `no-contact`, if contact is lost.
        """
        if self.is_lost:
            raise Unavailable(
                f"ledger: expected contact with the database in the last {SILENT_S:.0f} s, got none; nothing is "
                "answered or recorded until it is back",
                code="no-contact",
            )
