"""Orders: made from locally hashed bytes, shown before signing, and signed with the person's own key."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.api.log import About
from appliance.api.people import OrderCheck, OrderReceipt, OrderRefusals, OrderRequest, PendingOrder
from appliance.api.runs import RecipeFacts
from appliance.client.support.connection import ANSWER_TIMEOUT_S, LONG_TIMEOUT_S, Connection
from appliance.client.support.files import read_file
from appliance.client.support.log import Anchor, list_rows, read_entry
from appliance.domain.actions.apply import parse_body
from appliance.domain.actions.proposals import (
    HEADER,
    Proposal,
    check_documents,
    make_proposal,
    parse_proposal,
    split_texts,
)
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.actions.showing import describe_signature, show_value
from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import parse_entry, read_refusal
from appliance.domain.core.lookup import Lookup, OrderInput
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.records.people import Key
from appliance.domain.governance.countersignature import Countersign, OrderPending, OrderRefused
from appliance.domain.governance.passkeys import make_passkey_scope
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import resolve_recipe
from appliance.domain.runs.training import Train
from appliance.errors import BadInput, Denied, NotFound, Refusal, Tampered
from appliance.formats.core.commitment import (
    Disclosure,
    verify_disclosure,
)
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.note import is_post_quantum
from appliance.formats.signatures.dsse import (
    PAYLOAD_TYPE,
    Envelope,
    encode_envelope,
    envelope_value,
    pae,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import Signer
from appliance.formats.signatures.webauthn import PasskeyScope, challenge_of

MOST_WITHOUT_SESSION = 131_072
"""Largest size in bytes of an order with its documents that the service accepts from a client without a session."""


@dataclass(frozen=True)
class SignedOrder:
    """An order with its signature."""

    proposal: Proposal
    envelope: Envelope

    @property
    def digest(self) -> str:
        """Return the digest that identifies the order in the ledger, whatever its signature."""
        return self.envelope.pae_digest


@dataclass(frozen=True)
class Receipt:
    """The entry of an order, proved to be in a log of `log_size` entries."""

    index: int
    type: str
    outcome: str
    order: str
    result: dict[str, Any]
    log_size: int


def propose(about: About, signer: str, model: type[Order], given: OrderInput, lookup: Lookup) -> Proposal:
    """Return an unsigned order. It contains the texts as salted commitments; the texts themselves are sent beside it.

    Raises: NotFound if a value names something unknown; BadInput, which names the malformed values.
    """
    return make_proposal(
        model,
        given,
        lookup,
        origin=about.origin,
        signer=signer,
        lifetime_s=about.parameters.order_lifetime_s,
        now=encode_time(datetime.now(UTC)),
        draw=secrets.token_bytes,
    )


def list_refusals(connection: Connection, proposal: Proposal) -> tuple[Refusal, ...]:
    """Return the reasons for which the service would refuse the order. Nothing is recorded."""
    return connection.post(
        "/v1/orders/check", OrderRefusals, OrderCheck(statement=encode_order(proposal.order))
    ).refusals


def check(connection: Connection, proposal: Proposal) -> None:
    """Raise Denied with all refusal reasons if the service would refuse the order now."""
    if reasons := list_refusals(connection, proposal):
        raise Denied(f"order {proposal.order.action} by {proposal.order.signer}", refusals=reasons)


def sign(proposal: Proposal, key: Signer) -> SignedOrder:
    """Sign an order."""
    return SignedOrder(proposal, sign_envelope(encode_order(proposal.order), key))


def submit(
    connection: Connection, signed: SignedOrder, log_keys: Sequence[str], *, successor: str | None = None
) -> Receipt:
    """Submit an order and return its receipt.

    The receipt is read from the entry that contains exactly this envelope, proved under the log's keys. `successor` is
    the log's next key, if this order replaces one of `log_keys` or adds a key.

    Raises: Denied if the entry refuses the order; Tampered if the proof is invalid or the entry is another order's.
    """
    body = OrderRequest(
        envelope=envelope_value(signed.envelope),
        disclosures=split_texts(signed.proposal)[0],
        documents=dict(signed.proposal.documents),
    )
    is_large = len(body.model_dump_json()) > MOST_WITHOUT_SESSION
    order = signed.proposal.order
    # The service checks the document beside such an order first, for an archive with the whole log.
    takes_long = isinstance(order, Countersign) or ACTIONS[order.action].attachment is not None
    timeout_s = LONG_TIMEOUT_S if takes_long else ANSWER_TIMEOUT_S
    answer = connection.post("/v1/orders", OrderReceipt, body, reading=is_large, timeout_s=timeout_s)
    connection.waiting, entry = answer.waiting, parse_entry(answer.bytes)
    checkpoint = _open_checkpoint(answer.checkpoint.encode("utf-8"), log_keys, successor)
    verify_inclusion(entry.leaf, entry.index, checkpoint.size, answer.proof, checkpoint.root)
    if (held := entry.documents.get("order")) != (sent := digest_bytes(encode_envelope(signed.envelope))):
        raise Tampered(f"receipt, order: expected entry {entry.index} to hold the envelope {sent}, got {held}")
    if isinstance(refused := parse_body(entry), OrderRefused):
        what = f"order {signed.proposal.order.action}, refused by entry {entry.index}"
        raise Denied(what, refusals=tuple(map(read_refusal, refused.refusals)), code=refused.code)
    made = {name: value for name, value in entry.body.items() if name != "policy"}
    result = {"order": signed.digest} | made
    return Receipt(entry.index, entry.type, entry.outcome, signed.digest, result, checkpoint.size)


def _open_checkpoint(note: bytes, log_keys: Sequence[str], successor: str | None) -> Checkpoint:
    try:
        return open_checkpoint(note, *log_keys)
    except Tampered:
        if successor is None:
            raise
        kind = is_post_quantum(successor)
        return open_checkpoint(note, *(key for key in log_keys if is_post_quantum(key) != kind), successor)


@dataclass(frozen=True)
class Pending:
    """An order that waits for a second signature, as the client parsed and hashed it.

    `prove_pending` proves that the log contains it, and adds the documents that it binds.
    """

    digest: str
    index: int
    proposal: Proposal
    blockers: tuple[Refusal, ...] = ()
    """Reasons of the service for which the order cannot be carried out any more: a countersignature would be refused.
    """
    policy: str | None = None
    """The policy set that was valid when the order was recorded, from its entry; None before that is proved."""


def pending_orders(connection: Connection) -> list[Pending]:
    """Return the pending orders, each parsed from its envelope's bytes, without the documents that they bind.

    Raises: Tampered if a digest or a text is not the one that the order binds.
    """
    return [parse_pending(row) for row in connection.get("/v1/orders/pending", list[PendingOrder])]


def parse_pending(row: PendingOrder) -> Pending:
    """Parse a pending order of the service.

    Raises: Tampered if a digest or a text is not the one that the order binds.
    """
    if row.envelope.pae_digest != row.digest:
        raise Tampered(f"pending order, digest: expected {row.envelope.pae_digest}, got {row.digest}")
    return Pending(row.digest, row.index, _read_proposal(row.envelope, row.disclosures, {}), row.blockers)


def prove_pending(connection: Connection, anchor: Anchor, pending: Pending) -> Pending:
    """Return the same order from its proved entry, with the documents that the entry binds.

    Raises: Tampered if the entry that the service names is not this order's, or the order is for another log; NotFound
    if a document is missing.
    """
    proven = read_entry(connection, anchor, pending.index)
    body, what = parse_body(proven.entry), f"pending order {pending.digest}"
    if not isinstance(body, OrderPending):
        raise Tampered(f"{what}: expected it as entry {pending.index}, got {body.type}")
    envelope = parse_envelope(proven.document("order"))
    if envelope.pae_digest != pending.digest:
        raise Tampered(f"{what}: expected it as entry {pending.index}, got {envelope.pae_digest}")
    proposal = _read_proposal(envelope, proven.disclosures, proven.documents)
    check_origin(proposal.order, anchor.origin)
    attachment = ACTIONS[proposal.order.action].attachment_of(proposal.order)
    if attachment is not None:
        proven.document(attachment.role)  # NotFound where the entry binds none
    return replace(pending, proposal=proposal, policy=body.policy)


def check_origin(order: Order, origin: str) -> None:
    """Raise Tampered if the order was signed for another log."""
    if order.origin != origin:
        raise Tampered(f"pending order, log: expected {origin}, got {order.origin}")


def _read_proposal(envelope: Envelope, disclosures: tuple[Disclosure, ...], documents: Mapping[str, bytes]) -> Proposal:
    order = ORDERS.parse(envelope.payload)
    for disclosure in disclosures:
        verify_disclosure(disclosure)
    beside = {role: data for role, data in documents.items() if role != "order"}
    check_documents(order, beside)
    return Proposal(order, disclosures, beside)


def find_equal_pending_orders(connection: Connection, proposal: Proposal) -> list[Pending]:
    """Return the pending orders with the same content, apart from texts and header."""
    if not ACTIONS[proposal.order.action].two_administrators:
        return []
    content = _content_of(proposal.order)
    return [
        pending
        for pending in pending_orders(connection)
        if not pending.blockers and _content_of(pending.proposal.order) == content
    ]


def _content_of(order: Order) -> dict[str, Any]:
    """Return the content of an order without its header and its commitments, which differ by their salt."""
    hidden = {*HEADER, *order.commitments()}
    return {"action": order.action} | {n: v for n, v in order.model_dump(mode="json").items() if n not in hidden}


def find_pending(pending: list[Pending], prefix: str | None, *, signer: str | None = None) -> Pending:
    """Return the order whose digest begins with the prefix; `sha256:` may be omitted.

    Without a prefix, return the only pending order that can still be carried out, or the only one of the signer.

    Raises: BadInput unless exactly one order matches.
    """
    if prefix is None:
        pending = [one for one in pending if (one.proposal.order.signer == signer if signer else not one.blockers)]
        if len(pending) != 1:
            known = ", ".join(order.digest[:19] for order in pending) or "none"
            raise BadInput(
                f"order: expected DIGEST, or exactly one pending order, got {len(pending)}; pending: {known}"
            )
        return pending[0]
    digits = prefix.removeprefix("sha256:")
    found = [order for order in pending if order.digest.removeprefix("sha256:").startswith(digits)]
    if len(found) != 1 or len(digits) < 6:
        known = ", ".join(order.digest[:19] for order in pending) or "none"
        raise BadInput(
            f"order {prefix}: expected the start (6 digits or more) of one pending order's digest, "
            f"got {len(found)} that fit; pending: {known}"
        )
    return found[0]


_MAX_FILE_BYTES = 4_194_304

UNWRITABLE: Mapping[str, Any] = {"rank": 0, "alpha": 0, "target_modules": (), "eval_steps": 0}
"""Values of a resolved recipe that authors cannot write: in a recipe they are `auto`."""

Holder = tuple[bytes, PasskeyScope | None]
"""A public key, and for a passkey the origins at which its assertions are valid."""


def read_order_file(path: Path) -> tuple[Proposal, Envelope | None]:
    """Read an order file.

    Raises: BadInput or Tampered if it is malformed, or its texts and documents are not those that the order binds.
    """
    return parse_proposal(read_file(path, "order file", _MAX_FILE_BYTES).rstrip(b"\r\n"))


def identity_of(order: Order) -> dict[str, str]:
    """Return the digest that names the order in the log, and the challenge that a passkey signs."""
    signed = pae(PAYLOAD_TYPE, encode_order(order))
    return {"order": digest_bytes(signed), "challenge": encode_base64url(challenge_of(signed))}


def proved_key(path: Path, order: Order) -> Holder:
    """Return the passkey of a proof that its owner kept, after verifying the proof's assertion."""
    envelope = parse_envelope(read_file(path, "proof of a passkey", _MAX_FILE_BYTES).rstrip(b"\r\n"))
    statement = parse_credential(PasskeyPossession, envelope.payload)
    if (statement.signer, statement.origin) != (order.signer, order.origin):
        expected, got = f"{order.signer} at {order.origin}", f"{statement.signer} at {statement.origin}"
        raise BadInput(f"proof of a passkey, {path}: expected that of {expected}, got that of {got}")
    spki, scope = base64.b64decode(statement.key), make_passkey_scope(statement)
    verify_envelope(envelope, spki, scope)
    return spki, scope


