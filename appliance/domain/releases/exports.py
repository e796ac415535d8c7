"""An approved adapter that leaves the appliance: what goes with it, and how its receiver decides without the service.

The entry of the export binds, beside the order, the rows of the state that admission rests on. A rule compares them
with the fold, so every verifier of the log has; a holder of the log's key decides over them as the appliance does.
What was revoked since cannot reach the folder: so it is good until a date, which policy bounds.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Base64, Time, Value, add_seconds, encode_value, parse_value, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import Base, Dataset, ValidationSet
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.records.serving import Export, Release, export_key, release_key
from appliance.domain.core.records.site import Site, Witness
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.signatures import Accepted, OrderReader
from appliance.domain.core.state import Clearance, State
from appliance.domain.core.verb import NEWEST_RULES, Verb
from appliance.domain.releases.activations import OnRelease
from appliance.domain.releases.adapters import find_adapter
from appliance.domain.releases.admission import (
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    open_log_checkpoint,
    prove_entry,
)
from appliance.domain.releases.approval import barred, clear, latest_reviews, released
from appliance.domain.witnesses.cosignatures import unwitnessed, witnessed_until
from appliance.errors import BadInput, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64, show
from appliance.formats.log.checkpoint import Checkpoint
from appliance.formats.log.trust import Trust


class ExportAdapter(OnRelease):
    """Today's release, to be loaded by the unit on a host of its own, until a date."""

    verb = "export-adapter"
    valid_until: Time


_EXPORTS = OrderReader.of(ExportAdapter)


class AdapterExported(Ordered):
    """`standing`: the rows of the state that an admission of this release rests on (`domain/releases/exports.py`)."""

    type = "adapter.exported"
    documents = ("order", "standing")


def may_export(state: State, order: ExportAdapter, signer: Principal, now: Time) -> Reasons:
    """Only what answers the unit's task today; no longer than approvals and witnesses stand and policy lets it."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, f"release-owner:{order.unit}")
    if signer.name == adapter.ordered_by:
        reasons.append(f"separation of duties: expected a release owner who did not order the run, got {signer.name}")
    release = state.releases.get(release_key(order.unit, order.task))
    if release is None or release.current.adapter != order.name:
        got = "none" if release is None else release.current.adapter
        return [*reasons, f"release: expected {order.name} to answer {order.unit}/{order.task}, got {got}"]
    reasons += barred(state, release, adapter, now) + unwitnessed(state, now)
    clearance = clear(state, release, adapter, now)
    reasons += unexportable(clearance)
    ends = [] if clearance.reasons else [clearance.until]
    limit = min([add_seconds(now, state.parameters.export_lifetime_s), *ends, *witnessed_until(state)])
    if not now < order.valid_until <= limit:
        reasons.append(f"valid until: expected a time after {now} and not after {limit}, got {order.valid_until}")
    return reasons


def unexportable(clearance: Clearance) -> Reasons:
    """What holds only while the log goes on: a day's count, and an emergency's hours."""
    reasons = []
    if clearance.answers_a_day is not None:
        reasons.append("condition: expected none on answers a day, which are counted in the log alone, got one")
    if clearance.release.current.kind == "break-glass":
        reasons.append("release: expected one that was approved, got that of an emergency")
    return reasons


def standing_evidence(state: State, accepted: Accepted) -> dict[str, bytes]:
    """What the service puts beside an export's order: the rows of the state that an admission rests on."""
    order = accepted.order
    if not isinstance(order, ExportAdapter):
        raise BadInput(f"order: expected {ExportAdapter.verb}, got {order.verb}")
    return {"standing": encode_value(standing_of(state, order, accepted.keyid))}


def exported(case: Case) -> Changes:
    """The rows beside the order are those of the state: a holder of the log's key can decide over them.

    It is remembered until a later export finds it expired: it answers no question about that entry or one after it, but
    where the clock ran ahead then and was reset since (docs/operations.md).
    """
    order = case.order(ExportAdapter)
    expected = encode_value(standing_of(case.state, order, case.accepted.keyid))
    got = case.documents["standing"]
    case.require(got == expected, "standing", digest_bytes(expected), digest_bytes(got))
    exports, index = case.state.exports, case.entry.index
    expired: Changes = [(exports, key, None) for key, row in exports.items() if row.valid_until <= case.entry.time]
    export = Export(
        unit=order.unit,
        task=order.task,
        adapter=order.name,
        manifest=order.manifest,
        index=index,
        valid_until=order.valid_until,
    )
    return [*expired, (exports, export_key(order.unit, order.task, index), export)]


class Standing(Value):
    """The rows that an admission of this release rests on, as they were when it was exported; nothing else of them."""

    site: Site
    principals: tuple[Principal, ...]
    keys: tuple[Key, ...]
    base: Base
    dataset: Dataset
    validation_sets: tuple[ValidationSet, ...]
    adapter: Adapter
    release: Release
    witnesses: tuple[Witness, ...]

    def to_state(self) -> State:
        """A state that holds these rows and no others."""
        state, adapter = State(), self.adapter
        state.sites.put("site", self.site)
        for person in self.principals:
            state.principals.put(person.name, person)
        for key in self.keys:
            state.keys.put(key.keyid, key)
        for witness in self.witnesses:
            state.witnesses.put(witness.name, witness)
        state.bases.put(self.base.name, self.base)
        state.datasets.put(versioned(self.dataset.name, self.dataset.version), self.dataset)
        for one in self.validation_sets:
            state.validation_sets.put(versioned(one.name, one.version), one)
        state.adapters.put(versioned(adapter.name, adapter.version), adapter)
        state.releases.put(release_key(self.release.unit, self.release.task), self.release)
        state.keep()
        return state


def standing_of(state: State, order: ExportAdapter, keyid: str) -> Standing:
    """The records of the release that the order, under that key, exports. NotFound where there is none."""
    adapter, release = released(state, order.unit, order.task), state.releases.get(release_key(order.unit, order.task))
    base = None if adapter is None else state.bases.get(adapter.base)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    if adapter is None or release is None or base is None or dataset is None:
        raise NotFound(f"release: expected one for {order.unit}/{order.task}, got none")
    reviews = latest_reviews(state, adapter, order.unit)
    own = tuple(review for review in adapter.reviews if review.unit == order.unit)
    asked = tuple(request for request in adapter.requests if request.unit == order.unit)
    delegated = [review.on_behalf_of for review in reviews if review.on_behalf_of is not None]
    names = {order.unit, order.signer, release.current.signer, *(review.reviewer for review in reviews)}
    names |= {one.principal for one in delegated} | {one.finder for one in adapter.findings if one.accepts_verdict}
    keyids = {keyid, release.current.keyid, *(review.keyid for review in reviews)}
    keyids |= {one.keyid for one in delegated} | {one.keyid for one in asked}
    keyids |= {one.keyid for one in adapter.findings if one.accepts_verdict}
    if adapter.authorised is not None:
        names, keyids = names | {adapter.authorised.by}, keyids | {adapter.authorised.keyid}
    keyids |= {one.closed_keyid for one in adapter.findings if one.closed_keyid is not None}
    sets = [state.validation_sets.get(bound.validation_set) for bound in adapter.sets]
    return Standing(
        site=state.site,
        principals=tuple(person for name in sorted(names) if (person := state.principals.get(name)) is not None),
        keys=tuple(key for one in sorted(keyids) if (key := state.keys.get(one)) is not None),
        base=base.model_copy(update={"facts": {}}),
        dataset=dataset.model_copy(update={"facts": {}}),
        validation_sets=tuple(one.model_copy(update={"facts": {}}) for one in sets if one is not None),
        adapter=adapter.model_copy(update={"reviews": own, "requests": asked, "measured": {}}),
        release=release.model_copy(update={"history": (release.current,)}),
        witnesses=state.witnesses.values(),
    )


class ProvenEntry(Value):
    """An entry's bytes, the hashes that lead to the checkpoint's root, and its order's envelope, where it has one."""

    index: int = Field(ge=0)
    entry: Base64
    proof: tuple[Base64, ...] = Field(max_length=63)
    envelope: str | None = Field(max_length=1_000_000, description="base64")


class Proofs(Value):
    """What the folder says of itself: `exported` is the index of the export's entry."""

    version: Literal[1] = 1
    exported: int = Field(ge=1)
    checkpoint: str = Field(max_length=65_536)
    entries: tuple[ProvenEntry, ...] = Field(min_length=1, max_length=256)

    @property
    def logged(self) -> dict[int, LoggedOrder]:
        return {
            proven.index: LoggedOrder(
                entry=base64.b64decode(proven.entry),
                proof=tuple(base64.b64decode(step) for step in proven.proof),
                envelope=None if proven.envelope is None else parse_base64(proven.envelope, "export, envelope"),
            )
            for proven in self.entries
        }


@dataclass(frozen=True)
class ExportedAdapter:
    """The folder's bytes: `files` are the sealed adapter's."""

    proofs: bytes
    standing: bytes
    signature: bytes
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Approved:
    """What may be loaded, by whom, and until when."""

    unit: str
    task: str
    adapter: Adapter
    valid_until: Time


