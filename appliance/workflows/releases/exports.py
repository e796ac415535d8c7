"""What goes with an exported adapter: the rows and proofs that its receiver decides over, and its signature."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import State
from appliance.domain.releases.admission import entries_needed
from appliance.domain.releases.approval import barred, released
from appliance.domain.releases.exports import ExportAdapter, Proofs, ProvenEntry
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import Denied, NotFound
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import claimed_size
from appliance.workflows.core.context import Context


def export_packet(context: Context, digest: str) -> dict[str, Any]:
    """By the order's digest. NotFound if there is no such order; Denied if its release no longer answers."""
    state = context.ledger.state
    index = state.orders.get(digest)
    if index is None or parse_entry(context.ledger.entry_bytes(index)).type != "adapter.exported":
        raise NotFound(f"export: expected one that was ordered, got {digest}")
    documents = context.ledger.documents_of(index)
    order = ORDERS.read_logged(state, documents["order"], index).order
    if not isinstance(order, ExportAdapter):
        raise NotFound(f"export: expected one that was ordered, got {order.verb}")
    _check(context, state, order)
    needed = _entries(context, state, order)
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    entries = [_prove(context, one, size) for one in sorted({0, index, *needed})]
    proofs = Proofs(exported=index, checkpoint=checkpoint.decode(), entries=tuple(entries))
    return {
        "adapter": order.name,
        "manifest": order.manifest,
        "valid_until": order.valid_until,
        "proofs": encode_base64(encode_value(proofs)),
        "standing": encode_base64(documents["standing"]),
        "signature": encode_base64(context.artifacts.read_beside(order.manifest, "signature.json")),
    }


def _check(context: Context, state: State, order: ExportAdapter) -> None:
    """What was taken away since the order is not handed out."""
    adapter, release = released(state, order.unit, order.task), state.releases.get(release_key(order.unit, order.task))
    if adapter is None or release is None or adapter.manifest != order.manifest:
        raise Denied(
            f"export of {order.name}: expected it to answer {order.unit}/{order.task} still", code="not-admitted"
        )
    if reasons := barred(state, release, adapter, context.now(state)):
        raise Denied(f"export of {order.name} for {order.unit}", reasons=tuple(reasons), code="not-admitted")


def _entries(context: Context, state: State, order: ExportAdapter) -> tuple[int, ...]:
    adapter = released(state, order.unit, order.task)
    if adapter is None:
        raise NotFound(f"export: expected the adapter {order.name}, got none")
    return entries_needed(state, order.unit, adapter, order.task, context.now(state))


def _prove(context: Context, index: int, size: int) -> ProvenEntry:
    envelope = context.ledger.documents_of(index).get("order")
    return ProvenEntry(
        index=index,
        entry=encode_base64(context.ledger.entry_bytes(index)),
        proof=tuple(encode_base64(step) for step in context.ledger.inclusion_proof(index, size)),
        envelope=None if envelope is None else encode_base64(envelope),
    )
