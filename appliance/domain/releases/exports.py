"""Exports: an approved adapter that leaves the appliance, and the check that its receiver makes without the service.

The entry of an export names the rows of the state that admission rests on. A rule compares these rows with the state
replay, so every verifier of the log has done so. A holder of the log's key decides on them as the appliance does.
Later revocations do not reach the exported folder, so it is valid until a date that policy limits.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.action import NEWEST_RULES, Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.entry import Entry, Ordered
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Base64, Time, Value, add_seconds, encode_value, parse_value, versioned
from appliance.domain.core.records.data import Base, Dataset, ValidationSet
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Export, Release, export_key, release_key
from appliance.domain.core.records.site import Site, WitnessRecord
from appliance.domain.core.roles import Reasons
from appliance.domain.core.signatures import EXPIRED, NOT_YET_VALID, AcceptedOrder, OrderReader
from appliance.domain.core.state import Clearance, State
from appliance.domain.releases.activations import OWNER_ORDERED_THE_RUN, ReleaseOrder
from appliance.domain.releases.adapters import AdapterEntity, complete_adapter, find_adapter
from appliance.domain.releases.admission import (
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    open_log_checkpoint,
    prove_entry,
)
from appliance.domain.releases.approval import (
    compute_clearance,
    find_release_blockers,
    find_released_adapter,
    list_latest_reviews,
)
from appliance.domain.witnesses import refuse_unwitnessed_log, witnessed_until
from appliance.errors import BadInput, Denied, NotFound, RefusalCode, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64, show
from appliance.formats.log.checkpoint import Checkpoint
from appliance.formats.log.note import name_key
from appliance.formats.log.trust import Trust

EXPORT_NOT_ACTIVE = RefusalCode(
    "export-not-active",
    "state",
    "Adapter {id} is not active under this name. Only the active version can be exported.",
    "Activate it first.",
)
EXPORT_END = RefusalCode(
    "export-end-out-of-range",
    "policy",
    "The export can be valid until {latest}, because of policy, its approvals and its witnesses. The order says "
    "{valid_until}.",
    "Give an end after {now} and not after {latest}.",
)
EXPORT_DAILY_LIMIT = RefusalCode(
    "export-daily-limit",
    "condition",
    "A condition of the approval limits the requests of a day, which only the service can count.",
    "Have the adapter approved without this condition.",
)
EXPORT_OF_EMERGENCY = RefusalCode(
    "export-of-emergency",
    "rule",
    "Adapter {id} is active because of an emergency release, which cannot be exported.",
    "Have the adapter approved and activated.",
)
EXPORT_FOR_ANOTHER = RefusalCode(
    "export-for-another-use",
    "rule",
    "This export is for the unit {of_unit} and the served model {of_served_model}. It was to be loaded for {unit} and "
    "{served_model}.",
    "Ask the release owner of your unit for an export.",
)


class ExportAdapter(ReleaseOrder):
    """A signed order to export the current release, for the unit to load on its own host until a date."""

    action = "export-adapter"
    valid_until: Time


_ORDER_READER = OrderReader.of(ExportAdapter)


class AdapterExported(Ordered):
    """The entry of an export. `state_rows`: the rows of the state that an admission of this release rests on."""

    type = "adapter.exported"
    documents = ("order", "state_rows")


def authorise_export(state: State, order: ExportAdapter, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against an export.

    Only the version that is active for the unit's served model can be exported. The export ends no later than its
    approvals, its witnesses' cosignatures and the lifetime in policy.
    """
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons: Reasons = []
    if signer.name == adapter.ordered_by:
        reasons.append(OWNER_ORDERED_THE_RUN(f"principal:{signer.name}"))
    release = state.releases.get(release_key(order.unit, order.served_model))
    if release is None or release.current.adapter != order.name:
        return [*reasons, EXPORT_NOT_ACTIVE(f"adapter:{order.name}")]
    reasons += find_release_blockers(state, release, adapter, now) + refuse_unwitnessed_log(state, now)
    clearance = compute_clearance(state, release, adapter, now)
    reasons += refuse_export(clearance)
    ends = [] if clearance.reasons else [clearance.until]
    limit = min([add_seconds(now, state.parameters.export_lifetime_s), *ends, *witnessed_until(state)])
    if not now < order.valid_until <= limit:
        reasons.append(EXPORT_END(now=now, latest=limit, valid_until=order.valid_until))
    return reasons


