"""Which orders were refused by an entry of late, so that the same bytes make no second one."""

from __future__ import annotations

from collections import OrderedDict

_REMEMBERED = 100_000
"""Digests, about 20 MB. Each of them cost its signer a signature and the log an entry."""


class RefusedOrders:
    """Used under the lock of orders. A service that starts has forgotten them: an order then makes one entry more."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._digests: OrderedDict[str, None] = OrderedDict()

    def add(self, digest: str) -> None:
        self._digests[digest] = None
        while len(self._digests) > self._most:
            self._digests.popitem(last=False)

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests
