"""Nodes of the tree, for proofs: the upper ones stay in memory, since each is asked for again and never changes."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from appliance.errors import Tampered
from appliance.formats.merkle import HASH_BYTES, ReadNode
from appliance.store.rows import read_nodes

_KEPT_LEVEL = 8
"""From here on a node stands for 256 entries or more: ten million entries have 78,000 of them."""


class Nodes:
    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], bytes] = {}

    def prove(self, connection: Connection, proof: Callable[[ReadNode], list[bytes]]) -> list[bytes]:
        """The proof over stored nodes: once to learn which it needs, and again with those that had to be read."""
        missing: list[tuple[int, int]] = []

        def look(level: int, index: int) -> bytes:
            kept = self._kept.get((level, index))
            if kept is None:
                missing.append((level, index))
                return bytes(HASH_BYTES)
            return kept

        hashes = proof(look)
        if not missing:
            return hashes
        read = read_nodes(connection, missing)
        for place in missing:
            if place not in read:
                raise Tampered(f"tree node {place[0]}, {place[1]}: expected a hash, got none")
        hashes = proof(lambda level, index: read.get((level, index)) or self._kept[level, index])
        self._kept.update((place, value) for place, value in read.items() if place[0] >= _KEPT_LEVEL)
        return hashes
