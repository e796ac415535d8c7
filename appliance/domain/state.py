"""The state: a fold over the ledger's entries, and nothing that an entry did not say.

Every table maps an identifier to a frozen value. Rows that changed are remembered until the store has written them as
projections, which are a cache: they can be dropped and folded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from appliance.domain.names import NO_DIGEST, Time, Value
from appliance.domain.policy import Parameters

V = TypeVar("V", bound=Value)


class Key(Value):
    keyid: str
    spki: str
    principal: str
    enrolled: int
    revoked: int | None = None


class Principal(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    keyid: str
    enrolled: int
    revoked: int | None = None

    def has(self, role: str) -> bool:
        return self.revoked is None and role in self.roles


class PendingOrder(Value):
    """An order that waits for a second administrator."""

    digest: str
    verb: str
    signer: str
    index: int
    expires_at: Time


class Base(Value):
    """`digest`: of the manifest over the converted folder; `order`: what was asked for (source, licence)."""

    name: str
    digest: str
    licence: str
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]
    quarantined: int | None = None


class Dataset(Value):
    name: str
    version: int
    digest: str
    root: str
    base: str
    base_digest: str
    licence: str
    classification: str
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]


class Import(Value):
    """An import that was ordered; `verb` says of what. A base has no classification."""

    order: str
    verb: str
    subject: str
    signer: str
    licence: str
    classification: str
    index: int
    status: Literal["requested", "finished", "failed"]


class Run(Value):
    id: str
    order: str
    name: str
    ordered_by: str
    base: str
    base_digest: str
    dataset: str
    dataset_digest: str
    index: int
    status: Literal["queued", "running", "trained", "sealed", "failed", "cancelled"]
    weights: str | None = None


class ReviewRecord(Value):
    index: int
    order: str
    reviewer: str
    keyid: str
    field: str
    unit: str
    decision: Literal["approve", "reject"]
    valid_until: Time


class Adapter(Value):
    name: str
    version: int
    manifest: str
    run: str
    ordered_by: str
    dataset_by: str
    base: str
    base_digest: str
    index: int
    reviews: tuple[ReviewRecord, ...] = ()
    revoked: int | None = None
    quarantined: int | None = None


class Activation(Value):
    index: int
    order: str
    adapter: str
    manifest: str
    signer: str
    kind: Literal["activate", "roll-back"]


class Release(Value):
    """What a unit's clients get for a task name today, and what they got before; the last activation counts."""

    unit: str
    task: str
    history: tuple[Activation, ...]

    @property
    def current(self) -> Activation:
        return self.history[-1]


class Slot(Value):
    """An adapter that answers for a unit's task in the engine."""

    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    loaded: int | None = None


class OpenRequest(Value):
    id: str
    unit: str
    task: str
    adapter: str
    index: int


class SeenOrder(Value):
    digest: str
    index: int


class Site(Value):
    """What stands once, from the first entry and the policy in force."""

    origin: str
    log_key: str
    adapter_key: str
    single_administrator: bool
    policy: str
    parameters: Parameters


class Table(Generic[V]):
    """Identifier to frozen value; remembers which identifiers changed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, V] = {}
        self.changed: set[str] = set()

    def get(self, key: str) -> V | None:
        return self._rows.get(key)

    def put(self, key: str, value: V | None) -> None:
        """Sets a row, or with None removes it."""
        self.changed.add(key)
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


class State:
    """The fold. Only `rules.apply` changes it."""

    def __init__(self) -> None:
        self.size = 0
        self.last_time: str = ""
        self.last_leaf: str = NO_DIGEST
        self.sites: Table[Site] = Table("site")
        self.principals: Table[Principal] = Table("principal")
        self.keys: Table[Key] = Table("key")
        self.orders: Table[SeenOrder] = Table("order")
        self.pending: Table[PendingOrder] = Table("pending")
        self.imports: Table[Import] = Table("import")
        self.bases: Table[Base] = Table("base")
        self.datasets: Table[Dataset] = Table("dataset")
        self.runs: Table[Run] = Table("run")
        self.adapters: Table[Adapter] = Table("adapter")
        self.releases: Table[Release] = Table("release")
        self.slots: Table[Slot] = Table("slot")
        self.requests: Table[OpenRequest] = Table("request")

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        return tuple(value for value in vars(self).values() if isinstance(value, Table))

    @property
    def site(self) -> Site:
        """The one site row; the rules let nothing come before the first entry."""
        site = self.sites.get("site")
        if site is None:
            raise LookupError("the ledger is empty: no first entry has been applied")
        return site

    @property
    def parameters(self) -> Parameters:
        return self.site.parameters

    def take_changes(self) -> list[tuple[str, str, Mapping[str, Any] | None]]:
        """(kind, id, value or None where removed) of every row changed since the last call."""
        changes = []
        for table in self.tables:
            for key in sorted(table.changed):
                value = table.get(key)
                changes.append((table.kind, key, None if value is None else value.model_dump(mode="json")))
            table.changed.clear()
        return changes

    def projections(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """The whole state as rows, for comparing with what the store holds."""
        for table in self.tables:
            for key, value in table.items():
                yield table.kind, key, value.model_dump(mode="json")


def release_key(unit: str, task: str) -> str:
    return f"{unit}/{task}"
