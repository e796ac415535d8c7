"""Admission: the proof, recomputed from bytes, that an adapter may answer for a unit's task now.

Nothing here trusts a row. The state was folded from verified entries; the evidence was read again from the store and
must agree with it byte for byte, up to the log's signed checkpoint.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from appliance.domain.core.decisions import Delegated, Finding, ReleaseRequest, ReviewRecord
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.serving import Activation, release_key
from appliance.domain.core.signatures import Accepted, OrderReader
from appliance.domain.core.state import State
from appliance.domain.evaluation.judging import VERDICT_FILE
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.governance.delegations import Delegate
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.approval import barred, released, standing_reviews
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests_for_release import RequestRelease
from appliance.domain.releases.reviews import Review
from appliance.domain.releases.tiers import current_request, needed_for
from appliance.domain.releases.verdicts import accepted_by, unproven
from appliance.domain.runs.authorisation import AuthoriseRun
from appliance.domain.witnesses.cosignatures import unwitnessed
from appliance.errors import ApplianceError, NotAuthenticated, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.signatures.bundle import verify_model

_APPROVALS = OrderReader.of(
    Review, Activate, RollBack, BreakGlass, RequestRelease, Delegate, Endorse, AddFinding, AuthoriseRun
)
"""The orders that an approval rests on."""


@dataclass(frozen=True)
class LoggedOrder:
    """An entry as read from the store, its inclusion proof and its order's envelope; `endorsed`: the envelope that this
    one endorses."""

    entry: bytes
    proof: tuple[bytes, ...]
    envelope: bytes | None
    endorsed: bytes | None = None


@dataclass(frozen=True)
class AdmissionInputs:
    """`files`: path to bytes of the sealed folder, each read once; `logged`: by entry index."""

    files: Mapping[str, bytes]
    signature: bytes
    logged: Mapping[int, LoggedOrder]
    checkpoint: bytes

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Of every file; each is hashed once."""
        return {path: digest_bytes(data) for path, data in self.files.items()}


@dataclass(frozen=True)
class Admission:
    """What was found: an adapter, the entries that approve it, and every reason against.

    `tampered`: some of the evidence is not what it should be. `changed`: the adapter's own bytes are not; the log's
    evidence can be read again, these cannot.
    """

    adapter: Adapter
    approvals: tuple[int, ...]
    reasons: tuple[str, ...]
    tampered: bool
    changed: bool


def entries_needed(state: State, unit: str, adapter: Adapter, task: str, now: Time) -> tuple[int, ...]:
    """Indexes of the entries that the proof rests on: sealing, standing reviews, what they were made on and delegated
    by, the exceptions that accept its verdict, who let its run begin, and today's release."""
    release = state.releases.get(release_key(unit, task))
    reviews = standing_reviews(state, adapter, unit, now)
    delegated = [review.on_behalf_of.index for review in reviews if review.on_behalf_of is not None]
    asked = [request.index for request in _requests(state, adapter, unit)]
    asked += [finding.index for finding in _exceptions(state, adapter, unit, now)]
    asked += [] if adapter.authorised is None else [adapter.authorised.index]
    current = () if release is None else (release.current.index,)
    return (adapter.index, *(review.index for review in reviews), *dict.fromkeys((*asked, *delegated)), *current)


def _requests(state: State, adapter: Adapter, unit: str) -> list[ReleaseRequest]:
    """The request that a person signed, if one is in force. What an emergency opened is proved by its own release."""
    request = current_request(state, adapter, unit)
    return [] if request is None or request.kind == "break-glass" else [request]


def _exceptions(state: State, adapter: Adapter, unit: str, now: Time) -> list[Finding]:
    """Those by which a verdict that was not passed is accepted."""
    if unproven(state, adapter) is None:
        return []
    return accepted_by(state, adapter, needed_for(state, adapter, unit).required_fields, now)


def decide_admission(state: State, unit: str, task: str, evidence: AdmissionInputs, now: Time) -> Admission | None:
    """Every check, every reason; None where nothing is released to the unit under this name."""
    adapter = released(state, unit, task)
    release = state.releases.get(release_key(unit, task))
    if adapter is None or release is None:
        return None
    reviews = standing_reviews(state, adapter, unit, now)
    changed = _failure(partial(check_bytes, state, adapter, evidence))
    checks: list[Callable[[], None]] = [
        partial(check_sealed, state, adapter, evidence),
        partial(check_release, state, adapter, unit, task, release.current, evidence),
        partial(check_verdict, adapter, evidence),
        partial(check_authorisation, state, adapter, evidence),
        *(partial(check_request, state, adapter, request, evidence) for request in _requests(state, adapter, unit)),
        *(partial(check_exception, state, adapter, one, evidence) for one in _exceptions(state, adapter, unit, now)),
        *(partial(check_review, state, adapter, review, evidence) for review in reviews),
    ]
    failures = [error for error in (changed, *map(_failure, checks)) if error is not None]
    reasons = [error.message for error in failures]
    reasons += [*barred(state, release, adapter, now), *unwitnessed(state, now)]
    approvals = tuple(review.index for review in reviews)
    # A signer who was revoked since is a reason to refuse; the adapter's bytes are as they were.
    tampered = any(not isinstance(error, NotAuthenticated) for error in failures)
    return Admission(adapter, approvals, tuple(reasons), tampered=tampered, changed=changed is not None)


