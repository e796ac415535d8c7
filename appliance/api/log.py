"""The log: the service's description, pages of entries, entries with their proofs, and verifications."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.api.people import PendingOrder
from appliance.api.releases import Review
from appliance.api.wire import Bytes, Disclosure
from appliance.domain.audit.report import Report
from appliance.domain.audit.summary import FindingGroup
from appliance.domain.core.names import Time, Value
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.site import Restoration
from appliance.domain.queries.effective_access import BeforeLog, UnitAccess


class About(Value):
    """The service's own, unproved description, which every client requests first.

    `checkpoint` is the signed note of the log's newest checkpoint. `consistency` are the hashes that prove that the log
    begins with the number of entries that the request named; there are none if the log has fewer. `is_restored` is True
    if two administrators once gave up entries of the log.
    """

    origin: str
    log_key: str
    post_quantum_log_key: str | None
    genesis: str
    version: str
    device: str
    bfloat16: bool
    single_administrator: bool
    policy: str
    parameters: Parameters
    checkpoint: str
    consistency: tuple[Bytes, ...]
    is_restored: bool

    @property
    def log_keys(self) -> tuple[str, ...]:
        """Return the vkeys that sign each checkpoint now; the one that is not ML-DSA-65 is the last."""
        second = self.post_quantum_log_key
        return (self.log_key,) if second is None else (second, self.log_key)


class KnownLoss(Value):
    """A checkpoint that the log does not continue, as its signed note, and the loss in words."""

    size: int
    note: Bytes
    message: str


class RestorationAnswer(Value):
    """The facts with which two administrators restore the log.

    `waits` is True if the service was started for a restoration, and `signer_ahead` if it appends nothing before its
    signer has stepped back. The log of `checkpoint`, a signed note, begins with `kept_size` entries of the root
    `kept_root`, as `consistency` proves. `edge` is the right edge of the tree of these entries, if they are the whole
    log. `waiting` are the orders that wait for a second administrator, `restorations` the earlier restorations.
    `signers` are those of the request's key ids that belong to administrators whom the kept entries enrolled.
    """

    waits: bool
    signer_ahead: bool
    checkpoint: Bytes
    edge: tuple[Bytes, ...]
    kept_size: int
    kept_root: Bytes
    consistency: tuple[Bytes, ...]
    losses: tuple[KnownLoss, ...]
    waiting: tuple[PendingOrder, ...]
    restorations: tuple[Restoration, ...]
    signers: tuple[str, ...]


class LoggedEntry(Value):
    """The bytes of an entry, and the state of the review that it recorded, if it recorded one."""

    index: int
    bytes: Bytes
    review: Review | None


class LogPage(Value):
    """A page of a search in the log.

    `narrowed` is True if it has only entries that concern the reader's unit. `unknown` are messages on unknown words of
    the filters. `archived` names the archives that removed the matching entries, if there are no others. `next`
    continues the search.
    """

    narrowed: bool
    unknown: tuple[str, ...]
    archived: tuple[str, ...]
    entries: tuple[LoggedEntry, ...]
    next: int | None
    size: int


class EntryWithProof(Value):
    """An entry with its documents, its disclosed texts, and the proof that the checkpoint's log contains it."""

    index: int
    bytes: Bytes
    documents: dict[str, Bytes]
    disclosures: tuple[Disclosure, ...]
    proof: tuple[Bytes, ...]
    checkpoint: str


class StateRow(Value):
    """A row of the state, and the entry that last changed it."""

    kind: str
    id: str
    since: int
    value: dict[str, Any]


class StateAt(Value):
    """The rows of the state after the entry `as_of`. `narrowed` is True if some do not concern the reader's unit."""

    as_of: int
    time: Time
    narrowed: bool
    rows: tuple[StateRow, ...]


class VerifyRequest(Value):
    """A trust file against which to verify the log."""

    trust: dict[str, Any] | None = None


class ServiceReport(Report):
    """The service's report on its log, its projections and its artifacts."""

    groups: tuple[FindingGroup, ...]
    local_findings: tuple[str, ...]
    artifacts: int
    verdicts: int
    projections: int


class CosignatureRequest(Value):
    """A checkpoint that a witness cosigned."""

    note: str = Field(max_length=65_536)


class Cosignature(Value):
    """A cosignature that the service recorded by the entry `index`."""

    index: int
    witness: str
    size: int
    time: Time


class LogKeyRequest(Value):
    """A request for a new log key; `post_quantum`: of ML-DSA-65 in place of Ed25519."""

    post_quantum: bool = False


class NewLogKey(Value):
    """The public key, as a vkey, of a log key that the service made."""

    vkey: str


class NewPostQuantumKeys(Value):
    """The public keys of ML-DSA-65 that the service made: the log's as a vkey, the adapters' as base64 of an SPKI."""

    log_key: str
    adapter_key: str


class EntrySummary(Value):
    """Time, type and actor of an entry."""

    entry: int
    time: Time
    type: str
    actor: str


class EffectiveAccess(Value):
    """The effective access of a unit at a moment, and the entries on which it rests.

    `as_of` is the last entry of the moment and `policy_entry` that of the policy set; both are None before the log
    begins. `disclosures` are the printed names of reviewers.
    """

    answer: UnitAccess | BeforeLog
    as_of: int | None
    policy_entry: int | None
    rests_on: tuple[EntrySummary, ...]
    disclosures: tuple[Disclosure, ...]


class AccessPeriods(Value):
    """The effective access of a unit between two moments, where each answer differs from the one before."""

    unit: str
    since: Time
    until: Time
    periods: tuple[EffectiveAccess, ...]
