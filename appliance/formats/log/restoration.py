"""Restorations: orders of two administrators by which a log gives up entries that others may have seen.

A restoration file proves one without the log: the entry with its inclusion proof, the signed orders, the public keys of
their signers, and the checkpoint that is given up. A step-back file is for the signer of the log's checkpoints, which
reads it before the entry exists. Instead of the entry it has the checkpoint that is kept, and the right edge of its
tree. The reader of either file names the administrators whom it trusts. Both are canonical JSON and a newline
(docs/formats/witness.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import digest_bytes, parse_digest, raw_digest
from appliance.formats.core.fields import (
    as_tampered,
    encode_base64,
    parse_base64,
    parse_constant,
    parse_count,
    parse_list,
    parse_object,
    parse_text,
    show,
)
from appliance.formats.core.merkle import Frontier, hash_leaf, verify_consistency, verify_inclusion
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.note import parse_vkey
from appliance.formats.log.proof import MAX_HASHES, parse_proof
from appliance.formats.signatures.dsse import Envelope, Statement, parse_envelope, parse_statement, verify_envelope
from appliance.formats.signatures.keys import keyid_of

VERSION = 1
MAX_RESTORATION_BYTES = 1_048_576
"""Maximum bytes of a restoration file."""
ENTRY_TYPE = "log.restored"
"""Type of the entry of a restoration."""
ORDER_TYPE, COUNTERSIGN_TYPE = "urn:appliance:order:restore-log:v1", "urn:appliance:order:countersign:v1"
"""Predicate types of the first administrator's order and of the second's."""
_SHARED_MEMBERS = frozenset({"countersigned", "keys", "lost", "order", "version"})
_MEMBERS = _SHARED_MEMBERS | {"consistency", "entry", "proof"}
_STEP_BACK_MEMBERS = _SHARED_MEMBERS | {"edge", "kept"}
_SIGNED = frozenset(
    {
        *("origin", "signer", "nonce", "issued_at", "expires_at", "reason"),
        *("kept_size", "kept_root", "lost", "lost_size", "lost_root"),
    }
)


@dataclass(frozen=True, slots=True)
class StepBack:
    """The step of a log from `lost`, the newest checkpoint that it gives up, back to `kept`, which it continues.

    `ordered_at` is the time at which the first administrator issued the order.
    """

    kept: Checkpoint
    lost: Checkpoint
    ordered_at: str

    @property
    def ordered_s(self) -> int:
        """Return the second in which the order was issued, since 1970. Cosignatures have whole seconds, too."""
        return int(parse_time(self.ordered_at).timestamp())

    def check(self, seen: Checkpoint, seen_at_s: float) -> None:
        """Check that a checkpoint is one of those that the step gives up.

        `seen_at_s` is the time at which its holder got it, in seconds since 1970. A checkpoint that was seen in
        the order's second or later may be of the restored log, which has to continue it.

        Raises:
            Tampered: it is another one.
        """
        if seen.origin != self.lost.origin:
            raise self._refuse(f"expected a checkpoint of {show(self.lost.origin)}, got one of {show(seen.origin)}")
        if seen.size <= self.kept.size:
            raise self._refuse(
                f"expected a checkpoint of more than {self.kept.size} entries, which the log keeps, got {seen.size}"
            )
        if seen.size > self.lost.size:
            raise self._refuse(f"expected a checkpoint of at most {self.lost.size} entries, got {seen.size}")
        if seen.size == self.lost.size and seen.root != self.lost.root:
            raise self._refuse(
                f"expected the root {self.lost.root.hex()} at {seen.size} entries, got {seen.root.hex()}"
            )
        if seen_at_s >= self.ordered_s:
            raise self._refuse(f"expected a checkpoint from before the order of {self.ordered_at}, got a later one")

    def _refuse(self, text: str) -> Tampered:
        return Tampered(f"restoration: {text}", code="restoration-refused")


@dataclass(frozen=True, slots=True)
class SignedOrders:
    """The unverified orders of a restoration.

    `order` and `countersigned` are the documents of the restoration's entry: the second administrator's envelope and
    the first one's. With one signature, `order` is the only envelope and `countersigned` is None. `lost` is the note
    that is given up. `keys` are the signers' public keys.
    """

    order: bytes
    countersigned: bytes | None
    lost: bytes
    keys: tuple[bytes, ...]

    @property
    def first(self) -> bytes:
        """Return the first administrator's envelope."""
        return self.order if self.countersigned is None else self.countersigned


