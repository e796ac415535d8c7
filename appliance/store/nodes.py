"""Nodes of the tree, for proofs: those that are asked for again stay in memory, since none ever changes.

The upper ones are kept, and those of the last appends, so that what was just appended is proved without a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliance.errors import Tampered
from appliance.formats.merkle import HASH_BYTES, Frontier, ReadNode

_KEPT_LEVEL = 8
"""From here on a node stands for 256 entries or more: ten million entries have 78,000 of them."""
_RECENT = 4_096
"""Entries whose nodes are in memory: about 400 kB."""

Place = tuple[int, int]
"""(level, index) of a node."""
Read = Callable[[list[Place]], dict[Place, bytes]]


class Nodes:
    def __init__(self) -> None:
        self._kept: dict[Place, bytes] = {}
        self._recent = _Recent(Frontier.EMPTY)

    def add(self, before: Frontier, completed: Iterable[bytes]) -> None:
        """The nodes that each entry after `before` completes, one after another, once these entries are durable."""
        recent = self._recent
        if before.size != recent.stop or recent.stop - recent.start >= _RECENT:
            recent = _Recent(before)
        for nodes in completed:
            recent.entries[recent.stop] = nodes
            recent.stop += 1
        self._recent = recent

    def prove(self, proof: Callable[[ReadNode], list[bytes]], read: Read) -> list[bytes]:
        """The proof over stored nodes: once to learn which it needs, and again with those that had to be read."""
        missing: list[Place] = []
        recent = self._recent

        def look(level: int, index: int) -> bytes:
            known = self._kept.get((level, index)) or recent.look(level, index)
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
        self._kept.update((place, value) for place, value in found.items() if place[0] >= _KEPT_LEVEL)
        return hashes


class _Recent:
    """The nodes of the entries [start, stop), and what stood at the tree's edge before them: whatever proves one of
    these entries in a tree that ends with one of them."""

    def __init__(self, before: Frontier) -> None:
        self.start = self.stop = before.size
        self.entries: dict[int, bytes] = {}
        levels = [level for level in reversed(range(before.size.bit_length())) if before.size >> level & 1]
        self._edge = {
            (level, (before.size >> level) - 1): value for level, value in zip(levels, before.hashes, strict=True)
        }

    def look(self, level: int, index: int) -> bytes | None:
        nodes = self.entries.get((index + 1 << level) - 1)
        return self._edge.get((level, index)) if nodes is None else nodes[HASH_BYTES * level : HASH_BYTES * (level + 1)]
