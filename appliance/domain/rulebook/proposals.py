"""An order before it is signed: made from values, and read again from a file on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from appliance.domain.core.names import Time, add_seconds, list_problems
from appliance.domain.core.order import Order, encode_order
from appliance.domain.governance.people import EnrollSeveral, split_proofs
from appliance.domain.rulebook.registry import ORDERS, VERBS
from appliance.errors import BadInput, Tampered, refuse
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, disclosure_value, parse_disclosure_value, verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, parse_list, parse_object, parse_text
from appliance.formats.signatures.dsse import Envelope, encode_envelope, parse_envelope

ORDER_TTL_S = 900
"""How long an order may travel; one that waits for a second administrator is valid as long as policy allows."""

HEADER = ("origin", "signer", "nonce", "issued_at", "expires_at")

O = TypeVar("O", bound=Order)  # noqa: E741


@dataclass(frozen=True)
class Proposal:
    """An unsigned order, and the texts and documents that go with it. `resolved`: the values that were `auto`."""

    order: Order
    disclosures: tuple[Disclosure, ...] = ()
    documents: Mapping[str, bytes] = field(default_factory=dict)
    resolved: frozenset[str] = frozenset()


def make_proposal(
    model: type[O],
    values: Mapping[str, Any],
    *,
    origin: str,
    signer: str,
    lifetime_s: int,
    now: Time,
    nonce: str,
    disclosures: Mapping[str, Disclosure],
    documents: Mapping[str, bytes] | None = None,
    resolved: frozenset[str] = frozenset(),
) -> Proposal:
    """`disclosures` are the texts that the order commits to, by its member; `lifetime_s` is what policy allows.
    BadInput names a value that cannot be."""
    ttl_s = lifetime_s if VERBS[model.verb].two_administrators else min(lifetime_s, ORDER_TTL_S)
    header = {
        "origin": origin,
        "signer": signer,
        "nonce": nonce,
        "issued_at": now,
        "expires_at": add_seconds(now, ttl_s),
    }
    committed = {name: disclosure.commitment for name, disclosure in disclosures.items()}
    try:
        order = model.model_validate({**header, **committed, **values})
    except ValidationError as error:
        problems = [f"order {model.verb}: {problem}" for problem in list_problems(error)]
        refuse(f"order {model.verb}", problems)
        raise AssertionError("unreachable: an invalid order has a problem") from None
    return Proposal(order, tuple(disclosures.values()), dict(documents or {}), resolved)


def check_documents(order: Order, documents: Mapping[str, bytes]) -> None:
    """What lies beside the order is what the order binds by digest; else Tampered."""
    predicate = order.model_dump(mode="json")
    if isinstance(order, EnrollSeveral):
        predicate["possessions"] = [person.possession for person in order.people]
    for role, data in documents.items():
        got: object = digest_bytes(data)
        if role == "possession":
            got = parse_envelope(data).pae_digest
        elif role == "possessions":
            got = [parse_envelope(proof).pae_digest for proof in split_proofs(data)]
        if got != predicate.get(role):
            raise Tampered(f"order, document {role}: expected {predicate.get(role)}, got {got}")


_MEMBERS = frozenset({"disclosures", "documents", "envelope", "resolved", "statement", "version"})


def encode_proposal(proposal: Proposal, envelope: Envelope | None = None) -> bytes:
    """A file that a person carries to another machine, to read there what they are about to sign, or signed."""
    return encode_canonical(
        {
            "disclosures": [disclosure_value(one) for one in proposal.disclosures],
            "documents": {role: encode_base64(data) for role, data in proposal.documents.items()},
            "envelope": None if envelope is None else parse_canonical(encode_envelope(envelope)),
            "resolved": sorted(proposal.resolved),
            "statement": encode_base64(encode_order(proposal.order)),
            "version": 1,
        }
    )


def parse_proposal(data: bytes) -> tuple[Proposal, Envelope | None]:
    """What the file's statement says, its texts opened and its documents compared; the envelope's signature is not
    checked. Also of a statement alone. Tampered where a text or a document is not what the statement binds."""
    value = parse_canonical(data)
    if isinstance(value, dict) and "predicateType" in value:
        return Proposal(ORDERS.parse(data)), None
    found = parse_object(value, "order file", _MEMBERS)
    order = ORDERS.parse(parse_base64(found["statement"], "order file, statement"))
    disclosures = tuple(map(parse_disclosure_value, parse_list(found["disclosures"], "order file, disclosures")))
    for one in disclosures:
        verify_disclosure(one)
    if not isinstance(found["documents"], dict):
        raise BadInput(f"order file, documents: expected an object, got {type(found['documents']).__name__}")
    documents = {role: parse_base64(text, f"order file, document {role}") for role, text in found["documents"].items()}
    check_documents(order, documents)
    names = [parse_text(one, "order file, resolved") for one in parse_list(found["resolved"], "order file, resolved")]
    envelope = None if found["envelope"] is None else parse_envelope(encode_canonical(found["envelope"]))
    if envelope is not None and envelope.payload != encode_order(order):
        raise Tampered("order file, envelope: expected one over the statement beside it, got one over another")
    proposal = Proposal(order, disclosures, documents, frozenset(names))
    if encode_proposal(proposal, envelope) != data:
        raise BadInput("order file: expected version 1 in its one spelling, got another")
    return proposal, envelope
