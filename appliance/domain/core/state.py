"""The state: a fold over the ledger's entries, and nothing that an entry did not say.

Every table maps an identifier to a frozen value. Rows that changed are remembered until the store has written them as
projections, which are a cache: they can be dropped and folded again.
Until what was folded in is durable, it can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from appliance.domain.core.decisions import DailyAnswers, DailyTries, Delegation, Look
from appliance.domain.core.names import NO_DIGEST, Time
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.adapters import Adapter, Judgement
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.core.records.people import (
    Application,
    IssuedToken,
    Key,
    OpenSessions,
    PendingOrder,
    Principal,
    RevokedToken,
)
from appliance.domain.core.records.runs import Replay, Run, TrainingCheckpoint
from appliance.domain.core.records.serving import Export, OpenRequest, Release, ServiceProcess, Slot
from appliance.domain.core.records.site import Hold, Site, Text, Witness
from appliance.domain.core.table import DigestTable, Journal, Mark, Table

UNPROJECTED = frozenset({"answers", "clearance", "order", "request", "session", "text"})
"""Kinds that are never projected: they change with each order, request and session, and the log finds them by
subject."""


class Clearance(NamedTuple):
    """The reasons against a release; if there are none, that holds for exactly these values, in this revision, until
    that time. `approvals`: the entries of all that have not lapsed."""

    reasons: tuple[str, ...]
    release: Release
    adapter: Adapter
    revision: int
    until: Time
    approvals: frozenset[int]
    answers_a_day: int | None
    """The least of the daily counts that it is under."""


class State:
    """The fold. Only `rulebook.apply` changes it."""

    def __init__(self) -> None:
        self.size, self._taken, self.last_time, self.last_leaf = 0, 0, "", NO_DIGEST
        self._journal = Journal()
        self.clearances: Table[Clearance] = Table("clearance", Clearance, self._journal)
        """By release: that nothing barred it, so that not every request asks again. No part of what `tables` names:
        it follows from them."""
        self.sites: Table[Site] = Table("site", Site, self._journal, voids_clearances=True)
        self.principals: Table[Principal] = Table("principal", Principal, self._journal, voids_clearances=True)
        self.keys: Table[Key] = Table("key", Key, self._journal, voids_clearances=True)
        self.orders: Table[int] = DigestTable("order", int, self._journal, "sha256:")
        """By the digest of its PAE, the entry that accepted it: as small as it can be, there are as many as orders."""
        self.tokens: Table[RevokedToken] = Table("token", RevokedToken, self._journal)
        self.applications: Table[Application] = Table("application", Application, self._journal)
        self.issued_tokens: Table[IssuedToken] = Table("issued-token", IssuedToken, self._journal)
        """Those of applications that stand, or ended a short while ago."""
        # By principal.
        self.sessions: Table[OpenSessions] = Table("session", OpenSessions, self._journal)
        self.pending: Table[PendingOrder] = Table("pending", PendingOrder, self._journal)
        self.imports: Table[Import] = Table("import", Import, self._journal)
        self.bases: Table[Base] = Table("base", Base, self._journal, voids_clearances=True)
        self.datasets: Table[Dataset] = Table("dataset", Dataset, self._journal, voids_clearances=True)
        self.validation_sets: Table[ValidationSet] = Table(
            "validation-set", ValidationSet, self._journal, voids_clearances=True
        )
        self.runs: Table[Run] = Table("run", Run, self._journal)
        self.training_checkpoints: Table[TrainingCheckpoint] = Table(
            "training-checkpoint", TrainingCheckpoint, self._journal
        )
        self.replays: Table[Replay] = Table("replay", Replay, self._journal)
        self.adapters: Table[Adapter] = Table("adapter", Adapter, self._journal)
        self.delegations: Table[Delegation] = Table("delegation", Delegation, self._journal)
        self.judgements: Table[Judgement] = Table("judgement", Judgement, self._journal)
        """By adapter."""
        self.releases: Table[Release] = Table("release", Release, self._journal)
        self.exports: Table[Export] = Table("export", Export, self._journal)
        """Those that were good when the last one was made, and that one."""
        self.processes: Table[ServiceProcess] = Table("process", ServiceProcess, self._journal)
        """Those that have a name, by it."""
        self.slots: Table[Slot] = Table("slot", Slot, self._journal)
        self.requests: Table[OpenRequest] = Table("request", OpenRequest, self._journal)
        self.answers: Table[DailyAnswers] = Table("answers", DailyAnswers, self._journal)
        self.looks: Table[Look] = Table("look", Look, self._journal)
        """By order, those that have not ended."""
        # By reviewer.
        self.tries: Table[DailyTries] = Table("tries", DailyTries, self._journal)
        self.texts: Table[Text] = DigestTable("text", Text, self._journal, "hmac-sha256:")
        self.holds: Table[Hold] = Table("hold", Hold, self._journal)
        self.witnesses: Table[Witness] = Table("witness", Witness, self._journal)

    @property
    def place(self) -> tuple[int, str, str]:
        return self.size, self.last_time, self.last_leaf

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        return tuple(
            value for value in vars(self).values() if isinstance(value, Table) and value is not self.clearances
        )

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
