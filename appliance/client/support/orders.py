"""Orders: built here, from bytes hashed here, shown before they are signed, signed with the person's own key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, read_entry
from appliance.client.support.session import envelope_value
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.order import Order, encode_order
from appliance.domain.governance.endorsement import Endorse, OrderPending, OrderRefused
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.rulebook.proposals import HEADER, Proposal, check_documents, make_proposal
from appliance.domain.rulebook.registry import ORDERS, VERBS
from appliance.errors import BadInput, Denied, Tampered, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import (
    Disclosure,
    disclose,
    disclosure_value,
    parse_disclosure_value,
    verify_disclosure,
)
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, show
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.signatures.dsse import Envelope, encode_envelope, parse_envelope, sign_envelope
from appliance.formats.signatures.keys import Signer

O = TypeVar("O", bound=Order)  # noqa: E741


@dataclass(frozen=True)
class Signed:
    proposal: Proposal
    envelope: Envelope

    @property
    def digest(self) -> str:
        """What identifies the order in the ledger, independent of its signature."""
        return self.envelope.pae_digest


@dataclass(frozen=True)
class Receipt:
    """The entry that the order became, proved to stand under a log checkpoint of `size` entries."""

    index: int
    type: str
    outcome: str
    order: str
    result: dict[str, Any]
    size: int


def propose(
    about: About,
    signer: str,
    model: type[O],
    values: Mapping[str, Any],
    *,
    texts: Mapping[str, str] | None = None,
    documents: Mapping[str, bytes] | None = None,
    resolved: frozenset[str] = frozenset(),
) -> Proposal:
    """`texts` go into the order as salted commitments and travel beside it; BadInput names a value that cannot be."""
    return make_proposal(
        model,
        values,
        origin=about.origin,
        signer=signer,
        lifetime_s=int(about.parameters["order_lifetime_s"]),
        now=encode_time(datetime.now(UTC)),
        nonce=secrets.token_hex(16),
        disclosures={name: disclose(text, secrets.token_bytes(32)) for name, text in (texts or {}).items()},
        documents=documents,
        resolved=resolved,
    )


def reasons_against(door: Door, proposal: Proposal) -> tuple[str, ...]:
    """Why the service would refuse the order, before it is signed; nothing is recorded."""
    statement = encode_base64(encode_order(proposal.order))
    return tuple(map(str, door.post("/v1/orders/check", {"statement": statement})["reasons"]))


def check(door: Door, proposal: Proposal) -> None:
    """Denied with every reason that stands against the order now: a signature would be in vain."""
    if reasons := reasons_against(door, proposal):
        raise Denied(f"order {proposal.order.verb} by {proposal.order.signer}", reasons=reasons)


def sign(proposal: Proposal, key: Signer) -> Signed:
    return Signed(proposal, sign_envelope(encode_order(proposal.order), key))


def submit(door: Door, signed: Signed, log_key: str, *, successor: str | None = None) -> Receipt:
    """Submits the order. What came of it is read from the entry that holds exactly this envelope, proved under the
    log's key. `successor`: the log's next key, where this order replaces `log_key`. Denied where the entry refuses it.
    """
    body = {
        "envelope": envelope_value(signed.envelope),
        "disclosures": [disclosure_value(disclosure) for disclosure in signed.proposal.disclosures],
        "documents": {role: encode_base64(data) for role, data in signed.proposal.documents.items()},
    }
    answer = door.post("/v1/orders", body, reading=False)
    try:
        door.waiting = int(answer.get("waiting", 0))
        entry = parse_entry(parse_base64(answer["bytes"], "receipt, entry"))
        proof = [bytes.fromhex(step) for step in answer["proof"]]
        note = answer["checkpoint"].encode("utf-8")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Unavailable(f"service, order: expected a receipt, got {show(answer)}") from None
    checkpoint = _open(note, log_key, successor)
    verify_inclusion(entry.leaf, entry.index, checkpoint.size, proof, checkpoint.root)
    if (held := entry.documents.get("order")) != (sent := digest_bytes(encode_envelope(signed.envelope))):
        raise Tampered(f"receipt, order: expected entry {entry.index} to hold the envelope {sent}, got {held}")
    if entry.type == OrderRefused.type:
        reasons = tuple(map(str, entry.body.get("reasons", ())))
        raise Denied(f"order {signed.proposal.order.verb}, refused by entry {entry.index}", reasons=reasons)
    made = {name: value for name, value in entry.body.items() if name != "policy"}
    result = {"order": signed.digest} | made
    return Receipt(entry.index, entry.type, entry.outcome, signed.digest, result, checkpoint.size)


def _open(note: bytes, log_key: str, successor: str | None) -> Checkpoint:
    try:
        return open_checkpoint(note, log_key)
    except Tampered:
        if successor is None:
            raise
        return open_checkpoint(note, successor)


@dataclass(frozen=True)
class Pending:
    """Another administrator's order that waits for a second signature, as this side read and hashed it. That the log
    has it is shown by `prove_pending` alone."""

    digest: str
    index: int
    proposal: Proposal
    against: tuple[str, ...] = ()
    """Why it cannot be carried out any more, as the service says: an endorsement would be refused."""
    policy: str | None = None
    """The policy set that was in force when it was recorded, by its entry; None before that is proved."""


def pending_orders(door: Door) -> list[Pending]:
    """Each is parsed from its envelope's bytes; Tampered when digest, texts or documents are not what it binds."""
    return [parse_pending(row) for row in door.get("/v1/orders/pending")]