def _failure(check: Callable[[], None]) -> ApplianceError | None:
    """Why a check fails; whatever could not be checked has failed."""
    try:
        check()
    except ApplianceError as error:
        return error
    return None


def check_bytes(state: State, adapter: Adapter, evidence: AdmissionInputs) -> None:
    """The folder's bytes hash to its manifest, the manifest to the adapter's identity, and the signature holds."""
    name = versioned(adapter.name, adapter.version)
    found = dict(evidence.digests)
    got = found.pop(MANIFEST_PATH, "none")
    if got != adapter.manifest:
        raise Tampered(f"adapter {name}, manifest: expected {adapter.manifest}, got {got}")
    manifest = parse_manifest(evidence.files[MANIFEST_PATH])
    listed = {file.path: file.digest for file in manifest.files}
    if set(listed) != set(found):
        raise Tampered(f"adapter {name}, files: expected {sorted(listed)}, got {sorted(found)}")
    for path, digest in found.items():
        if digest != listed[path]:
            raise Tampered(f"adapter {name}, file {path}: expected {listed[path]}, got {digest}")
    signed = listed | {MANIFEST_PATH: adapter.manifest}
    verify_model(evidence.signature, base64.b64decode(state.site.adapter_key), signed)


def _open(state: State, index: int, evidence: AdmissionInputs) -> LoggedOrder:
    """The logged entry, proved to lie at its index under the checkpoint that the log's key signed."""
    logged = evidence.logged.get(index)
    if logged is None:
        raise Tampered(f"entry {index}: expected it in the ledger, got none")
    checkpoint = open_log_checkpoint(evidence.checkpoint, state.site.origin, state.site.log_key)
    prove_entry(logged, index, checkpoint)
    return logged


def open_log_checkpoint(note: bytes, origin: str, log_key: str) -> Checkpoint:
    """The checkpoint that this log's key signed; Tampered where it is another log's."""
    checkpoint = open_checkpoint(note, log_key)
    if checkpoint.origin != origin:
        raise Tampered(f"checkpoint: expected one of {origin}, got {checkpoint.origin}")
    return checkpoint


def prove_entry(logged: LoggedOrder, index: int, checkpoint: Checkpoint) -> Entry:
    """The entry, proved to lie at this index under the checkpoint."""
    entry = parse_entry(logged.entry)
    if entry.index != index:
        raise Tampered(f"entry {index}: expected this index, got {entry.index}")
    verify_inclusion(entry.leaf, index, checkpoint.size, logged.proof, checkpoint.root)
    return entry


def check_sealed(state: State, adapter: Adapter, evidence: AdmissionInputs) -> None:
    """The entry that sealed the adapter binds this manifest."""
    entry = parse_entry(_open(state, adapter.index, evidence).entry)
    bound = (entry.type, entry.documents.get("manifest"))
    if bound != ("adapter.sealed", adapter.manifest):
        raise Tampered(f"entry {adapter.index}: expected adapter.sealed of {adapter.manifest}, got {bound}")
    verdict = entry.documents.get("verdict")
    if verdict != adapter.verdict:
        raise Tampered(f"entry {adapter.index}, verdict: expected {adapter.verdict}, got {verdict}")


def check_verdict(adapter: Adapter, evidence: AdmissionInputs) -> None:
    """The sealed folder's verdict is the one that was sealed, and says what the record says."""
    what = f"adapter {versioned(adapter.name, adapter.version)}, {VERDICT_FILE}"
    got = evidence.digests.get(VERDICT_FILE)
    if got != adapter.verdict:
        raise Tampered(f"{what}: expected {adapter.verdict or 'none'}, got {got or 'none'}")
    if adapter.verdict is None:
        return
    verdict = parse_verdict(evidence.files[VERDICT_FILE])
    found = (verdict.gates, verdict.passed, verdict.failed_gates)
    expected = (adapter.gates, adapter.passed, adapter.failed_gates)
    if found != expected:
        raise Tampered(f"{what}: expected {expected}, got {found}")


def check_authorisation(state: State, adapter: Adapter, evidence: AdmissionInputs) -> None:
    """The second person's own signature let this adapter's run begin, where the record names one."""
    made = adapter.authorised
    if made is None:
        return
    order = _logged_order(state, made.index, made.order, made.keyid, evidence)
    if not isinstance(order, AuthoriseRun):
        raise Tampered(f"entry {made.index}: expected an order to let a run begin, got {order}")
    found, expected = (order.signer, order.run), (made.by, adapter.run)
    if found != expected:
        raise Tampered(f"entry {made.index}, authorisation: expected {expected}, got {found}")