def check_exported(received: ExportedAdapter, trust: Trust, now: Time, *, unit: str, task: str) -> Approved:
    """Called by a loader of this unit and task. In this order; Tampered, Denied or BadInput names the
    first that does not hold.

    1. the log begins with the trusted entry, under a checkpoint that the trusted key signed
    2. the export stands in that log, and binds these rows and the release owner's own order; the log was under rules
       that this build knows
    3. it was ordered for this unit and task
    4. it is neither too early nor too late
    5. admission, as the appliance decides it, over these rows and bytes
    """
    proofs = parse_value(Proofs, received.proofs, "export, proofs")
    standing = parse_value(Standing, received.standing, "export, standing")
    state, logged = standing.to_state(), proofs.logged
    checkpoint = _open_log(standing, logged, proofs.checkpoint.encode(), trust)
    entry = _proven(logged, proofs.exported, checkpoint)
    order = _read_order(state, entry, logged[proofs.exported], received.standing)
    _check_rules(standing.site)
    _check_receiver(order, unit, task)
    adapter = released(state, order.unit, order.task)
    if adapter is None or adapter.manifest != order.manifest:
        raise Tampered(f"export, order: expected the release's own adapter, got {order.name}")
    _check_dates(state, entry, order, now)
    evidence = AdmissionInputs(received.files, received.signature, logged, proofs.checkpoint.encode())
    admission = decide_admission(state, order.unit, order.task, evidence, max(now, entry.time))
    if admission is None or admission.reasons:
        reasons = ("release: expected one, got none",) if admission is None else admission.reasons
        if admission is not None and admission.tampered:
            raise Tampered(f"adapter {order.name} for {order.unit}: {'; '.join(reasons)}")
        raise Denied(f"adapter {order.name} for {order.unit}", reasons=reasons, code="not-admitted")
    return Approved(order.unit, order.task, adapter, order.valid_until)


def _check_rules(site: Site) -> None:
    """Rules of a later version may refuse what these would take."""
    if site.rules > NEWEST_RULES:
        known = f"expected version {NEWEST_RULES} at most, got {site.rules}"
        raise BadInput(f"export, rules: {known}: this build is older than the log, so load it with a later one")


def _check_receiver(order: ExportAdapter, unit: str, task: str) -> None:
    """Each unit trusts the same log: what is good for one would be for all."""
    if (order.unit, order.task) != (unit, task):
        code = "another-unit" if order.unit != unit else "another-task"
        raise Denied(f"export: expected one for {unit}/{task}, got one for {order.unit}/{order.task}", code=code)


def _check_dates(state: State, entry: Entry, order: ExportAdapter, now: Time) -> None:
    if now < add_seconds(entry.time, -state.parameters.clock_skew_s):
        raise Denied(f"export: expected a clock after {entry.time}, when it was made, got {now}", code="not-yet-valid")
    if now >= order.valid_until:
        raise Denied(
            f"export: expected one that stands at {now}, got one that expired at {order.valid_until}", code="expired"
        )


def _open_log(standing: Standing, logged: Mapping[int, LoggedOrder], note: bytes, trust: Trust) -> Checkpoint:
    site = standing.site
    expected = (trust.origin, trust.log_key)
    if (site.origin, site.log_key) != expected:
        raise Tampered(f"export, log: expected {expected}, as the trust file says, got {(site.origin, site.log_key)}")
    checkpoint = open_log_checkpoint(note, trust.origin, trust.log_key)
    first = _proven(logged, 0, checkpoint)
    if f"sha256:{first.leaf.hex()}" != trust.genesis:
        raise Tampered(f"export, first entry: expected {trust.genesis}, got sha256:{first.leaf.hex()}")
    body: Mapping[str, Any] = first.body
    if (key := body.get("adapter_key")) != site.adapter_key:
        raise Tampered(
            f"export, adapter key: expected that of the log's first entry, {show(key)}, got {site.adapter_key}"
        )
    return checkpoint


def _proven(logged: Mapping[int, LoggedOrder], index: int, checkpoint: Checkpoint) -> Entry:
    found = logged.get(index)
    if found is None:
        raise BadInput(f"export, entry {index}: expected it among the proofs, got none")
    return prove_entry(found, index, checkpoint)


def _read_order(state: State, entry: Entry, found: LoggedOrder, standing: bytes) -> ExportAdapter:
    bound = entry.documents
    expected, got = f"adapter.exported of {digest_bytes(standing)}", f"{entry.type} of {bound.get('standing')}"
    if got != expected:
        raise Tampered(f"export, entry {entry.index}: expected {expected}, got {got}")
    if found.envelope is None or digest_bytes(found.envelope) != bound.get("order"):
        raise Tampered(f"export, entry {entry.index}, order: expected {bound.get('order')}, got other bytes")
    order = _EXPORTS.read_logged(state, found.envelope, entry.index).order
    if not isinstance(order, ExportAdapter):
        raise Tampered(f"export, entry {entry.index}: expected the order to export, got {order.verb}")
    return order


VERBS = (
    Verb(
        ExportAdapter,
        may=may_export,
        signers=("release-owner:UNIT",),
        meaning="The unit may load it on a host of its own until the date, and no revocation reaches it there.",
        event=AdapterExported,
        apply=exported,
        evidence=standing_evidence,
    ),
)
