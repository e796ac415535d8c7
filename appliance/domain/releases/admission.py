"""Admission: the recomputed proof that an adapter may serve a unit's served model now.

Admission does not rely on rows of the database. The state was replayed from verified entries. The evidence is read
again from the store and must match it byte for byte, up to the log's signed checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from appliance.domain.core.decisions import Delegator, Finding, ReleaseRequest, ReviewRecord
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Activation, release_key
from appliance.domain.core.signatures import AcceptedOrder, OrderReader
from appliance.domain.core.state import State
from appliance.domain.evaluation.rules import VERDICT_FILE
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.delegations import Delegate
from appliance.domain.releases.activations import Activate, BreakGlass, Rollback
from appliance.domain.releases.adapters import verify_signatures
from appliance.domain.releases.approval import find_release_blockers, find_released_adapter, list_valid_reviews
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests import RequestRelease, find_current_request, find_requirement
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.releases.verdicts import explain_unproven_verdict, list_valid_exceptions
from appliance.domain.runs.control import AuthoriseRun
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import ApplianceError, NotAuthenticated, Refusal, RefusalCode, Rejected, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint

_APPROVALS = OrderReader.of(
    ReviewAdapter, Activate, Rollback, BreakGlass, RequestRelease, Delegate, Countersign, AddFinding, AuthoriseRun
)
"""Reader of the orders that an approval rests on."""

EVIDENCE_INVALID = RefusalCode(
    "evidence-invalid",
    "state",
    "The evidence for adapter {id} does not prove its approval ({code}): {detail}.",
    "Have an auditor verify the ledger: appliance ledger verify.",
)


@dataclass(frozen=True)
class LoggedOrder:
    """An entry as read from the store, with its inclusion proof and the envelope of its order.

    `countersigned`: the envelope of the order that this one countersigns.
    """

    entry: bytes
    proof: tuple[bytes, ...]
    envelope: bytes | None
    countersigned: bytes | None = None


@dataclass(frozen=True)
class AdmissionInputs:
    """The evidence for one admission.

    `files`: the bytes of each file of the sealed folder by path, each read once. `signatures`: the model signatures
    beside the folder, in the order of the keys. `logged`: entries by index.
    """

    files: Mapping[str, bytes]
    signatures: tuple[bytes, ...]
    logged: Mapping[int, LoggedOrder]
    checkpoint: bytes

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Digest of each file by path. Each file is hashed once."""
        return {path: digest_bytes(data) for path, data in self.files.items()}


@dataclass(frozen=True)
class Admission:
    """The result of an admission: the adapter, the entries that approve it, and all refusal reasons.

    `tampered`: part of the evidence does not match its digest, signature or record. `changed`: the adapter's own bytes
    do not match. The evidence from the log can be read again, the adapter's bytes cannot.
    """

    adapter: Adapter
    approvals: tuple[int, ...]
    reasons: tuple[Refusal, ...]
    tampered: bool
    changed: bool


def entries_needed(state: State, unit: str, adapter: Adapter, served_model: str, now: Time) -> tuple[int, ...]:
    """Return the indexes of the entries that the proof rests on.

    These are the sealing, the valid reviews, their requests and delegations, the exceptions that accept the verdict,
    the authorisation of the run, and the current release.
    """
    release = state.releases.get(release_key(unit, served_model))
    reviews = list_valid_reviews(state, adapter, unit, now)
    delegated = [review.on_behalf_of.index for review in reviews if review.on_behalf_of is not None]
    indexes = [request.index for request in _signed_requests(state, adapter, unit)]
    indexes += [finding.index for finding in _accepting_exceptions(state, adapter, unit, now)]
    indexes += [] if adapter.authorised is None else [adapter.authorised.index]
    current = () if release is None else (release.current.index,)
    return (adapter.index, *(review.index for review in reviews), *dict.fromkeys((*indexes, *delegated)), *current)


def _signed_requests(state: State, adapter: Adapter, unit: str) -> list[ReleaseRequest]:
    """Return the current request if a person signed it. The one of an emergency is proved by its own release."""
    request = find_current_request(state, adapter, unit)
    return [] if request is None or request.kind == "break-glass" else [request]


def _accepting_exceptions(state: State, adapter: Adapter, unit: str, now: Time) -> list[Finding]:
    """Return the valid exceptions that accept a verdict that did not pass."""
    if explain_unproven_verdict(state, adapter) is None:
        return []
    return list_valid_exceptions(state, adapter, find_requirement(state, adapter, unit).required_functions, now)


