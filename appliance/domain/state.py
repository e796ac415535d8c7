"""The state: a fold over the ledger's entries, and nothing that an entry did not say.

Every table maps an identifier to a frozen value. Rows that changed are remembered until the store has written them as
projections, which are a cache: they can be dropped and folded again.
Until what was folded in is durable, it can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import SerializerFunctionWrapHandler, model_serializer

from appliance.domain.comparison import Verdict
from appliance.domain.names import NO_DIGEST, Time, Value
from appliance.domain.policy import Parameters
from appliance.domain.table import DigestTable, Journal, Mark, Table


class Key(Value):
    keyid: str
    spki: str
    principal: str
    enrolled: int
    enrolled_at: Time
    until: Time | None = None
    """Replaced by another key: new orders are accepted until then."""
    revoked: int | None = None
    distrusted: int | None = None
    """What it signed in this entry or later does not count, whenever it was revoked."""
    rotated_from: str | None = None
    """The key by which its owner rotated to it: where that one did not count any more, nor does this one."""

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `rotated_from` where there is none."""
        value: dict[str, Any] = encode(self)
        return value if self.rotated_from is not None else {k: v for k, v in value.items() if k != "rotated_from"}

    def stands(self, now: Time) -> bool:
        """Whether it may sign something new."""
        return self.revoked is None and (self.until is None or now < self.until)

    def counts(self, index: int) -> bool:
        """Whether what it signed in the entry of this index still counts."""
        return self.enrolled < index and (self.distrusted is None or index < self.distrusted)


