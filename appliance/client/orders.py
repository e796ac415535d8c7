"""Orders: built here, from bytes hashed here, shown before they are signed, signed with the person's own key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from appliance.client.door import About, Door
from appliance.client.session import envelope_value
from appliance.domain.names import add_seconds, explain
from appliance.domain.orders import TWO_ADMINISTRATORS, Endorse, Order, Train, encode_order, parse_order
from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.canonical import encode_canonical
from appliance.formats.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.commitment import (
    Disclosure,
    disclose,
    disclosure_value,
    parse_disclosure_value,
    verify_disclosure,
)
from appliance.formats.digest import digest_bytes
from appliance.formats.dsse import Envelope, parse_envelope, sign_envelope
from appliance.formats.fields import encode_base64, parse_base64
from appliance.formats.keys import Signer
from appliance.formats.timestamp import encode_time

ORDER_TTL_S = 900
"""How long an order may travel; one that waits for a second administrator stands as long as policy allows."""

MEANINGS = {
    "enroll": "The key becomes this person's, for ever, with these roles. Compare the key id with the person first.",
    "grant": "This person gets one role more.",
    "revoke-principal": "This person and their keys count for nothing from now on. The name and the keys stay taken.",
    "adopt-policy": "From now on every decision is made under this policy set.",
    "endorse": "You make the other administrator's order your own: with your signature it stands.",
    "import-base": "You vouch for the source and the licence of this base model.",
    "import-dataset": "You vouch for the owner, the licence and the classification of this dataset.",
    "train": "The appliance trains with exactly these values, on exactly these bytes, in your name.",
    "cancel": "The run stops, and its record says that you stopped it.",
    "cancel-import": "The import ends, and its record says that you ended it.",
    "resume": "The run goes on from its last training checkpoint, in the name of whoever ordered it.",
    "replay": "The appliance trains these steps again and compares; the verdict is an entry, whatever it is.",
    "review": "Your decision on exactly these bytes, for this unit, until this date.",
    "activate": "From now on the unit's clients are answered by this adapter under this task's name.",
    "roll-back": "From now on the unit's clients are answered by this earlier adapter again.",
    "revoke-adapter": "The adapter answers nobody any more. This cannot be taken back.",
    "export-adapter": "The unit may load it on a host of its own until the date, and no revocation reaches it there.",
    "revoke-base": "No adapter on this base answers any more, and none is trained on it. This cannot be taken back.",
    "revoke-dataset": "No adapter trained on this dataset answers any more. This cannot be taken back.",
    "replace-key": "From now on the person signs with this key; older ones end at once. Compare the key id first.",
    "rotate-key": "From now on you sign with this key; your older keys sign until the date, and then no more.",
    "revoke-key": "The key signs nothing more. With `since`, what it signed in that entry or later does not count.",
    "revoke-tokens": "These tokens open nothing more; what they are being answered is cut off.",
    "rotate-log-key": "This key signs the log's checkpoints; the ones before it sign beside it until the date.",
    "erase": "This text is destroyed here, for ever; every signature over its commitment holds. What was made of it "
    "stays: an instruction is in its dataset's rows and in what was trained on them. SECURITY.md says how these go.",
    "place-hold": "No text of an entry about this subject is erased while the hold stands.",
    "lift-hold": "Texts about this subject may be erased again, when their retention has ended.",
}

_HEADER = ("origin", "signer", "nonce", "issued_at", "expires_at")

O = TypeVar("O", bound=Order)  # noqa: E741


@dataclass(frozen=True)
class Proposal:
    """An order that nobody has signed yet, and what will lie beside it. `resolved`: the values that were `auto`."""

    order: Order
    disclosures: tuple[Disclosure, ...] = ()
    documents: Mapping[str, bytes] = field(default_factory=dict)
    resolved: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Signed:
    proposal: Proposal
    envelope: Envelope

    @property
    def digest(self) -> str:
        """What identifies the order in the ledger, whoever signed it."""
        return self.envelope.pae_digest


@dataclass(frozen=True)
class Receipt:
    """The entry that the order became, under a log checkpoint whose signature was checked."""

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
    limit_s = int(about.parameters["order_lifetime_s"])
    issued = encode_time(datetime.now(UTC))
    ttl_s = limit_s if model.verb in TWO_ADMINISTRATORS else min(limit_s, ORDER_TTL_S)
    disclosures = {name: disclose(text, secrets.token_bytes(32)) for name, text in (texts or {}).items()}
    header = {
        "origin": about.origin,
        "signer": signer,
        "nonce": secrets.token_hex(16),
        "issued_at": issued,
        "expires_at": add_seconds(issued, ttl_s),
    }
    committed = {name: disclosure.commitment for name, disclosure in disclosures.items()}
    try:
        order = model.model_validate({**header, **committed, **values})
    except ValidationError as error:
        raise BadInput(f"order {model.verb}: {explain(error)}") from None
    return Proposal(order, tuple(disclosures.values()), dict(documents or {}), resolved)


def sign(proposal: Proposal, key: Signer) -> Signed:
    return Signed(proposal, sign_envelope(encode_order(proposal.order), key))


def submit(door: Door, signed: Signed, log_key: str, *, successor: str | None = None) -> Receipt:
    """Hands the order in, and believes the answer only with a checkpoint of the log that covers the entry.

    `successor`: the log's next key, where this very order puts it in the place of `log_key`.
    """
    body = {
        "envelope": envelope_value(signed.envelope),
        "disclosures": [disclosure_value(disclosure) for disclosure in signed.proposal.disclosures],
        "documents": {role: encode_base64(data) for role, data in signed.proposal.documents.items()},
    }
    answer = door.post("/v1/orders", body, reading=False)
    try:
        checkpoint = _open(answer["checkpoint"].encode("utf-8"), log_key, successor)
        receipt = Receipt(
            index=int(answer["index"]),
            type=answer["type"],
            outcome=answer["outcome"],
            order=answer["order"],
            result=dict(answer["result"]),
            size=checkpoint.size,
        )
    except (KeyError, TypeError, AttributeError):
        raise Unavailable("service, order: expected a receipt, got another answer") from None
    if receipt.order != signed.digest:
        raise Tampered(f"receipt, order: expected {signed.digest}, got {receipt.order}")
    if receipt.size <= receipt.index:
        raise Tampered(f"receipt, log checkpoint: expected one over entry {receipt.index}, got size {receipt.size}")
    return receipt


def _open(note: bytes, log_key: str, successor: str | None) -> Checkpoint:
    try:
        return open_checkpoint(note, log_key)
    except Tampered:
        if successor is None:
            raise
        return open_checkpoint(note, successor)


def describe(proposal: Proposal) -> list[tuple[str, str]]:
    """Every value that the signature binds, in order, as (label, text); committed texts are shown as they read."""
    order = proposal.order
    texts = {disclosure.commitment: disclosure.text for disclosure in proposal.disclosures}
    lines = [("verb", order.verb), ("signer", order.signer), ("log", order.origin)]
    for name, value in order.model_dump(mode="json").items():
        if name in _HEADER or value is None:
            continue
        if name == "commitment":
            # What an erasure names; the text behind it is shown while it is there.
            lines.append((name, value))
            lines.append(("text", texts.get(value, "not disclosed: nobody can show what goes")))
            continue
        if name == "recipe" and isinstance(order, Train):
            lines += describe_recipe(value, proposal.resolved)
        else:
            lines.append((label_of(name), show_value(texts.get(value, value) if isinstance(value, str) else value)))
    return [*lines, ("stands until", order.expires_at), ("statement", digest_bytes(encode_order(order)))]


def describe_recipe(recipe: Mapping[str, Any], resolved: frozenset[str]) -> list[tuple[str, str]]:
    """The resolved recipe; values that were `auto` are marked, since nobody wrote them."""
    return [
        (label_of(name), f"{show_value(value)}{'  (auto)' if name in resolved else ''}")
        for name, value in recipe.items()
    ]


def label_of(name: str) -> str:
    return name.replace("_", " ")


def show_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {show_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(show_value(item) for item in value) or "none"
    return str(value)


@dataclass(frozen=True)
class Pending:
    """Another administrator's order that waits for a second signature, as this side read and hashed it."""

    digest: str
    index: int
    proposal: Proposal


