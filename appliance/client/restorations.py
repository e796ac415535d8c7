"""Restorations of the log: the losses that the service has found, the order, and the file that proves it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.api.log import RestorationAnswer
from appliance.client.support.connection import Connection, Parameter
from appliance.client.support.log import Anchor, list_rows, read_event
from appliance.client.support.orders import Pending, SignedOrder, check_origin, parse_pending
from appliance.domain.actions.proposals import Proposal, check_documents
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.records.people import Key
from appliance.domain.core.records.site import Restoration
from appliance.domain.governance.restoration import LogRestored, RestoreLog
from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_consistency
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.proof import parse_proof
from appliance.formats.log.restoration import (
    RestorationFile,
    StepBackFile,
    VerifiedRestoration,
    encode_restoration,
    encode_step_back,
    parse_step_back,
    verify_restoration,
)
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope, verify_envelope
from appliance.formats.signatures.keys import Signer, keyid_of

_ATTEMPTS = 5
"""Most attempts to read a proof under one checkpoint while the log grows."""


@dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint of the log, signed by its key, and where it comes from."""

    checkpoint: Checkpoint
    note: bytes
    source: str


@dataclass(frozen=True)
class LogToRestore:
    """The log as the service has it: its head, the entries that it would keep, and the losses that it has found.

    `waits` is True if the service waits for a restoration, and `signer_ahead` if its signer has to step back first.
    `note` is the signed checkpoint of the head, and `edge` the right edge of the kept entries' tree, if they are the
    whole log. `losses` are checkpoints that the log does not continue. `signers` are those of the requested key ids
    that may sign, as the service says.
    """

    waits: bool
    signer_ahead: bool
    head: Checkpoint
    note: bytes
    kept: Checkpoint
    edge: tuple[bytes, ...]
    losses: tuple[KnownCheckpoint, ...]
    waiting: tuple[Pending, ...]
    restorations: tuple[Restoration, ...]
    signers: tuple[str, ...]

    def values(self, lost: KnownCheckpoint) -> dict[str, object]:
        """Return the fields of the order that keeps these entries and gives up the checkpoint."""
        return {
            "kept_size": self.kept.size,
            "kept_root": _root_of(self.kept),
            "lost": digest_bytes(lost.note),
            "lost_size": lost.checkpoint.size,
            "lost_root": _root_of(lost.checkpoint),
        }


def read_restoration(
    connection: Connection, anchor: Anchor, kept: int | None = None, keyids: Sequence[str] = ()
) -> LogToRestore:
    """Return the log's losses, the orders that wait and which of these keys may sign, without a session.

    Raises: Tampered if the log does not begin with the entries that the service says it keeps, or a waiting order is
    another log's.
    """
    query: dict[str, Parameter] = {"keyid": keyids} | ({} if kept is None else {"kept": kept})
    answer = connection.call("GET", "/v1/restoration", RestorationAnswer, query=query, reading=False)
    head = open_checkpoint(answer.checkpoint, *anchor.log_keys)
    if kept is not None and answer.kept_size != kept:
        raise Tampered(f"restoration, kept: expected {kept} entries, got {answer.kept_size}")
    verify_consistency(answer.kept_size, head.size, answer.consistency, answer.kept_root, head.root)
    waiting = tuple(map(parse_pending, answer.waiting))
    for pending in waiting:
        check_origin(pending.proposal.order, anchor.origin)
        if not isinstance(pending.proposal.order, RestoreLog):
            raise Tampered(f"restoration, order {pending.digest}: expected restore-log, got another order")
    losses = []
    for loss in answer.losses:
        with suppress(Tampered):
            losses.append(KnownCheckpoint(open_checkpoint(loss.note, *anchor.log_keys), loss.note, "beside the log"))
    kept_log = Checkpoint(anchor.origin, answer.kept_size, answer.kept_root)
    return LogToRestore(
        waits=answer.waits,
        signer_ahead=answer.signer_ahead,
        head=head,
        note=answer.checkpoint,
        kept=kept_log,
        edge=answer.edge,
        losses=tuple(losses),
        waiting=waiting,
        restorations=answer.restorations,
        signers=answer.signers,
    )