def decide_admission(
    state: State, unit: str, served_model: str, evidence: AdmissionInputs, now: Time
) -> Admission | None:
    """Run every check and return all refusal reasons, None if nothing is released to the unit for this served model."""
    adapter = find_released_adapter(state, unit, served_model)
    release = state.releases.get(release_key(unit, served_model))
    if adapter is None or release is None:
        return None
    reviews = list_valid_reviews(state, adapter, unit, now)
    changed = _find_failure(partial(check_bytes, state, adapter, evidence))
    checks: list[Callable[[], None]] = [
        partial(check_sealed, state, adapter, evidence),
        partial(check_release, state, adapter, unit, served_model, release.current, evidence),
        partial(check_verdict, adapter, evidence),
        partial(check_authorisation, state, adapter, evidence),
        *(
            partial(check_request, state, adapter, request, evidence)
            for request in _signed_requests(state, adapter, unit)
        ),
        *(
            partial(check_exception, state, adapter, finding, evidence)
            for finding in _accepting_exceptions(state, adapter, unit, now)
        ),
        *(partial(check_review, state, adapter, review, evidence) for review in reviews),
    ]
    failures = [error for error in (changed, *map(_find_failure, checks)) if error is not None]
    subject = f"adapter:{versioned(adapter.name, adapter.version)}"
    reasons = [EVIDENCE_INVALID(subject, code=error.code, detail=Rejected(error.message)) for error in failures]
    reasons += [*find_release_blockers(state, release, adapter, now), *refuse_unwitnessed_log(state, now)]
    approvals = tuple(review.index for review in reviews)
    # A signer who was revoked later is a refusal reason, but no sign that the evidence was changed.
    tampered = any(not isinstance(error, NotAuthenticated) for error in failures)
    return Admission(adapter, approvals, tuple(reasons), tampered=tampered, changed=changed is not None)


def _find_failure(check: Callable[[], None]) -> ApplianceError | None:
    """Return the error with which a check fails, None if it passes. A check that cannot be made has failed."""
    try:
        check()
    except ApplianceError as error:
        return error
    return None


def check_bytes(state: State, adapter: Adapter, evidence: AdmissionInputs) -> None:
    """Check the adapter's bytes against its manifest, the manifest against the adapter's digest, and the signatures.

    Raises:
        Tampered: one of them does not match.
    """
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
    verify_signatures(state.site, adapter.index, evidence.signatures, signed)


def _open_entry(state: State, index: int, evidence: AdmissionInputs) -> LoggedOrder:
    """Return the logged entry, proved to be at its index under the checkpoint that the log's key signed."""
    logged = evidence.logged.get(index)
    if logged is None:
        raise Tampered(f"entry {index}: expected it in the ledger, got none")
    checkpoint = open_log_checkpoint(evidence.checkpoint, state.site.origin, state.site.checkpoint_keys())
    prove_entry(logged, index, checkpoint)
    return logged


def open_log_checkpoint(note: bytes, origin: str, log_keys: Sequence[str]) -> Checkpoint:
    """Return the checkpoint that each of this log's keys signed.

    Raises:
        Tampered: the checkpoint is of another log.
    """
    checkpoint = open_checkpoint(note, *log_keys)
    if checkpoint.origin != origin:
        raise Tampered(f"checkpoint: expected one of {origin}, got {checkpoint.origin}")
    return checkpoint


def prove_entry(logged: LoggedOrder, index: int, checkpoint: Checkpoint) -> Entry:
    """Return the entry, proved to be at this index under the checkpoint.

    Raises:
        Tampered: the entry has another index, or its inclusion proof fails.
    """
    entry = parse_entry(logged.entry)
    if entry.index != index:
        raise Tampered(f"entry {index}: expected this index, got {entry.index}")
    verify_inclusion(entry.leaf, index, checkpoint.size, logged.proof, checkpoint.root)
    return entry


def check_sealed(state: State, adapter: Adapter, evidence: AdmissionInputs) -> None:
    """Check that the entry that sealed the adapter names this manifest and this verdict."""
    entry = parse_entry(_open_entry(state, adapter.index, evidence).entry)
    bound = (entry.type, entry.documents.get("manifest"))
    if bound != ("adapter.sealed", adapter.manifest):
        raise Tampered(f"entry {adapter.index}: expected adapter.sealed of {adapter.manifest}, got {bound}")
    verdict = entry.documents.get("verdict")
    if verdict != adapter.verdict:
        raise Tampered(f"entry {adapter.index}, verdict: expected {adapter.verdict}, got {verdict}")


def check_verdict(adapter: Adapter, evidence: AdmissionInputs) -> None:
    """Check that the verdict in the sealed folder is the one that was sealed, and matches the record."""
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
    """Check that the second person whom the record names signed the authorisation of the adapter's run."""
    authorisation = adapter.authorised
    if authorisation is None:
        return
    order = _logged_order(state, authorisation.index, authorisation.order, authorisation.keyid, evidence)
    if not isinstance(order, AuthoriseRun):
        raise Tampered(f"entry {authorisation.index}: expected an order to let a run begin, got {order}")
    found, expected = (order.signer, order.run), (authorisation.by, adapter.run)
    if found != expected:
        raise Tampered(f"entry {authorisation.index}, authorisation: expected {expected}, got {found}")