def refuse_export(clearance: Clearance) -> Reasons:
    """Return the refusal reasons because of rules that need the running log: daily limits and emergencies."""
    reasons = []
    if clearance.answers_a_day is not None:
        reasons.append(EXPORT_DAILY_LIMIT())
    if clearance.release.current.kind == "break-glass":
        reasons.append(EXPORT_OF_EMERGENCY(f"adapter:{clearance.release.current.adapter}"))
    return reasons


def make_export_evidence(state: State, accepted: AcceptedOrder) -> dict[str, bytes]:
    """Return the document `state_rows` that the service adds to the order of an export.

    Raises:
        BadInput: the order is not an export.
    """
    order = accepted.order
    if not isinstance(order, ExportAdapter):
        raise BadInput(f"order: expected {ExportAdapter.action}, got {order.action}")
    return {"state_rows": encode_value(collect_rows(state, order, accepted.keyid))}


def apply_export(case: Case) -> Changes:
    """Record an export after comparing the rows in `state_rows` with the state.

    The state keeps an export until a later export finds it expired. An expired export no longer affects decisions,
    unless the clock was ahead at that entry and was reset since (docs/operations/service.md).
    """
    order = case.order(ExportAdapter)
    expected = encode_value(collect_rows(case.state, order, case.accepted.keyid))
    got = case.documents["state_rows"]
    case.require(got == expected, "state_rows", digest_bytes(expected), digest_bytes(got))
    exports, index = case.state.exports, case.entry.index
    expired: Changes = [(exports, key, None) for key, row in exports.items() if row.valid_until <= case.entry.time]
    export = Export(
        unit=order.unit,
        served_model=order.served_model,
        adapter=order.name,
        manifest=order.manifest,
        index=index,
        valid_until=order.valid_until,
    )
    return [*expired, (exports, export_key(order.unit, order.served_model, index), export)]


class ExportRows(Value):
    """The rows that an admission of this release rests on, as they were at the export."""

    site: Site
    principals: tuple[Principal, ...]
    keys: tuple[Key, ...]
    base: Base
    dataset: Dataset
    validation_sets: tuple[ValidationSet, ...]
    adapter: Adapter
    release: Release
    witnesses: tuple[WitnessRecord, ...]

    def to_state(self) -> State:
        """Return a state that contains only these rows."""
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
        for row in self.validation_sets:
            state.validation_sets.put(versioned(row.name, row.version), row)
        state.adapters.put(versioned(adapter.name, adapter.version), adapter)
        state.releases.put(release_key(self.release.unit, self.release.served_model), self.release)
        state.keep()
        return state


def collect_rows(state: State, order: ExportAdapter, keyid: str) -> ExportRows:
    """Return the rows for an export of the unit's release, which was ordered under the key `keyid`.

    Raises:
        NotFound: nothing is released to the unit for this served model.
    """
    adapter, release = (
        find_released_adapter(state, order.unit, order.served_model),
        state.releases.get(release_key(order.unit, order.served_model)),
    )
    base = None if adapter is None else state.bases.get(adapter.base)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    if adapter is None or release is None or base is None or dataset is None:
        raise NotFound(f"release: expected one for {order.unit}/{order.served_model}, got none")
    reviews = list_latest_reviews(state, adapter, order.unit)
    of_unit = adapter.model_copy(
        update={
            "reviews": tuple(review for review in adapter.reviews if review.unit == order.unit),
            "requests": tuple(request for request in adapter.requests if request.unit == order.unit),
            "suspensions": tuple(one for one in adapter.suspensions if one.unit == order.unit),
            "measured": {},
        }
    )
    names, keyids = _list_signers(of_unit, release, reviews)
    names, keyids = names | {order.signer}, keyids | {keyid}
    sets = [state.validation_sets.get(bound.validation_set) for bound in adapter.sets]
    return ExportRows(
        site=state.site,
        principals=tuple(person for name in sorted(names) if (person := state.principals.get(name)) is not None),
        keys=tuple(key for key_id in sorted(keyids) if (key := state.keys.get(key_id)) is not None),
        base=base.model_copy(update={"facts": {}}),
        dataset=dataset.model_copy(update={"facts": {}}),
        validation_sets=tuple(row.model_copy(update={"facts": {}}) for row in sets if row is not None),
        adapter=of_unit,
        release=release.model_copy(update={"history": (release.current,)}),
        witnesses=state.witnesses.values(),
    )


