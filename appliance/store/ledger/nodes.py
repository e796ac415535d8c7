"""Nodes of the tree, for proofs: those that are asked for again stay in memory, since none ever changes.

The upper ones are kept, and those of the last appends, so that what was just appended is proved without a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from appliance.errors import Tampered
from appliance.formats.core.merkle import HASH_BYTES, Frontier, ReadNode

_KEPT_LEVEL = 8
"""From this level on a node covers 256 entries or more: ten million entries have 78,000 of them."""
_RECENT = 4_096
"""Entries whose nodes are in memory: about 2 MB."""

Place = tuple[int, int]
"""(level, index) of a node."""
Read = Callable[[list[Place]], dict[Place, bytes]]


class Nodes:
    def __init__(self) -> None:
        self._kept: dict[Place, bytes] = {}
        self._edge: dict[Place, bytes] = {}
        self._recent: dict[int, Sequence[bytes]] = {}
        """By entry, the nodes that it completes, from its leaf upwards."""
        self._stop = 0

    def add(self, before: Frontier, completed: Iterable[Sequence[bytes]]) -> None:
        """The nodes that each entry after `before` completes, one after another, once these entries are durable."""
        if before.size != self._stop or len(self._recent) >= _RECENT:
            # Together with the tree's edge, they are all that is needed to prove the entries that follow.
            self._edge, self._recent, self._stop = before.nodes(), {}, before.size
        for nodes in completed:
            self._recent[self._stop] = nodes
            self._stop += 1

    def prove(self, proof: Callable[[ReadNode], list[bytes]], read: Read) -> list[bytes]:
        """The proof over stored nodes: once to learn which it needs, and again with those that had to be read."""
        missing: list[Place] = []
        recent, edge, kept = self._recent, self._edge, self._kept

        def look(level: int, index: int) -> bytes:
            if nodes := recent.get((index + 1 << level) - 1):
                return nodes[level]
            known = edge.get((level, index)) or kept.get((level, index))
            if known is None:
                missing.append((level, index))
                return bytes(HASH_BYTES)
            return known

        hashes = proof(look)
        if not missing:
            return hashes
        found = read(missing)
        for place in missing:
            if place not in found:
                raise Tampered(f"tree node {place[0]}, {place[1]}: expected a hash, got none")
        hashes = proof(lambda level, index: found.get((level, index)) or look(level, index))
        kept.update((place, value) for place, value in found.items() if place[0] >= _KEPT_LEVEL)
        return hashes