def enrolled_key(connection: Connection, envelope: Envelope, order: Order) -> Holder:
    """Return the key that was enrolled for the signer, as the service says."""
    keyid = envelope.signature.keyid
    for key in list_rows(connection, "key", Key):
        if (key.keyid, key.principal) == (keyid, order.signer):
            return base64.b64decode(key.spki), key.scope
    raise NotFound(f"key of {order.signer}: expected {keyid} to be enrolled for them, got another's or none")


def check_signature(envelope: Envelope, holder: Holder) -> dict[str, str]:
    """Return the facts of the signature.

    Raises: Tampered if it is invalid.
    """
    verify_envelope(envelope, *holder)
    return {"signed by": envelope.signature.keyid, "signature": f"holds: {describe_signature(envelope)}"}


def resolve_again(connection: Connection, proposal: Proposal) -> list[str]:
    """Return each value of an order to train that was `auto` and that this machine resolves otherwise."""
    order = proposal.order
    left = {name.removeprefix("recipe.") for name in proposal.reported if name.startswith("recipe.")}
    if not isinstance(order, Train) or not left:
        return []
    signed = order.recipe.model_dump()
    facts = connection.get("/v1/recipes/facts", RecipeFacts, base=order.recipe.base, dataset=order.recipe.dataset).facts
    automatic = left | {name for name, value in UNWRITABLE.items() if signed[name] == value}
    written = signed | dict.fromkeys(automatic, "auto")
    if signed["privacy"] is not None:
        # Epsilon follows from the noise: the rules compute it again.
        written["privacy"] = {name: value for name, value in signed["privacy"].items() if name != "epsilon"}
    recipe = parse_recipe(written)
    found = resolve_recipe(recipe, facts).model_dump()
    return [
        f"{name}: expected {show_value(found[name])}, got {show_value(signed[name])}"
        for name in sorted(automatic)
        if found[name] != signed[name]
    ]