def _list_signers(adapter: Adapter, release: Release, reviews: Sequence[ReviewRecord]) -> tuple[set[str], set[str]]:
    """Return the names and key ids that the rules of a release compare."""
    delegated = [review.on_behalf_of for review in reviews if review.on_behalf_of is not None]
    findings = [finding for finding in adapter.findings if finding.accepts_verdict]
    names = {release.unit, release.current.signer, *(review.reviewer for review in reviews)}
    names |= {delegation.principal for delegation in delegated} | {finding.finder for finding in findings}
    keyids = {release.current.keyid, *(review.keyid for review in reviews)}
    keyids |= {delegation.keyid for delegation in delegated} | {request.keyid for request in adapter.requests}
    keyids |= {finding.keyid for finding in findings}
    keyids |= {finding.closed_keyid for finding in adapter.findings if finding.closed_keyid is not None}
    keyids |= {key for suspension in adapter.suspensions for key in suspension.lifted_keyids}
    if adapter.authorised is not None:
        names, keyids = names | {adapter.authorised.by}, keyids | {adapter.authorised.keyid}
    return names, keyids


class ExportedEntry(Value):
    """The bytes of an entry, its inclusion proof under the checkpoint, and the envelope of its order, if it has one."""

    index: int = Field(ge=0)
    entry: Base64
    proof: tuple[Base64, ...] = Field(max_length=63)
    envelope: str | None = Field(max_length=1_000_000, description="base64")


class Proofs(Value):
    """The proofs in an exported folder. `exported`: index of the entry of the export."""

    version: Literal[1] = 1
    exported: int = Field(ge=1)
    checkpoint: str = Field(max_length=65_536)
    entries: tuple[ExportedEntry, ...] = Field(min_length=1, max_length=256)

    @property
    def logged(self) -> dict[int, LoggedOrder]:
        """The entries with their decoded proofs and envelopes, by index."""
        return {
            proven.index: LoggedOrder(
                entry=base64.b64decode(proven.entry),
                proof=tuple(base64.b64decode(step) for step in proven.proof),
                envelope=None if proven.envelope is None else parse_base64(proven.envelope, "export, envelope"),
            )
            for proven in self.entries
        }


@dataclass(frozen=True)
class ExportedFolder:
    """The bytes of an exported folder. `files`: those of the sealed adapter, by path."""

    proofs: bytes
    state_rows: bytes
    signatures: tuple[bytes, ...]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class ApprovedAdapter:
    """An adapter that may be loaded, the unit and served model that may load it, and the time at which this ends."""

    unit: str
    served_model: str
    adapter: Adapter
    valid_until: Time


def check_exported(
    received: ExportedFolder, trust: Trust, now: Time, *, unit: str, served_model: str
) -> ApprovedAdapter:
    """Return the adapter that a loader of this unit and served model may load.

    The checks, in order:

    1. The log begins with the trusted entry, under a checkpoint that the trusted key signed.
    2. The export is in that log and names these rows and the release owner's order. This build supports the rules
       version
       of the log.
    3. The export was ordered for this unit and served model.
    4. The time is between the export and its end.
    5. Admission, as the appliance decides it, over these rows and bytes.

    Raises:
        Tampered, Denied, BadInput: the first check that fails.
    """
    proofs = parse_value(Proofs, received.proofs, "export, proofs")
    state_rows = parse_value(ExportRows, received.state_rows, "export, state_rows")
    state, logged = state_rows.to_state(), proofs.logged
    checkpoint = _open_log(state_rows, logged, proofs.checkpoint.encode(), trust)
    entry = _prove_logged(logged, proofs.exported, checkpoint)
    order = _read_order(state, entry, logged[proofs.exported], received.state_rows)
    _check_rules(state_rows.site)
    _check_receiver(order, unit, served_model)
    adapter = find_released_adapter(state, order.unit, order.served_model)
    if adapter is None or adapter.manifest != order.manifest:
        raise Tampered(f"export, order: expected the release's own adapter, got {order.name}")
    _check_dates(state, entry, order, now)
    evidence = AdmissionInputs(received.files, received.signatures, logged, proofs.checkpoint.encode())
    admission = decide_admission(state, order.unit, order.served_model, evidence, max(now, entry.time))
    assert admission is not None, "an adapter is released"
    if admission.tampered:
        raise Tampered(f"adapter {order.name} for {order.unit}: {' '.join(map(str, admission.reasons))}")
    if admission.reasons:
        raise Denied(f"adapter {order.name} for {order.unit}", refusals=admission.reasons, code="not-admitted")
    return ApprovedAdapter(order.unit, order.served_model, adapter, order.valid_until)