def choose_lost(notes: Iterable[KnownCheckpoint], kept: Checkpoint) -> KnownCheckpoint:
    """Return the largest checkpoint that is given up.

    Raises: NotFound if none of them has more entries than the log keeps.
    """
    larger = [one for one in notes if one.checkpoint.size > kept.size]
    if not larger:
        raise NotFound(
            f"restoration: expected a signed checkpoint of more than {kept.size} entries, got none; name one with "
            "--checkpoint FILE, such as a witness's state file"
        )
    return max(larger, key=lambda one: one.checkpoint.size)


def open_note(note: bytes, anchor: Anchor, source: str) -> KnownCheckpoint:
    """Return a checkpoint that the log's key has signed.

    Raises: BadInput if it is another one.
    """
    try:
        return KnownCheckpoint(open_checkpoint(note, *anchor.log_keys), note, source)
    except Tampered as error:
        raise BadInput(f"checkpoint, {source}: expected one of this log, got another file: {error.message}") from None


def find_order(found: LogToRestore) -> Pending:
    """Return the newest waiting order.

    Raises: NotFound if there is none.
    """
    for pending in reversed(found.waiting):
        if not pending.blockers:
            return pending
    raise NotFound("restoration: expected an order that waits, got none; first type: appliance restoration order")


def find_own_order(found: LogToRestore, signer: str) -> Pending:
    """Return the newest waiting order that this person signed.

    Raises: NotFound if there is none.
    """
    for pending in reversed(found.waiting):
        if pending.proposal.order.signer == signer:
            return pending
    raise NotFound(f"restoration: expected an order of {signer} that waits, got none; see: appliance restoration show")


def check_kept(order: RestoreLog, found: LogToRestore) -> None:
    """Check that the log begins with the entries that the order keeps.

    Raises: Tampered if it does not.
    """
    if (order.kept_size, order.kept_root) != (found.kept.size, _root_of(found.kept)):
        raise Tampered(
            f"restoration, kept: expected {_root_of(found.kept)} at {found.kept.size} entries, got {order.kept_root}"
        )


# --- the orders in a file, for the signer -----------------------------------------------------------------------------


def check_signer(found: LogToRestore, output: Path | None) -> None:
    """Check that the orders go into a file if the signer has to step back first, and only then.

    Raises: Conflict otherwise, or if the order would keep fewer entries than the log has.
    """
    if found.signer_ahead and output is None:
        raise Conflict(
            "restoration: expected --output FILE, because the signer has to step back before the service can record an "
            "order, got none"
        )
    if output is not None and not found.signer_ahead:
        raise Conflict(
            "restoration: expected a signer that has to step back, got a service that can record the order; leave "
            "--output out"
        )
    if output is not None and found.kept != found.head:
        raise Conflict(
            f"restoration, kept: expected all {found.head.size} entries, since the signer steps back to the log as it "
            f"is, got {found.kept.size}"
        )


def check_signers(found: LogToRestore, keyids: Sequence[str]) -> None:
    """Check that the service knows the keys as those of administrators whom the kept entries enrolled.

    Otherwise it would refuse the orders only after the signer has stepped back.

    Raises: Conflict for another key.
    """
    for keyid in keyids:
        if keyid not in found.signers:
            raise Conflict(
                f"restoration, key: expected that of an administrator whom the first {found.kept.size} entries "
                f"enrolled, got {keyid}; the restored log refuses its order, so another administrator has to sign"
            )


def make_step_back(signed: SignedOrder, key: Signer, lost: KnownCheckpoint, found: LogToRestore) -> bytes:
    """Return the step-back file with the first administrator's order."""
    order = encode_envelope(signed.envelope)
    return encode_step_back(StepBackFile(order, None, lost.note, (key.spki,), found.note, found.edge))


