"""The state: the result of applying the ledger's entries in order, and of nothing else.

Every table maps an identifier to a frozen value. The state lists changed rows until the store has written them as
projections. Projections are a cache: they can be dropped and rebuilt. Changes can be undone until they are durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from appliance.domain.core.decisions import DailyAnswers, DailyTries, Delegation, Preview
from appliance.domain.core.names import NO_DIGEST, Time, split_version
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.core.records.people import (
    Application,
    Identity,
    Invitation,
    IssuedTokenRecord,
    Key,
    OpenSessions,
    PendingOrder,
    Principal,
    RevokedToken,
)
from appliance.domain.core.records.runs import Adapter, AdapterEvaluation, Replay, Run, TrainingCheckpoint
from appliance.domain.core.records.serving import Export, OpenRequest, Release, ServiceProcess, Slot
from appliance.domain.core.records.site import Archive, CommittedText, Hold, Site, WitnessRecord
from appliance.domain.core.words import unknown_word
from appliance.errors import NotFound, Refusal
from appliance.formats.core.canonical import encode_canonical

V = TypeVar("V")


class Journal(list[tuple["Table[Any]", str, Any]]):
    """The changes since they were last made durable, each as (table, identifier, value before).

    `revision` counts the changes, and undone changes, of rows that every approval depends on.
    """

    revision = 0
    """Number of changes of rows that every approval depends on."""


class Mark(NamedTuple):
    """A point in the state's history to which `take_back` returns."""

    size: int
    last_time: str
    last_leaf: str
    changes: int


class Table(Generic[V]):
    """A mapping of identifiers to frozen values. Each change is noted in the state's journal."""

    def __init__(
        self,
        kind: str,
        row: Any,
        journal: Journal,
        *,
        voids_clearances: bool = False,
        of_records: bool = False,
        has_names: bool = False,
        expected: str = "a recorded one",
    ) -> None:
        """Create an empty table.

        `voids_clearances`: every approval depends on these rows, beside its own adapter and release. A change of one of
        them makes all earlier clearances invalid. `of_records`: records that can be archived have rows here.
        `has_names`: the identifiers are names that messages may list. `expected`: the words of a message for a row
        that exists, such as "a sealed one".
        """
        self.kind = kind
        self.row = row
        """The type of the values, for reading them from JSON."""
        self._rows: dict[str, V] = {}
        self._journal = journal
        self._voids_clearances = voids_clearances
        self.of_records = of_records
        self._has_names = has_names
        self._expected = expected

    def get(self, key: str) -> V | None:
        """Return the row of a key, or None."""
        return self._rows.get(key)

    def require(self, key: str) -> V:
        """Return the row of a key.

        Raises: NotFound if there is none.
        """
        row = self.get(key)
        if row is None:
            known = tuple(self._rows) if self._has_names else ()
            raise NotFound(unknown_word(self.kind.replace("-", " "), key[:80], known, self._expected))
        return row

    def put(self, key: str, value: V | None) -> None:
        """Set a row and note the change; None removes the row."""
        self._journal.append((self, key, self._rows.get(key)))
        self.set(key, value)

    def set(self, key: str, value: V | None) -> None:
        """Set or remove a row without noting the change, for callers that have noted it or never undo it."""
        self._journal.revision += self._voids_clearances
        if value is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = value

    def copy_rows(self, other: Table[V]) -> None:
        """Take over the rows of another table of this kind without noting the change."""
        self._rows = other._rows.copy()

    def values(self) -> tuple[V, ...]:
        return tuple(self._rows.values())

    def items(self) -> Iterator[tuple[str, V]]:
        return iter(self._rows.items())

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)


def next_version(rows: Table[Any], name: str) -> int:
    """Return the version number that the next row of this name gets. Versions are counted from 1."""
    versions = [version for known, version in (split_version(key) for key, _ in rows.items()) if known == name]
    return max(versions, default=0) + 1


class DigestTable(Table[V]):
    """A table whose identifiers are digests or commitments, stored as their 32 bytes to save memory.

    It has a row for each order of a log.
    """

    def __init__(self, kind: str, row: Any, journal: Journal, prefix: str) -> None:
        super().__init__(kind, row, journal, of_records=True)
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

    def copy_rows(self, other: Table[V]) -> None:
        if isinstance(other, DigestTable):
            self._packed = other._packed.copy()

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


UNPROJECTED = frozenset({"answers", "clearance", "order", "request", "session", "text"})
"""Kinds of rows that are never projected.

They change with each order, request and session, and the log finds them by subject.
"""