def check_exception(state: State, adapter: Adapter, finding: Finding, evidence: AdmissionInputs) -> None:
    """Check that the reviewer signed an exception that accepts this adapter's verdict until the recorded date."""
    order = _logged_order(state, finding.index, finding.order, finding.keyid, evidence)
    if not isinstance(order, AddFinding):
        raise Tampered(f"entry {finding.index}: expected a finding, got {order}")
    found = (order.signer, order.manifest, order.review_function, order.kind, order.accepts_verdict, order.due)
    expected = (
        finding.finder,
        adapter.manifest,
        finding.review_function,
        finding.kind,
        finding.accepts_verdict,
        finding.due,
    )
    if found != expected:
        raise Tampered(f"entry {finding.index}, finding: expected {expected}, got {found}")


def check_review(state: State, adapter: Adapter, review: ReviewRecord, evidence: AdmissionInputs) -> None:
    """Check that the reviewer signed what the record states, for this adapter's bytes and this unit."""
    order = _logged_order(state, review.index, review.order, review.keyid, evidence)
    if not isinstance(order, ReviewAdapter):
        raise Tampered(f"entry {review.index}: expected a review, got {order}")
    delegated = review.on_behalf_of
    found = (
        *(order.signer, order.manifest, order.unit, order.review_function, order.decision, order.valid_until),
        *(order.request, order.conditions, order.on_behalf_of),
    )
    expected = (
        *(review.reviewer, adapter.manifest, review.unit, review.review_function, review.decision, review.valid_until),
        *(review.request, review.conditions, None if delegated is None else delegated.principal),
    )
    if found != expected:
        raise Tampered(f"entry {review.index}, review: expected {expected}, got {found}")
    if delegated is not None:
        check_delegation(state, review, delegated, evidence)


def check_delegation(state: State, review: ReviewRecord, delegated: Delegator, evidence: AdmissionInputs) -> None:
    """Check that the delegator delegated this review function to this reviewer until after the review."""
    order = _logged_order(state, delegated.index, None, delegated.keyid, evidence)
    if not isinstance(order, Delegate):
        raise Tampered(f"entry {delegated.index}: expected a delegation, got {order}")
    found, expected = (
        (order.signer, order.principal, order.review_function),
        (delegated.principal, review.reviewer, review.review_function),
    )
    if found != expected or order.until is None or order.until <= review.time:
        named = (*expected, f"until after {review.time}")
        raise Tampered(f"entry {delegated.index}, delegation: expected {named}, got {(*found, order.until)}")


def check_request(state: State, adapter: Adapter, request: ReleaseRequest, evidence: AdmissionInputs) -> None:
    """Check that the person who requested the release signed what the record states."""
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
    state: State, adapter: Adapter, unit: str, served_model: str, activation: Activation, evidence: AdmissionInputs
) -> None:
    """Check that the release owner signed a release of this adapter's bytes for this unit and served model."""
    order = _logged_order(state, activation.index, activation.order, activation.keyid, evidence)
    if not isinstance(order, Activate | Rollback | BreakGlass):
        raise Tampered(f"entry {activation.index}: expected a release, got {order}")
    found = (order.signer, order.manifest, order.unit, order.served_model, getattr(order, "until", None))
    expected = (activation.signer, adapter.manifest, unit, served_model, activation.until)
    if found != expected:
        raise Tampered(f"entry {activation.index}, release: expected {expected}, got {found}")


def _logged_order(state: State, index: int, digest: str | None, keyid: str, evidence: AdmissionInputs) -> object:
    """Return the order that an entry carries out, checked against its digest and key.

    If `digest` is None, any order under that key is accepted. If the entry's order is a countersignature, the result
    is the order that it countersigns.
    """
    logged = _open_entry(state, index, evidence)
    bound = parse_entry(logged.entry).documents
    accepted = _read_order(state, index, bound.get("order"), logged.envelope)
    if isinstance(accepted.order, Countersign):
        countersigned, accepted = (
            accepted.order.order,
            _read_order(state, index, bound.get("countersigned"), logged.countersigned),
        )
        if accepted.digest != countersigned:
            raise Tampered(
                f"entry {index}, order: expected the countersigned one, {countersigned}, got {accepted.digest}"
            )
    if (accepted.digest, accepted.keyid) != (digest or accepted.digest, keyid):
        raise Tampered(f"entry {index}, order: expected {digest} under {keyid}, got {accepted.digest}")
    return accepted.order


def _read_order(state: State, index: int, bound: str | None, envelope: bytes | None) -> AcceptedOrder:
    if envelope is None or digest_bytes(envelope) != bound:
        raise Tampered(f"entry {index}, order: expected {bound}, got other bytes")
    return _APPROVALS.read_logged(state, envelope, index)
