"""What the service remembers of items that it has counted: no sealed file changes, and parsing thousands of lines takes
longer than all else of a review page."""

from __future__ import annotations

import threading
from collections import OrderedDict

from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.releases.page.material import SealedVersion
from appliance.domain.releases.page.page import Count, count_items

MOST_ROWS = 50_000
"""Labels and confusions that are kept, of all sets together: some 30 MB."""


class Counts:
    """Counts by the manifest and the file that holds the items; those not asked for the longest are forgotten first."""

    def __init__(self, most: int = MOST_ROWS, count: Count = count_items) -> None:
        self._most, self._count, self._rows = most, count, 0
        self._kept: OrderedDict[tuple[str, str], Confusion | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, version: SealedVersion, path: str) -> Confusion | None:
        """Of a version whose files were checked against its manifest."""
        key = version.digest, path
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._count(version, path)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._rows += _rows(found)
            while self._rows > self._most:
                _, forgotten = self._kept.popitem(last=False)
                self._rows -= _rows(forgotten)
        return found


def _rows(found: Confusion | None) -> int:
    return 1 if found is None else 1 + len(found.labels) + len(found.pairs)


COUNTS = Counts()
"""Of this process: the key says all that a count depends on."""