def parse_pending(row: Mapping[str, Any]) -> Pending:
    try:
        envelope = parse_envelope(encode_canonical(row["envelope"]))
        if envelope.pae_digest != row["digest"]:
            raise Tampered(f"pending order, digest: expected {envelope.pae_digest}, got {row['digest']}")
        disclosures = tuple(parse_disclosure_value(value) for value in row["disclosures"])
        documents = {role: parse_base64(data, f"pending order, {role}") for role, data in row["documents"].items()}
        against = tuple(map(str, row.get("against", ())))
        index = int(row["index"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Unavailable(f"service, pending order: expected one that waits, got {show(row)}") from None
    proposal = _read_proposal(envelope, disclosures, documents)
    return Pending(envelope.pae_digest, index, proposal, against)


def prove_pending(door: Door, anchor: Anchor, pending: Pending) -> Pending:
    """The same order from its proved entry, with the documents that the entry binds. Tampered where the entry that the
    service names is not this order's, or the order is another log's."""
    proven = read_entry(door, anchor, pending.index)
    body, what = parse_body(proven.entry), f"pending order {pending.digest}"
    if not isinstance(body, OrderPending):
        raise Tampered(f"{what}: expected it as entry {pending.index}, got {body.type}")
    envelope = parse_envelope(proven.document("order"))
    if envelope.pae_digest != pending.digest:
        raise Tampered(f"{what}: expected it as entry {pending.index}, got {envelope.pae_digest}")
    proposal = _read_proposal(envelope, proven.disclosures, proven.documents)
    check_origin(proposal.order, anchor.origin)
    attachment = VERBS[proposal.order.verb].attachment_of(proposal.order)
    if attachment is not None:
        proven.document(attachment.role)  # NotFound where the entry binds none
    return replace(pending, proposal=proposal, policy=body.policy)


def check_origin(order: Order, origin: str) -> None:
    """Tampered where the order was signed for another log."""
    if order.origin != origin:
        raise Tampered(f"pending order, log: expected {origin}, got {order.origin}")


def _read_proposal(envelope: Envelope, disclosures: tuple[Disclosure, ...], documents: Mapping[str, bytes]) -> Proposal:
    order = ORDERS.parse(envelope.payload)
    for disclosure in disclosures:
        verify_disclosure(disclosure)
    beside = {role: data for role, data in documents.items() if role != "order"}
    check_documents(order, beside)
    return Proposal(order, disclosures, beside)


def waiting_twins(door: Door, proposal: Proposal) -> list[Pending]:
    """Orders that wait for a second administrator and say the same, their texts and header aside."""
    if not VERBS[proposal.order.verb].two_administrators:
        return []
    said = _said(proposal.order)
    return [one for one in pending_orders(door) if not one.against and _said(one.proposal.order) == said]


def _said(order: Order) -> dict[str, Any]:
    """What an order says, without its header and the commitments, which differ by their salt alone."""
    hidden = {*HEADER, *order.commitments()}
    return {"verb": order.verb} | {n: v for n, v in order.model_dump(mode="json").items() if n not in hidden}


def propose_endorsement(about: About, signer: str, pending: Pending) -> Proposal:
    return propose(about, signer, Endorse, {"order": pending.digest})


def find_pending(pending: list[Pending], prefix: str | None) -> Pending:
    """The one whose digest starts so; the algorithm's name may be left out. None: the only one that waits and can still
    be carried out."""
    if prefix is None:
        pending = [order for order in pending if not order.against]
        if len(pending) != 1:
            known = ", ".join(order.digest[:19] for order in pending) or "none"
            raise BadInput(
                f"order: expected DIGEST, or exactly one pending order, got {len(pending)}; pending: {known}"
            )
        return pending[0]
    wanted = prefix.removeprefix("sha256:")
    found = [order for order in pending if order.digest.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1 or len(wanted) < 6:
        known = ", ".join(order.digest[:19] for order in pending) or "none"
        raise BadInput(
            f"order {prefix}: expected the start (6 digits or more) of one pending order's digest, "
            f"got {len(found)} that fit; pending: {known}"
        )
    return found[0]