def pending_orders(door: Door) -> list[Pending]:
    """Each is parsed from its envelope's bytes; Tampered when digest, texts or documents are not what it binds."""
    return [_parse_pending(row) for row in door.get("/v1/orders/pending")]


def _parse_pending(row: Mapping[str, Any]) -> Pending:
    envelope = parse_envelope(encode_canonical(row["envelope"]))
    if envelope.pae_digest != row["digest"]:
        raise Tampered(f"pending order, digest: expected {envelope.pae_digest}, got {row['digest']}")
    order = parse_order(envelope.payload)
    disclosures = tuple(parse_disclosure_value(value) for value in row["disclosures"])
    for disclosure in disclosures:
        verify_disclosure(disclosure)
    documents = {
        role: parse_base64(data, f"pending order, document {role}")
        for role, data in row["documents"].items()
        if role != "order"
    }
    _check_documents(order, documents)
    return Pending(envelope.pae_digest, int(row["index"]), Proposal(order, disclosures, documents))


def _check_documents(order: Order, documents: Mapping[str, bytes]) -> None:
    """What lies beside the order is what the order binds by digest."""
    predicate = order.model_dump(mode="json")
    for role, data in documents.items():
        got = parse_envelope(data).pae_digest if role == "possession" else digest_bytes(data)
        if got != predicate.get(role):
            raise Tampered(f"pending order, document {role}: expected {predicate.get(role)}, got {got}")


def propose_endorsement(about: About, signer: str, pending: Pending) -> Proposal:
    return propose(about, signer, Endorse, {"order": pending.digest})


def find_pending(pending: list[Pending], prefix: str) -> Pending:
    """The one whose digest starts so; the algorithm's name may be left out."""
    wanted = prefix.removeprefix("sha256:")
    found = [order for order in pending if order.digest.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1 or len(wanted) < 6:
        known = ", ".join(order.digest[:19] for order in pending) or "none"
        raise BadInput(
            f"order {prefix}: expected the start (6 digits or more) of one pending order's digest, "
            f"got {len(found)} that fit; pending: {known}"
        )
    return found[0]