def read_step_back(data: bytes, anchor: Anchor) -> tuple[StepBackFile, SignedOrder]:
    """Parse a step-back file. Return it with the first administrator's order.

    Raises: BadInput if the order is not one of a restoration; Tampered if it is another log's, or its signature is not
    that of a key in the file.
    """
    file = parse_step_back(data)
    envelope = parse_envelope(file.first)
    order = ORDERS.parse(envelope.payload)
    if not isinstance(order, RestoreLog):
        raise BadInput(f"step-back, order: expected restore-log, got {order.action}")
    check_origin(order, anchor.origin)
    documents = {"lost": file.lost}
    check_documents(order, documents)
    keys = {keyid_of(key): key for key in file.keys}
    if envelope.signature.keyid not in keys:
        raise Tampered(f"step-back, keys: expected the public key {envelope.signature.keyid}, got none")
    verify_envelope(envelope, keys[envelope.signature.keyid])
    return file, SignedOrder(Proposal(order, (), documents), envelope)


def extend_countersignature(proposal: Proposal, first: SignedOrder) -> Proposal:
    """Return the countersignature with the end of the first order, because the signer steps back in between."""
    order = proposal.order.model_copy(update={"expires_at": first.proposal.order.expires_at})
    return replace(proposal, order=order)


def add_countersignature(file: StepBackFile, signed: SignedOrder, key: Signer) -> bytes:
    """Return the step-back file with both orders.

    Raises: Conflict if it has two already.
    """
    if file.countersigned is not None:
        raise Conflict(
            "step-back, order: expected one signature, got two already; on the signer's host type: "
            "appliance signer step-back FILE"
        )
    order = encode_envelope(signed.envelope)
    return encode_step_back(replace(file, order=order, countersigned=file.order, keys=(*file.keys, key.spki)))


def list_orders(file: StepBackFile, first: SignedOrder, found: LogToRestore) -> list[SignedOrder]:
    """Return the orders of a step-back file that the service has not recorded yet."""
    orders = [first] if first.digest not in {pending.digest for pending in found.waiting} else []
    if file.countersigned is not None:
        envelope = parse_envelope(file.order)
        orders.append(SignedOrder(Proposal(ORDERS.parse(envelope.payload)), envelope))
    return orders


# --- the proof of a restoration ---------------------------------------------------------------------------------------


def make_file(connection: Connection, anchor: Anchor, index: int | None) -> tuple[bytes, VerifiedRestoration]:
    """Return the restoration file of an entry, by default of the latest restoration, and what it proves.

    Raises: NotFound if the log was not restored; Tampered if a proof or a signature is not valid; Conflict if the log
    grows too fast.
    """
    if index is None:
        restorations = read_restoration(connection, anchor).restorations
        if not restorations:
            raise NotFound("restoration: expected a log that was restored, got one that was not")
        index = restorations[-1].index
    keys = {key.keyid: base64.b64decode(key.spki) for key in list_rows(connection, "key", Key)}
    for _ in range(_ATTEMPTS):
        proven, _ = read_event(connection, anchor, index, LogRestored)
        signed = [proven.document(role) for role in ("countersigned", "order") if role in proven.documents]
        signers = [parse_envelope(data).signature.keyid for data in signed]
        made = RestorationFile(
            entry=proven.entry.encoded,
            proof=proven.proof,
            order=proven.document("order"),
            countersigned=signed[0] if len(signed) > 1 else None,
            lost=proven.document("lost"),
            keys=tuple(keys[keyid] for keyid in signers if keyid in keys),
            consistency=(),
        )
        about = connection.describe(_kept_size(made))
        if open_checkpoint(about.checkpoint.encode(), *anchor.log_keys) == _checkpoint_of(proven.proof, anchor):
            made = replace(made, consistency=tuple(about.consistency))
            verified = verify_restoration(made, anchor.log_keys, signers, signatures=len(signers))
            return encode_restoration(made), verified
    raise Conflict("restoration: expected a moment without a new entry, got one each time; try again")


def _kept_size(made: RestorationFile) -> int:
    order = ORDERS.parse(parse_envelope(made.countersigned or made.order).payload)
    if not isinstance(order, RestoreLog):
        raise Tampered(f"restoration, order: expected restore-log, got {order.action}")
    return order.kept_size


def _checkpoint_of(proof: bytes, anchor: Anchor) -> Checkpoint:
    return open_checkpoint(parse_proof(proof).checkpoint, *anchor.log_keys)


def _root_of(checkpoint: Checkpoint) -> str:
    return f"sha256:{checkpoint.root.hex()}"