def check_exception(state: State, adapter: Adapter, finding: Finding, evidence: AdmissionInputs) -> None:
    """The reviewer's own signature accepts this adapter's verdict until the date that the record names."""
    order = _logged_order(state, finding.index, finding.order, finding.keyid, evidence)
    if not isinstance(order, AddFinding):
        raise Tampered(f"entry {finding.index}: expected a finding, got {order}")
    found = (order.signer, order.manifest, order.field, order.kind, order.accepts_verdict, order.due)
    expected = (finding.finder, adapter.manifest, finding.field, finding.kind, finding.accepts_verdict, finding.due)
    if found != expected:
        raise Tampered(f"entry {finding.index}, finding: expected {expected}, got {found}")


def check_review(state: State, adapter: Adapter, review: ReviewRecord, evidence: AdmissionInputs) -> None:
    """The reviewer's own signature says what the record says, for this adapter's bytes and this unit."""
    order = _logged_order(state, review.index, review.order, review.keyid, evidence)
    if not isinstance(order, Review):
        raise Tampered(f"entry {review.index}: expected a review, got {order}")
    delegated = review.on_behalf_of
    found = (
        *(order.signer, order.manifest, order.unit, order.field, order.decision, order.valid_until),
        *(order.request, order.conditions, order.on_behalf_of),
    )
    expected = (
        *(review.reviewer, adapter.manifest, review.unit, review.field, review.decision, review.valid_until),
        *(review.request, review.conditions, None if delegated is None else delegated.principal),
    )
    if found != expected:
        raise Tampered(f"entry {review.index}, review: expected {expected}, got {found}")
    if delegated is not None:
        check_delegation(state, review, delegated, evidence)


def check_delegation(state: State, review: ReviewRecord, delegated: Delegated, evidence: AdmissionInputs) -> None:
    """The delegator's own signature gave this field to this reviewer, until a time after the review."""
    order = _logged_order(state, delegated.index, None, delegated.keyid, evidence)
    if not isinstance(order, Delegate):
        raise Tampered(f"entry {delegated.index}: expected a delegation, got {order}")
    found, expected = (order.signer, order.principal, order.field), (delegated.principal, review.reviewer, review.field)
    if found != expected or order.until is None or order.until <= review.time:
        named = (*expected, f"until after {review.time}")
        raise Tampered(f"entry {delegated.index}, delegation: expected {named}, got {(*found, order.until)}")


def check_request(state: State, adapter: Adapter, request: ReleaseRequest, evidence: AdmissionInputs) -> None:
    """The signature of who asked says what the record says."""
    order = _logged_order(state, request.index, request.order, request.keyid, evidence)
    if not isinstance(order, RequestRelease):
        raise Tampered(f"entry {request.index}: expected a release request, got {order}")
    found = (order.signer, order.manifest, order.unit, order.exposure, order.purpose, order.verdict, order.conditions)
    expected = (
        *(request.requested_by, adapter.manifest, request.unit, request.exposure, request.purpose),
        *(request.verdict, request.conditions),
    )
    if found != expected:
        raise Tampered(f"entry {request.index}, request: expected {expected}, got {found}")


def check_release(
    state: State, adapter: Adapter, unit: str, task: str, activation: Activation, evidence: AdmissionInputs
) -> None:
    """The release owner's own signature names this adapter's bytes for this unit and task."""
    order = _logged_order(state, activation.index, activation.order, activation.keyid, evidence)
    if not isinstance(order, Activate | RollBack | BreakGlass):
        raise Tampered(f"entry {activation.index}: expected a release, got {order}")
    found = (order.signer, order.manifest, order.unit, order.task, getattr(order, "until", None))
    expected = (activation.signer, adapter.manifest, unit, task, activation.until)
    if found != expected:
        raise Tampered(f"entry {activation.index}, release: expected {expected}, got {found}")


def _logged_order(state: State, index: int, digest: str | None, keyid: str, evidence: AdmissionInputs) -> object:
    """The order that the entry carries out; with no digest, whichever it is under that key. The one that was endorsed
    where the entry's own endorses it."""
    logged = _open(state, index, evidence)
    bound = parse_entry(logged.entry).documents
    accepted = _read(state, index, bound.get("order"), logged.envelope)
    if isinstance(accepted.order, Endorse):
        endorsed, accepted = accepted.order.order, _read(state, index, bound.get("endorsed"), logged.endorsed)
        if accepted.digest != endorsed:
            raise Tampered(f"entry {index}, order: expected the endorsed one, {endorsed}, got {accepted.digest}")
    if (accepted.digest, accepted.keyid) != (digest or accepted.digest, keyid):
        raise Tampered(f"entry {index}, order: expected {digest} under {keyid}, got {accepted.digest}")
    return accepted.order


def _read(state: State, index: int, bound: str | None, envelope: bytes | None) -> Accepted:
    if envelope is None or digest_bytes(envelope) != bound:
        raise Tampered(f"entry {index}, order: expected {bound}, got other bytes")
    return _APPROVALS.read_logged(state, envelope, index)