@dataclass(frozen=True, slots=True)
class RestorationFile(SignedOrders):
    """An unverified restoration file, which proves a restoration without the log.

    `entry` are the bytes of the entry, and `proof` is its `.tlog-proof` file, which has the new checkpoint.
    `consistency` leads from the kept size to the new checkpoint.
    """

    entry: bytes
    proof: bytes
    consistency: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StepBackFile(SignedOrders):
    """An unverified step-back file: the orders for the signer.

    `kept` is the signed note of the checkpoint that the log keeps, and `edge` the right edge of the tree at its size.
    """

    kept: bytes
    edge: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class VerifiedRestoration:
    """A verified restoration: its entry, who signed it, and the note of a checkpoint that contains the entry."""

    index: int
    step: StepBack
    signers: tuple[str, ...]
    checkpoint: Checkpoint
    note: bytes


@dataclass(frozen=True, slots=True)
class VerifiedStepBack:
    """A verified step-back file: the step, its signers, and the right edge at the kept size.

    `expires_ms` is the time at which the first of the orders expires, in milliseconds since 1970.
    """

    step: StepBack
    signers: tuple[str, ...]
    edge: Frontier
    expires_ms: int


def encode_restoration(restoration: RestorationFile) -> bytes:
    value = {
        "consistency": [encode_base64(step) for step in restoration.consistency],
        "entry": encode_base64(restoration.entry),
        "proof": encode_base64(restoration.proof),
    }
    return encode_canonical(_encode_shared(restoration) | value) + b"\n"


def encode_step_back(file: StepBackFile) -> bytes:
    value = {"edge": [encode_base64(one) for one in file.edge], "kept": encode_base64(file.kept)}
    return encode_canonical(_encode_shared(file) | value) + b"\n"


def _encode_shared(orders: SignedOrders) -> dict[str, Any]:
    second = orders.countersigned
    return {
        "countersigned": None if second is None else encode_base64(second),
        "keys": [encode_base64(key) for key in orders.keys],
        "lost": encode_base64(orders.lost),
        "order": encode_base64(orders.order),
        "version": VERSION,
    }


def parse_restoration(data: bytes) -> RestorationFile:
    """Parse a restoration file without verifying it."""
    value = _parse_members(data, "restoration", _MEMBERS)
    return RestorationFile(
        **_parse_shared(value, "restoration"),
        entry=parse_base64(value["entry"], "restoration, entry"),
        proof=parse_base64(value["proof"], "restoration, proof"),
        consistency=_parse_hashes(value["consistency"], "restoration, consistency"),
    )


def parse_step_back(data: bytes) -> StepBackFile:
    """Parse a step-back file without verifying it."""
    value = _parse_members(data, "step-back", _STEP_BACK_MEMBERS)
    return StepBackFile(
        **_parse_shared(value, "step-back"),
        kept=parse_base64(value["kept"], "step-back, kept"),
        edge=_parse_hashes(value["edge"], "step-back, edge"),
    )


def _parse_members(data: bytes, what: str, members: frozenset[str]) -> dict[str, Any]:
    if not data.endswith(b"\n"):
        raise BadInput(f"{what}, end: expected a newline, got none")
    value = parse_object(parse_canonical(data[:-1]), what, members)
    parse_constant(value["version"], f"{what}, version", VERSION)
    return value