class Clearance(NamedTuple):
    """The refusal reasons of a release.

    An empty result is valid for exactly these values, in this revision, until that time. `approvals` are the entries of
    all approvals that have not expired.
    """

    reasons: tuple[Refusal, ...]
    release: Release
    adapter: Adapter
    revision: int
    until: Time
    approvals: frozenset[int]
    answers_a_day: int | None
    """The smallest daily request limit that applies, or None."""

    def counts(self, release: Release, adapter: Adapter, revision: int, now: Time) -> bool:
        """Return True if the result is valid for these values, in this revision, now."""
        return self.release is release and self.adapter is adapter and self.revision == revision and now < self.until


class State:
    """The state of a log. Only `actions.apply` changes it."""

    def __init__(self) -> None:
        self.size, self._taken, self.last_time, self.last_leaf = 0, 0, "", NO_DIGEST
        self._journal = Journal()
        self.clearances: Table[Clearance] = Table("clearance", Clearance, self._journal)
        """Clearances by release, so that the rules need not run for every request.

        They are derived from the other tables, and `tables` omits them.
        """
        self.sites: Table[Site] = Table("site", Site, self._journal, voids_clearances=True)
        self.principals: Table[Principal] = Table("principal", Principal, self._journal, voids_clearances=True)
        self.keys: Table[Key] = Table("key", Key, self._journal, voids_clearances=True)
        self.invitations: Table[Invitation] = Table("invitation", Invitation, self._journal)
        """Invitations of people who are not enrolled yet, by name."""
        self.orders: Table[int] = DigestTable("order", int, self._journal, "sha256:")
        """Index of the entry that accepted an order, by the digest of its PAE.

        The rows are small, since every order has one.
        """
        self.tokens: Table[RevokedToken] = Table("token", RevokedToken, self._journal)
        self.applications: Table[Application] = Table("application", Application, self._journal)
        self.issued_tokens: Table[IssuedTokenRecord] = Table("issued-token", IssuedTokenRecord, self._journal)
        """Tokens of applications that are valid or expired recently."""
        # Sessions by principal.
        self.sessions: Table[OpenSessions] = Table("session", OpenSessions, self._journal)
        self.identities: Table[Identity] = Table("identity", Identity, self._journal)
        """Subjects of the identity provider to which people are bound, by the person's name."""
        self.pending: Table[PendingOrder] = Table("pending", PendingOrder, self._journal)
        self.imports: Table[Import] = Table("import", Import, self._journal, expected="one that was ordered")
        self.bases: Table[Base] = Table(
            "base", Base, self._journal, voids_clearances=True, has_names=True, expected="an imported one"
        )
        self.datasets: Table[Dataset] = Table(
            "dataset", Dataset, self._journal, voids_clearances=True, has_names=True, expected="an imported one"
        )
        self.validation_sets: Table[ValidationSet] = Table(
            "validation-set",
            ValidationSet,
            self._journal,
            voids_clearances=True,
            has_names=True,
            expected="an imported one",
        )
        self.runs: Table[Run] = Table("run", Run, self._journal)
        self.training_checkpoints: Table[TrainingCheckpoint] = Table(
            "training-checkpoint", TrainingCheckpoint, self._journal
        )
        self.replays: Table[Replay] = Table("replay", Replay, self._journal, of_records=True)
        self.adapters: Table[Adapter] = Table(
            "adapter", Adapter, self._journal, has_names=True, expected="a sealed one"
        )
        self.delegations: Table[Delegation] = Table("delegation", Delegation, self._journal)
        self.evaluations: Table[AdapterEvaluation] = Table("evaluation", AdapterEvaluation, self._journal)
        """Evaluations by adapter."""
        self.releases: Table[Release] = Table("release", Release, self._journal)
        self.exports: Table[Export] = Table("export", Export, self._journal)
        """Exports that were valid when the last one was made, and that one."""
        self.processes: Table[ServiceProcess] = Table("process", ServiceProcess, self._journal)
        """Service processes that have a name, by name."""
        self.slots: Table[Slot] = Table("slot", Slot, self._journal)
        self.requests: Table[OpenRequest] = Table("request", OpenRequest, self._journal, of_records=True)
        self.answers: Table[DailyAnswers] = Table("answers", DailyAnswers, self._journal, of_records=True)
        self.previews: Table[Preview] = Table("preview", Preview, self._journal, of_records=True)
        """Sample views and trials that have not ended, by order."""
        # Trials by reviewer.
        self.tries: Table[DailyTries] = Table("tries", DailyTries, self._journal, of_records=True)
        self.texts: Table[CommittedText] = DigestTable("text", CommittedText, self._journal, "hmac-sha256:")
        self.holds: Table[Hold] = Table("hold", Hold, self._journal)
        self.witnesses: Table[WitnessRecord] = Table("witness", WitnessRecord, self._journal)
        self.archives: Table[Archive] = Table("archive", Archive, self._journal)
        """Archives of records, by the index of their entries."""

    @property
    def place(self) -> tuple[int, str, str]:
        """Return the size of the log and the time and leaf hash of its last entry."""
        return self.size, self.last_time, self.last_leaf

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        """Return all tables except the clearances."""
        return tuple(
            value for value in vars(self).values() if isinstance(value, Table) and value is not self.clearances
        )

    @property
    def revision(self) -> int:
        """Return a number that changes with every change that every approval depends on."""
        return self._journal.revision

    @property
    def site(self) -> Site:
        """Return the site's row.

        Raises: LookupError for an empty ledger.
        """
        site = self.sites.get("site")
        if site is None:
            raise LookupError("the ledger is empty: no first entry has been applied")
        return site

    @property
    def parameters(self) -> Parameters:
        """Return the parameters of the valid policy set."""
        return self.site.parameters

    def encode_authority(self) -> Iterator[bytes]:
        """Yield the state without the rows of records, in canonical lines that a later build encodes equally.

        Fields that have their defaults are omitted, so that a later build may add fields.
        """
        yield encode_canonical([self.size, self.last_leaf]) + b"\n"
        for table in sorted((table for table in self.tables if not table.of_records), key=lambda table: table.kind):
            for key, value in sorted(table.items()):
                row = value.model_dump(mode="json", exclude_defaults=True)
                yield encode_canonical([table.kind, key, row]) + b"\n"

    def take_changes(self) -> list[tuple[str, str, Mapping[str, Any] | None]]:
        """Return (kind, id, value or None if removed) of every row changed since the last call.

        They are sorted by table and identifier. Kinds that are never projected are omitted.
        """
        fresh = self._journal[self._taken :]
        self._taken = len(self._journal)
        changed = {(table.kind, key): table for table, key, _ in fresh if table.kind not in UNPROJECTED}
        if not changed:
            return []  # the usual case: after every request
        return [(kind, key, _dump(table.get(key))) for (kind, key), table in sorted(changed.items(), key=_first)]

    def copy(self) -> State:
        """Return a state with the same rows, whose changes leave this one unchanged. It has no clearances.

        Rows are frozen, so both share them.
        """
        copy = State()
        copy.size, copy.last_time, copy.last_leaf = self.place
        for own, other in zip(copy.tables, self.tables, strict=True):
            own.copy_rows(other)
        return copy

    def mark(self) -> Mark:
        """Return a mark of the present state."""
        return Mark(self.size, self.last_time, self.last_leaf, len(self._journal))

    def skip_removed(self, leaf: bytes) -> None:
        """Move to the place after an entry that an archive removed, and leave the rest of the state unchanged."""
        self.size, self.last_leaf = self.size + 1, f"sha256:{leaf.hex()}"

    def take_back(self, mark: Mark) -> None:
        """Undo every change since the mark, which must be later than the last `keep`."""
        for table, key, before in reversed(self._journal[mark.changes :]):
            table.set(key, before)
        del self._journal[mark.changes :]
        self._taken = min(self._taken, mark.changes)
        self.size, self.last_time, self.last_leaf = mark.size, mark.last_time, mark.last_leaf

    def keep(self) -> None:
        """Clear the noted changes: they are durable and cannot be undone any more."""
        self._journal.clear()
        self._taken = 0

    def projections(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield the whole state as rows, including the kinds that are never projected."""
        for table in self.tables:
            for key, value in table.items():
                yield table.kind, key, _dump(value) or {}


def _first(item: tuple[tuple[str, str], Any]) -> tuple[str, str]:
    return item[0]


def _dump(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, CommittedText):
        return {**value._asdict(), "subjects": list(value.subjects)}
    if isinstance(value, OpenRequest):
        return {**value._asdict(), "approvals": list(value.approvals)}
    if isinstance(value, int):
        return {"entry": value}
    return None if value is None else value.model_dump(mode="json")