def _check_rules(site: Site) -> None:
    """Refuse a log under a later rules version, which may refuse what this version accepts."""
    if site.rules > NEWEST_RULES:
        known = f"expected version {NEWEST_RULES} at most, got {site.rules}"
        raise BadInput(f"export, rules: {known}: this build is older than the log, so load it with a later one")


def _check_receiver(order: ExportAdapter, unit: str, served_model: str) -> None:
    """Refuse an export for another unit or served model.

    All units trust the same log, so the log alone does not tell them apart.
    """
    if (order.unit, order.served_model) != (unit, served_model):
        code = "another-unit" if order.unit != unit else "another-served-model"
        refused = EXPORT_FOR_ANOTHER(
            unit=unit, served_model=served_model, of_unit=order.unit, of_served_model=order.served_model
        )
        raise Denied("export", refusals=(refused,), code=code)


def _check_dates(state: State, entry: Entry, order: ExportAdapter, now: Time) -> None:
    if now < add_seconds(entry.time, -state.parameters.clock_skew_s):
        raise Denied("export", refusals=(NOT_YET_VALID(issued=entry.time, now=now),), code="not-yet-valid")
    if now >= order.valid_until:
        raise Denied("export", refusals=(EXPIRED(expires=order.valid_until, now=now),), code="expired")


def _open_log(state_rows: ExportRows, logged: Mapping[int, LoggedOrder], note: bytes, trust: Trust) -> Checkpoint:
    site = state_rows.site
    expected, got = (trust.origin, *trust.log_keys), (site.origin, *site.checkpoint_keys())
    if got != expected:
        raise Tampered(f"export, log: expected {_name_log(*expected)}, as the trust file says, got {_name_log(*got)}")
    checkpoint = open_log_checkpoint(note, trust.origin, trust.log_keys)
    first = _prove_logged(logged, 0, checkpoint)
    if f"sha256:{first.leaf.hex()}" != trust.genesis:
        raise Tampered(f"export, first entry: expected {trust.genesis}, got sha256:{first.leaf.hex()}")
    body: Mapping[str, Any] = first.body
    if (key := body.get("adapter_key")) != site.adapter_key:
        raise Tampered(
            f"export, adapter key: expected that of the log's first entry, {show(key)}, got {site.adapter_key}"
        )
    return checkpoint


def _name_log(origin: str, *log_keys: str) -> str:
    return f"{origin} with {' and '.join(map(name_key, log_keys))}"


def _prove_logged(logged: Mapping[int, LoggedOrder], index: int, checkpoint: Checkpoint) -> Entry:
    logged_order = logged.get(index)
    if logged_order is None:
        raise BadInput(f"export, entry {index}: expected it among the proofs, got none")
    return prove_entry(logged_order, index, checkpoint)


def _read_order(state: State, entry: Entry, logged_order: LoggedOrder, state_rows: bytes) -> ExportAdapter:
    bound = entry.documents
    expected, got = f"adapter.exported of {digest_bytes(state_rows)}", f"{entry.type} of {bound.get('state_rows')}"
    if got != expected:
        raise Tampered(f"export, entry {entry.index}: expected {expected}, got {got}")
    if logged_order.envelope is None or digest_bytes(logged_order.envelope) != bound.get("order"):
        raise Tampered(f"export, entry {entry.index}, order: expected {bound.get('order')}, got other bytes")
    order = _ORDER_READER.read_logged(state, logged_order.envelope, entry.index).order
    if not isinstance(order, ExportAdapter):
        raise Tampered(f"export, entry {entry.index}: expected the order to export, got {order.action}")
    return order


ACTIONS = (
    Action(
        ExportAdapter,
        title="Export an adapter",
        has_form=False,
        complete=complete_adapter,
        authorise=authorise_export,
        signers=("release-owner:UNIT",),
        meaning="The unit may load it on a host of its own until the date, and no revocation reaches it there.",
        event=AdapterExported,
        apply=apply_export,
        evidence=make_export_evidence,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "served_model", "valid_until")),
        example_values={"signer": "otto"},
    ),
)
