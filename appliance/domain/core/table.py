"""The tables that the state is made of: what changed in them can be told, and taken back until it is durable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Journal(list[tuple["Table[Any]", str, Any]]):
    """(table, identifier, value before) of every change since the state was last kept. `revision` counts whatever
    changed, or was taken back, of what every approval rests on."""

    revision = 0


class Mark(NamedTuple):
    """A moment of the state, to come back to."""

    size: int
    last_time: str
    last_leaf: str
    changes: int


class Table(Generic[V]):
    """Identifier to frozen value; each change is noted in the state's journal."""

    def __init__(self, kind: str, row: Any, journal: Journal, *, voids_clearances: bool = False) -> None:
        """`voids_clearances`: every approval rests on these rows, beside its own adapter and release. Once one of them
        changes, no clearance of before counts."""
        self.kind = kind
        self.row = row
        """The type of its values, as it is read back from JSON."""
        self._rows: dict[str, V] = {}
        self._journal = journal
        self._voids_clearances = voids_clearances

    def get(self, key: str) -> V | None:
        return self._rows.get(key)

    def put(self, key: str, value: V | None) -> None:
        """Sets a row, or with None removes it."""
        self._journal.append((self, key, self._rows.get(key)))
        self.set(key, value)

    def set(self, key: str, value: V | None) -> None:
        """Like `put`, for a caller that has noted the change or will never undo it."""
        self._journal.revision += self._voids_clearances
        if value is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = value

    def values(self) -> tuple[V, ...]:
        return tuple(self._rows.values())

    def items(self) -> Iterator[tuple[str, V]]:
        return iter(self._rows.items())

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)


class DigestTable(Table[V]):
    """Identifiers are digests or commitments, kept as their 32 bytes: there is a row for each order of a log."""

    def __init__(self, kind: str, row: Any, journal: Journal, prefix: str) -> None:
        super().__init__(kind, row, journal)
        self._prefix = prefix
        self._packed: dict[bytes, V] = {}

    def get(self, key: str) -> V | None:
        return self._packed.get(self._pack(key))

    def put(self, key: str, value: V | None) -> None:
        self._journal.append((self, key, self.get(key)))
        self.set(key, value)

    def set(self, key: str, value: V | None) -> None:
        if value is None:
            self._packed.pop(self._pack(key), None)
        else:
            self._packed[self._pack(key)] = value

    def values(self) -> tuple[V, ...]:
        return tuple(self._packed.values())

    def items(self) -> Iterator[tuple[str, V]]:
        return ((f"{self._prefix}{key.hex()}", value) for key, value in self._packed.items())

    def __contains__(self, key: str) -> bool:
        return self._pack(key) in self._packed

    def __len__(self) -> int:
        return len(self._packed)

    def _pack(self, key: str) -> bytes:
        return bytes.fromhex(key.removeprefix(self._prefix))
