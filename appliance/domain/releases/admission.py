"""Admission: the proof, recomputed from bytes, that an adapter may answer for a unit's task now.

Nothing here trusts a row. The state was folded from verified entries; the evidence was read again from the store and
must agree with it byte for byte, up to the log's signed checkpoint.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records import Activation, Adapter, ReviewRecord, release_key
from appliance.domain.core.signatures import OrderReader
from appliance.domain.core.state import State
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.approval import barred, released, standing_reviews
from appliance.domain.releases.reviews import Review
from appliance.domain.witnesses.cosignatures import unwitnessed
from appliance.errors import ApplianceError, NotAuthenticated, Tampered
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.signatures.bundle import verify_model

_APPROVALS = OrderReader.of(Review, Activate, RollBack)
"""The orders that an approval rests on."""


@dataclass(frozen=True)
class LoggedOrder:
    """An entry as read from the store, its inclusion proof and its order's envelope."""

    entry: bytes
    proof: tuple[bytes, ...]
    envelope: bytes | None


@dataclass(frozen=True)
class AdmissionInputs:
    """`files`: path to bytes of the sealed folder, each read once; `logged`: by entry index."""

    files: Mapping[str, bytes]
    signature: bytes
    logged: Mapping[int, LoggedOrder]
    checkpoint: bytes

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Of every file, hashed once, whoever asks first."""
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
    """Indexes of the entries that the proof rests on: sealing, standing reviews and today's release."""
    release = state.releases.get(release_key(unit, task))
    reviews = [review.index for review in standing_reviews(state, adapter, unit, now)]
    return (adapter.index, *reviews, *(() if release is None else (release.current.index,)))


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


def check_review(state: State, adapter: Adapter, review: ReviewRecord, evidence: AdmissionInputs) -> None:
    """The reviewer's own signature says what the record says, for this adapter's bytes and this unit."""
    order = _logged_order(state, review.index, review.order, review.keyid, evidence)
    if not isinstance(order, Review):
        raise Tampered(f"entry {review.index}: expected a review, got {order}")
    found = (order.signer, order.manifest, order.unit, order.field, order.decision, order.valid_until)
    expected = (
        review.reviewer,
        adapter.manifest,
        review.unit,
        review.field,
        review.decision,
        review.valid_until,
    )
    if found != expected:
        raise Tampered(f"entry {review.index}, review: expected {expected}, got {found}")


def check_release(
    state: State, adapter: Adapter, unit: str, task: str, activation: Activation, evidence: AdmissionInputs
) -> None:
    """The release owner's own signature names this adapter's bytes for this unit and task."""
    order = _logged_order(state, activation.index, activation.order, activation.keyid, evidence)
    if not isinstance(order, Activate | RollBack):
        raise Tampered(f"entry {activation.index}: expected a release, got {order}")
    found = (order.signer, order.manifest, order.unit, order.task)
    expected = (activation.signer, adapter.manifest, unit, task)
    if found != expected:
        raise Tampered(f"entry {activation.index}, release: expected {expected}, got {found}")


def _logged_order(state: State, index: int, digest: str, keyid: str, evidence: AdmissionInputs) -> object:
    logged = _open(state, index, evidence)
    entry = parse_entry(logged.entry)
    if logged.envelope is None or digest_bytes(logged.envelope) != entry.documents.get("order"):
        raise Tampered(f"entry {index}, order: expected {entry.documents.get('order')}, got other bytes")
    accepted = _APPROVALS.read_logged(state, logged.envelope, index)
    if (accepted.digest, accepted.keyid) != (digest, keyid):
        raise Tampered(f"entry {index}, order: expected {digest} under {keyid}, got {accepted.digest}")
    return accepted.order