class Principal(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    keyid: str
    enrolled: int
    revoked: int | None = None
    revoked_at: Time | None = None
    tokens_since: Time | None = None
    """Of a unit: its tokens that were issued before it do not count."""

    def has(self, role: str) -> bool:
        return self.revoked is None and role in self.roles


class RevokedToken(Value):
    """A unit's token that no longer counts; `digest` of its PAE."""

    digest: str
    unit: str
    index: int


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
    revoked: int | None = None


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
    revoked: int | None = None


class Import(Value):
    """An import that was ordered; `verb` says of what. A base has no classification, and no base it is rendered for."""

    order: str
    verb: str
    subject: str
    signer: str
    licence: str
    classification: str
    base: str
    base_digest: str
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
    method: str
    purpose: str
    baseline: str | None
    index: int
    status: Literal["queued", "running", "trained", "sealed", "failed", "cancelled"]
    queued: int = 0
    """The entry that last put it into the queue, which is worked off in this order."""
    early_stopping: int = 0
    validate_every: int = 0
    weights: str | None = None
    record: str | None = None
    """The digest of its steps, once it is trained."""
    step: int = 0
    """Of its last training checkpoint; 0 while it has none."""
    resumes: int = 0
    """How often it went on by itself since somebody last ordered it to."""
    seconds: str | None = None
    peak_bytes: int | None = None
    """What its training took: of its last worker's memory the most."""


class TrainingCheckpoint(Value):
    """`digest` of the bytes, the machine that made them, and how long the run had taken until then."""

    run: str
    step: int
    digest: str
    seconds: str
    machine: dict[str, Any]
    index: int


class Replay(Value):
    """An auditor's order to train a window of a run again; `order` is its identity."""

    order: str
    run: str
    from_step: int
    to_step: int
    signer: str
    index: int
    status: Literal["requested", "finished", "failed"]
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class ReviewRecord:
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
    dataset: str
    purpose: str
    measured: dict[str, Any]
    """Of the adapter, on the held-out rows."""
    index: int
    reviews: tuple[ReviewRecord, ...] = ()
    revoked: int | None = None
    quarantined: int | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    index: int
    order: str
    adapter: str
    manifest: str
    signer: str
    keyid: str
    kind: Literal["activate", "roll-back"]


class Release(Value):
    """What a unit's clients get for a task name today, and what they got before; the last activation counts."""

    unit: str
    task: str
    history: tuple[Activation, ...]

    @property
    def current(self) -> Activation:
        return self.history[-1]


class Export(Value):
    """A release that left for a host of the unit's own, by the entry `index`. It can be loaded there until its date,
    whatever is revoked."""

    unit: str
    task: str
    adapter: str
    manifest: str
    index: int
    valid_until: Time


class Slot(Value):
    """An adapter that answers for a unit's task in the engine."""

    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    """The entries that its admission rested on."""
    loaded: int | None = None
    loaded_at: Time | None = None

    @property
    def answered_by(self) -> tuple[object, ...]:
        """What the entries of a request that it answers name."""
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals

    @property
    def answering(self) -> dict[str, Any]:
        """What the entries of a request say of the slot that answers it."""
        return self.model_dump(exclude={"loaded", "loaded_at"})


class OpenRequest(NamedTuple):
    id: str
    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    entry: int
    cut: bool = False
    """Its slot was emptied: it can end, and not well."""

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals


class Text(NamedTuple):
    """A text behind a commitment: the entry that binds it, who signed it, and what that entry is about. As small as it
    can be: there is one for each order."""

    entry: int
    time: Time
    signer: str
    subjects: tuple[str, ...]
    erased: int | None = None


class Hold(Value):
    """A legal hold: no text of an entry about the subject is erased."""

    subject: str
    order: str
    signer: str
    index: int


class Witness(Value):
    """The largest log that a witness has cosigned, and when it did."""

    name: str
    vkey: str
    size: int
    time: Time
    index: int


class LogKey(Value):
    """A key that signs the log's checkpoints: from the entry `since` on; once replaced, until a time."""

    vkey: str
    since: int
    until: Time | None = None


class Site(Value):
    """What stands once, from the first entry and the policy in force."""

    origin: str
    log_keys: tuple[LogKey, ...]
    adapter_key: str
    single_administrator: bool
    policy: str
    parameters: Parameters

    @property
    def log_key(self) -> str:
        """The vkey that signs today."""
        return self.log_keys[-1].vkey

    def signing_keys(self, now: Time) -> tuple[str, ...]:
        """Every vkey that a checkpoint carries a signature of at this time; today's last."""
        return tuple(key.vkey for key in self.log_keys if key.until is None or now < key.until)


UNPROJECTED = frozenset({"order", "request", "text"})
"""Kinds that are never projected: they change with each order and each request, and the log finds them by subject."""


class Cleared(NamedTuple):
    """A release that nothing barred: with these very values, in this revision, until that time. `approvals`: the
    entries of all that have not lapsed."""

    release: Release
    adapter: Adapter
    revision: int
    until: Time
    approvals: frozenset[int]


class State:
    """The fold. Only `rules.apply` changes it."""

    def __init__(self) -> None:
        self.size = 0
        self.last_time: str = ""
        self.last_leaf: str = NO_DIGEST
        self._journal = Journal()
        self.cleared: dict[tuple[str, str], Cleared] = {}
        """By unit and task: what `approval.barred` found to bar nothing."""
        self._taken = 0
        self.sites: Table[Site] = Table("site", self._journal)
        self.principals: Table[Principal] = Table("principal", self._journal)
        self.keys: Table[Key] = Table("key", self._journal)
        self.orders: Table[int] = DigestTable("order", self._journal, "sha256:")
        """By the digest of its PAE, the entry that accepted it: as small as it can be, there are as many as orders."""
        self.tokens: Table[RevokedToken] = Table("token", self._journal)
        self.pending: Table[PendingOrder] = Table("pending", self._journal)
        self.imports: Table[Import] = Table("import", self._journal)
        self.bases: Table[Base] = Table("base", self._journal)
        self.datasets: Table[Dataset] = Table("dataset", self._journal)
        self.runs: Table[Run] = Table("run", self._journal)
        self.training_checkpoints: Table[TrainingCheckpoint] = Table("training-checkpoint", self._journal)
        self.replays: Table[Replay] = Table("replay", self._journal)
        self.adapters: Table[Adapter] = Table("adapter", self._journal)
        self.releases: Table[Release] = Table("release", self._journal)
        self.exports: Table[Export] = Table("export", self._journal)
        """Those that were good when the last one was made, and that one."""
        self.slots: Table[Slot] = Table("slot", self._journal)
        self.requests: Table[OpenRequest] = Table("request", self._journal)
        self.texts: Table[Text] = DigestTable("text", self._journal, "hmac-sha256:")
        self.holds: Table[Hold] = Table("hold", self._journal)
        self.witnesses: Table[Witness] = Table("witness", self._journal)

    @property
    def place(self) -> tuple[int, str, str]:
        return self.size, self.last_time, self.last_leaf

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        return tuple(value for value in vars(self).values() if isinstance(value, Table))

    @property
    def revision(self) -> int:
        """Another number whenever anything has changed that every approval rests on."""
        return self._journal.revision

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
        """(kind, id, value or None where removed) of every row changed since the last call, by table and identifier.

        Without the kinds that are never projected.
        """
        fresh = self._journal[self._taken :]
        self._taken = len(self._journal)
        changed = {(table.kind, key): table for table, key, _ in fresh if table.kind not in UNPROJECTED}
        if not changed:
            return []  # as after every request
        return [(kind, key, _dump(table.get(key))) for (kind, key), table in sorted(changed.items(), key=_first)]

    def mark(self) -> Mark:
        return Mark(self.size, self.last_time, self.last_leaf, len(self._journal))

    def take_back(self, mark: Mark) -> None:
        """Undoes everything since the mark, which must be younger than the last `keep`."""
        for table, key, before in reversed(self._journal[mark.changes :]):
            table.set(key, before)
        del self._journal[mark.changes :]
        self._taken = min(self._taken, mark.changes)
        self.size, self.last_time, self.last_leaf = mark.size, mark.last_time, mark.last_leaf

    def keep(self) -> None:
        """What was folded in is durable: nothing of it will be taken back."""
        self._journal.clear()
        self._taken = 0

    def projections(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """The whole state as rows, those that are never projected among them."""
        for table in self.tables:
            for key, value in table.items():
                yield table.kind, key, _dump(value) or {}


def checkpoint_key(run: str, step: int) -> str:
    return f"{run}/{step}"


def token_key(unit: str, digest: str) -> str:
    """By unit first: what one revokes is none of another's."""
    return f"{unit}/{digest}"


def release_key(unit: str, task: str) -> str:
    return f"{unit}/{task}"


def export_key(unit: str, task: str, index: int) -> str:
    """By the entry too: a release can be exported again before its last export has ended."""
    return f"{release_key(unit, task)}/{index}"


def _first(item: tuple[tuple[str, str], Any]) -> tuple[str, str]:
    return item[0]


def _dump(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Text):
        return {**value._asdict(), "subjects": list(value.subjects)}
    if isinstance(value, OpenRequest):
        return {**value._asdict(), "approvals": list(value.approvals)}
    if isinstance(value, int):
        return {"entry": value}
    return None if value is None else value.model_dump(mode="json")
