"""Restorations of the log: the refusal of other orders while the service waits for one, the order, and its effects."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from appliance.api.log import KnownLoss, RestorationAnswer
from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.signatures import key_ended
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import Countersign, WithdrawOrder
from appliance.domain.governance.restoration import KEPT_DIFFERS, LogRestored, RestoreLog, find_restoration
from appliance.errors import ApplianceError, BadInput, Denied, Tampered, Unavailable
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.ledger.snapshots import SnapshotContent
from appliance.workflows.core.context import Context, LedgerContext
from appliance.workflows.core.record import Effect
from appliance.workflows.queries.people import list_pending_rows
from appliance.workflows.witnesses import compare, find_loss

log = logging.getLogger("appliance")


def check_waiting(context: LedgerContext, order: Order) -> None:
    """Refuse every other order while the service waits for a restoration. It makes no entry.

    Raises:
        Unavailable: The order is not for the restoration.
    """
    if not context.awaits_restoration:
        return
    pending = context.ledger.state.pending.get(order.order) if isinstance(order, (Countersign, WithdrawOrder)) else None
    if RestoreLog.action not in (order.action, None if pending is None else pending.action):
        raise Unavailable(
            f"order {order.action}: expected the order of a restoration, for which the service waits, got another one",
            code="awaits-restoration",
        )


def _check_kept(context: Context, order: RestoreLog, _: str) -> None:
    """Check that the log begins with the entries that the order keeps.

    Raises:
        Denied: It has other entries.
    """
    root = f"sha256:{context.ledger.root_at(order.kept_size).hex()}"
    if root != order.kept_root:
        raise Denied(f"order {order.action} by {order.signer}", refusals=(KEPT_DIFFERS(kept=order.kept_size),))


def _prove_kept(context: LedgerContext, order: RestoreLog, size: int) -> Mapping[str, object]:
    """Return the proof that the log of `size` entries begins with the entries that the order keeps."""
    proof = context.ledger.consistency_proof(order.kept_size, size)
    return {"proof": tuple(encode_base64(step) for step in proof)}


EFFECTS = (Effect(RestoreLog, ready=_check_kept, fields=_prove_kept),)


def settle(context: LedgerContext, entry: Entry, _: Event) -> None:
    """Give up the notes that a restoration covers, once it was appended, and search again for lost entries."""
    if entry.type == LogRestored.type:
        give_up_notes(context)
        context.missing_from_log[:] = compare(context)
        log.warning("the log was restored by entry %d; %d losses remain", entry.index, len(context.missing_from_log))


def give_up_notes(context: LedgerContext) -> None:
    """Rename the notes that the log does not continue and that a restoration gives up. They stay as evidence."""
    site = context.ledger.state.site
    if not site.restorations:
        return
    for note in context.known_checkpoints.list_known():
        if find_loss(context, note.data) is not None:
            with suppress(Tampered):
                find_restoration(site, note.data, note.time_s)
                context.known_checkpoints.mark_given_up(note.name)


def store_signer_checkpoint(context: LedgerContext) -> None:
    """Store the last checkpoint of a signer that is ahead of the log among the notes, as a known loss.

    The note gets the time of the log's last entry. The checkpoint is newer, but an order gives up only notes from
    before its own second. With this time an order that is issued at once gives up the note, and the orders that the log
    already has do not.
    """
    pending = context.ledger.pending
    ahead = None if pending is None else pending.signer_checkpoint_ahead
    if ahead is not None and ahead.note not in context.known_checkpoints.list_notes():
        context.known_checkpoints.store_received(ahead.note, parse_time(context.ledger.state.last_time).timestamp())


def store_snapshot_checkpoint(context: LedgerContext, snapshot: SnapshotContent) -> None:
    """Store the checkpoint of a state snapshot that the log does not continue among the notes, as a known loss."""
    if snapshot.checkpoint not in context.known_checkpoints.list_notes():
        context.known_checkpoints.store_received(snapshot.checkpoint, snapshot.time_s)


def _is_signer_ahead(context: LedgerContext) -> bool:
    """Return True if the signer has to step back. If it cannot be reached, use its last answer."""
    pending = context.ledger.pending
    if pending is None:
        return False
    with suppress(Unavailable):
        pending.recheck()
    return pending.signer_checkpoint_ahead is not None


def _may_sign(state: State, keyid: str, kept: int, now: Time) -> bool:
    """Return True if the key is that of an administrator, and the kept entries enrolled both."""
    key = state.keys.get(keyid)
    person = None if key is None else state.principals.get(key.principal)
    if key is None or person is None or key_ended(state, key, now) is not None:
        return False
    return person.has("administrator") and max(key.enrolled, person.enrolled) < kept


def describe(context: LedgerContext, kept: int | None, keyids: Sequence[str] = ()) -> RestorationAnswer:
    """Return what two administrators need for a restoration: the root at `kept` entries, the known losses, the orders
    that wait for a countersignature, and which of these keys may sign.

    It is read without a session, since the clients of these administrators refuse the log. So texts are left out.

    Raises:
        BadInput: The log has fewer entries.
    """
    context.refresh()
    state = context.ledger.state
    checkpoint, edge = context.ledger.checkpoint(), context.ledger.edge
    size = claimed_size(checkpoint)
    kept = size if kept is None else kept
    if not 1 <= kept <= size:
        raise BadInput(f"restoration, kept: expected 1 to {size}, the entries of the log, got {kept}")
    losses = []
    for data in context.known_checkpoints.list_notes():
        loss = find_loss(context, data)
        if isinstance(loss, Tampered):
            with suppress(ApplianceError):
                losses.append(KnownLoss(size=claimed_size(data), note=data, message=loss.message))
    return RestorationAnswer(
        waits=context.awaits_restoration,
        signer_ahead=_is_signer_ahead(context),
        edge=edge.hashes if edge.size == kept == size else (),
        checkpoint=checkpoint,
        kept_size=kept,
        kept_root=context.ledger.root_at(kept),
        consistency=tuple(context.ledger.consistency_proof(kept, size)),
        losses=tuple(sorted(losses, key=lambda loss: loss.size)),
        waiting=list_pending_rows(context, RestoreLog.action),
        restorations=state.site.restorations,
        signers=tuple(keyid for keyid in keyids if _may_sign(state, keyid, kept, context.now(state))),
    )