def _parse_shared(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    second = value["countersigned"]
    return {
        "order": parse_base64(value["order"], f"{what}, order"),
        "countersigned": None if second is None else parse_base64(second, f"{what}, countersigned"),
        "lost": parse_base64(value["lost"], f"{what}, lost"),
        "keys": tuple(parse_base64(key, f"{what}, key") for key in parse_list(value["keys"], f"{what}, keys")),
    }


def _parse_hashes(value: object, what: str) -> tuple[bytes, ...]:
    hashes = parse_list(value, what)
    if len(hashes) > MAX_HASHES:
        raise BadInput(f"{what}: expected at most {MAX_HASHES} hashes, got {len(hashes)}")
    return tuple(parse_base64(one, what) for one in hashes)


def verify_restoration(
    restoration: RestorationFile, log_vkeys: Sequence[str], administrators: Collection[str], *, signatures: int = 2
) -> VerifiedRestoration:
    """Verify a restoration under the log's keys and the key ids of the administrators whom the reader trusts.

    All keys must have signed the new checkpoint, and the last one the checkpoint that is given up. Each signer must be
    another administrator with another key. `signatures` is 1 for a site with a single administrator.

    Raises:
        Tampered: a signature, a proof or a document is not valid, or too few administrators signed.
    """
    with as_tampered():
        proof = parse_proof(restoration.proof)
        checkpoint = open_checkpoint(proof.checkpoint, *log_vkeys)
        verify_inclusion(hash_leaf(restoration.entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
        _check_entry(restoration)
        step, signers = verify_orders(restoration, log_vkeys[-1], administrators, signatures=signatures)
        verify_consistency(step.kept.size, checkpoint.size, restoration.consistency, step.kept.root, checkpoint.root)
    return VerifiedRestoration(proof.index, step, signers, checkpoint, proof.checkpoint)


def verify_step_back(
    file: StepBackFile, log_vkeys: Sequence[str], administrators: Collection[str], *, signatures: int = 2
) -> VerifiedStepBack:
    """Verify a step-back file under the signer's own keys and the key ids of the administrators whom its owner trusts.

    One of the keys must have signed both the checkpoint that is kept and the one that is given up.

    Raises:
        Tampered: a signature, a note or the tree's edge is not valid, or too few administrators signed.
    """
    vkey = next((vkey for vkey in log_vkeys if _has_signed(file.kept, vkey) and _has_signed(file.lost, vkey)), None)
    if vkey is None:
        raise Tampered("step-back: expected two checkpoints that one of the signer's keys has signed, got others")
    step, signers = verify_orders(file, vkey, administrators, signatures=signatures)
    kept = open_checkpoint(file.kept, vkey)
    with as_tampered("step-back, edge"):
        edge = Frontier(kept.size, file.edge)
    if kept != step.kept or edge.root() != kept.root:
        raise Tampered(
            f"step-back, kept: expected the checkpoint of {step.kept.size} entries with the root "
            f"{step.kept.root.hex()}, as was signed, got one of {kept.size} with {kept.root.hex()} and an edge with "
            f"{edge.root().hex()}"
        )
    return VerifiedStepBack(step, signers, edge, _read_expiry(file))


def _read_expiry(orders: SignedOrders) -> int:
    """Return the time at which the first of the verified orders expires."""
    envelopes = [parse_envelope(data) for data in (orders.countersigned, orders.order) if data is not None]
    with as_tampered():
        ends = [parse_statement(one.payload).predicate.get("expires_at") for one in envelopes]
        return min(round(parse_time(parse_text(end, "step-back, expires_at")).timestamp() * 1000) for end in ends)


def _has_signed(note: bytes, vkey: str) -> bool:
    try:
        open_checkpoint(note, vkey)
    except ApplianceError:
        return False
    return True


def verify_orders(
    restoration: SignedOrders, log_vkey: str, administrators: Collection[str], *, signatures: int = 2
) -> tuple[StepBack, tuple[str, ...]]:
    """Verify the orders of a restoration. Return the step that they order, and the names of their signers.

    The entry and its proof are not needed.

    Raises:
        Tampered: a signature or the note that is given up is not valid, or too few administrators signed.
    """
    documents = (restoration.countersigned, restoration.order)
    with as_tampered():
        envelopes = [parse_envelope(data) for data in documents if data is not None]
        if len(envelopes) < signatures:
            raise Tampered(f"restoration: expected the signatures of {signatures} administrators, got {len(envelopes)}")
        signers = _verify_signers(envelopes, restoration.keys, administrators)
        return _read_step(envelopes, restoration.lost, log_vkey), signers


def _check_entry(restoration: RestorationFile) -> None:
    """Check that the entry is a restoration's and binds the orders and the note."""
    entry = parse_canonical(restoration.entry)
    if not isinstance(entry, dict):
        raise BadInput("restoration, entry: expected an object, got another value")
    parse_constant(entry.get("type"), "restoration, entry type", ENTRY_TYPE)
    given = {"order": restoration.order, "countersigned": restoration.countersigned, "lost": restoration.lost}
    expected = {role: digest_bytes(data) for role, data in given.items() if data is not None}
    if entry.get("documents") != expected:
        raise Tampered(f"restoration, documents: expected {show(entry.get('documents'))}, got {show(expected)}")


def _verify_signers(
    envelopes: list[Envelope], keys: Collection[bytes], administrators: Collection[str]
) -> tuple[str, ...]:
    """Verify the signature of each envelope, and return the names of the signers in the same order."""
    known: Mapping[str, bytes] = {keyid_of(key): key for key in keys}
    names = []
    for envelope in envelopes:
        keyid = envelope.signature.keyid
        if keyid not in administrators:
            raise Tampered(f"restoration: expected the key of a trusted administrator, got {keyid}", code="trust")
        if keyid not in known:
            raise Tampered(f"restoration, keys: expected the public key {keyid}, got none")
        verify_envelope(envelope, known[keyid])
        names.append(parse_text(parse_statement(envelope.payload).predicate.get("signer"), "restoration, signer"))
    for column in (names, [envelope.signature.keyid for envelope in envelopes]):
        if len(set(column)) != len(column):
            raise Tampered("restoration: expected two administrators with a key each, got one twice")
    return tuple(names)


def _read_step(envelopes: list[Envelope], lost: bytes, log_vkey: str) -> StepBack:
    """Return the step that the first envelope orders and the second, if there is one, countersigns."""
    origin, order = parse_vkey(log_vkey).name, _read_statement(envelopes[0], ORDER_TYPE, log_vkey).predicate
    parse_object(order, "restoration, order", _SIGNED)
    if len(envelopes) == 2:
        second = _read_statement(envelopes[1], COUNTERSIGN_TYPE, log_vkey).predicate
        parse_constant(second.get("order"), "restoration, countersigned order", envelopes[0].pae_digest)
    parse_constant(digest_bytes(lost), "restoration, lost", parse_text(order["lost"], "restoration, lost"))
    found = open_checkpoint(lost, log_vkey)
    named = Checkpoint(origin, *_read_head(order, "lost"))
    if found != named:
        raise Tampered(f"restoration, lost: expected {named.size} entries, as was signed, got {found.size}")
    kept = Checkpoint(origin, *_read_head(order, "kept"))
    if kept.size >= found.size:
        raise Tampered(f"restoration: expected to keep fewer than {found.size} entries, got {kept.size}")
    ordered_at = parse_text(order["issued_at"], "restoration, issued_at")
    parse_time(ordered_at)
    return StepBack(kept, found, ordered_at)


def _read_statement(envelope: Envelope, kind: str, log_vkey: str) -> Statement:
    """Return the statement of an order of this kind for this log."""
    statement = parse_statement(envelope.payload)
    parse_constant(statement.predicate_type, "restoration, order", kind)
    parse_constant(statement.predicate.get("origin"), "restoration, log", parse_vkey(log_vkey).name)
    return statement


def _read_head(order: Mapping[str, Any], name: str) -> tuple[int, bytes]:
    size = parse_count(order[f"{name}_size"], f"restoration, {name} size", least=1)
    return size, raw_digest(parse_digest(order[f"{name}_root"], f"restoration, {name} root"))
