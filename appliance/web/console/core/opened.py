"""Which parts of review pages a browser's session has fetched: kept in memory, for as long as this process runs."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

from appliance.domain.core.decisions import Opened

_MOST = 4_096
"""Sessions times adapters; the longest unused is forgotten first, and its reviewer opens the parts again."""


class OpenedParts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[bytes, str], dict[str, str]] = OrderedDict()

    def note(self, secret: str, adapter: str, opened: Iterable[Opened]) -> None:
        """`secret`: the session's cookie, of which a digest is kept."""
        with self._lock:
            parts = self._found.setdefault(_key(secret, adapter), {})
            parts.update({one.part: one.digest for one in opened})
            self._found.move_to_end(_key(secret, adapter))
            while len(self._found) > _MOST:
                self._found.popitem(last=False)

    def of(self, secret: str, adapter: str) -> dict[str, str]:
        """The digest of each part as it was when this session last fetched it."""
        with self._lock:
            return dict(self._found.get(_key(secret, adapter), {}))


def _key(secret: str, adapter: str) -> tuple[bytes, str]:
    return hashlib.sha256(secret.encode()).digest(), adapter
