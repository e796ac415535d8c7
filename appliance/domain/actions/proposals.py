"""Unsigned orders: made from values, and read from a file on another machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.lookup import Lookup, OrderInput, ProvenValue, UnprovenValue
from appliance.domain.core.names import Time, add_seconds, list_problems
from appliance.domain.core.order import Order, encode_order
from appliance.domain.governance.people import EnrolSeveral, split_proofs
from appliance.errors import BadInput, Tampered, refuse
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import (
    Disclosure,
    disclose,
    disclosure_value,
    parse_disclosure_value,
    verify_disclosure,
)
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, parse_list, parse_object, parse_text
from appliance.formats.signatures.dsse import Envelope, encode_envelope, parse_envelope

ORDER_TTL_S = 900
"""Seconds for which an order is valid by default; an order that needs two administrators is valid as policy allows."""

HEADER = ("origin", "signer", "nonce", "issued_at", "expires_at")
"""Fields that every order has, apart from its reason."""


@dataclass(frozen=True)
class Proposal:
    """An unsigned order with its texts and documents.

    `reported` are the names of the fields whose value the service states without a proof. A value of a recipe that was
    `auto` is named `recipe.KEY`.
    """

    order: Order
    disclosures: tuple[Disclosure, ...] = ()
    documents: Mapping[str, bytes] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()


def make_proposal(
    model: type[Order],
    given: OrderInput,
    lookup: Lookup,
    *,
    origin: str,
    signer: str,
    lifetime_s: int,
    now: Time,
    draw: Callable[[int], bytes],
) -> Proposal:
    """Return the unsigned order of the given values, with its derived fields filled from the lookup.

    `lifetime_s` is the lifetime that policy allows. `draw` returns random bytes.

    Raises: NotFound if a value names something unknown; BadInput, which names the malformed values.
    """
    action = ACTIONS[model.action]
    derived = {} if action.complete is None else action.complete(given, lookup)
    texts = {name: disclose(text, draw(32)) for name, text in given.texts.items()}
    several = {name: [disclose(text, draw(32)) for text in found] for name, found in given.several.items()}
    values, reported = _split_reported({**given.values, **derived})
    values |= {name: one.commitment for name, one in texts.items()}
    values |= {name: tuple(one.commitment for one in found) for name, found in several.items()}
    header = {
        "origin": origin,
        "signer": signer,
        "nonce": draw(16).hex(),
        "issued_at": now,
        "expires_at": add_seconds(now, lifetime_s if action.two_administrators else min(lifetime_s, ORDER_TTL_S)),
    }
    try:
        order = model.model_validate({**header, **values})
    except ValidationError as error:
        problems = [f"order {model.action}: {problem}" for problem in list_problems(error)]
        refuse(f"order {model.action}", problems)
        raise AssertionError("unreachable: an invalid order has a problem") from None
    beside = (one for found in several.values() for one in found)
    return Proposal(order, (*texts.values(), *beside, *given.disclosures), dict(given.documents), reported)


def _split_reported(found: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the plain values, and the names of the reported ones."""
    values, reported = {}, set[str]()
    for name, value in found.items():
        values[name] = value.value if isinstance(value, ProvenValue | UnprovenValue) else value
        if isinstance(value, UnprovenValue):
            reported |= {f"{name}.{part}" for part in value.parts} or {name}
    return values, frozenset(reported)


def split_texts(proposal: Proposal) -> tuple[tuple[Disclosure, ...], tuple[Disclosure, ...]]:
    """Return the texts that the log keeps until they are erased, and those of prompts, which nothing stores."""
    bound = proposal.order.commitments().values()
    return (
        tuple(one for one in proposal.disclosures if one.commitment in bound),
        tuple(one for one in proposal.disclosures if one.commitment not in bound),
    )


def check_documents(order: Order, documents: Mapping[str, bytes]) -> None:
    """Check that the documents beside an order are those that the order binds by digest.

    Raises: Tampered otherwise.
    """
    predicate = order.model_dump(mode="json")
    if isinstance(order, EnrolSeveral):
        predicate["possessions"] = [person.possession for person in order.people]
    for role, data in documents.items():
        got: object = digest_bytes(data)
        if role == "possession":
            got = parse_envelope(data).pae_digest
        elif role == "possessions":
            got = [parse_envelope(proof).pae_digest for proof in split_proofs(data)]
        if got != predicate.get(role):
            raise Tampered(f"order, document {role}: expected {predicate.get(role)}, got {got}")


_FIELDS = frozenset({"disclosures", "documents", "envelope", "reported", "statement", "version"})


def encode_proposal(proposal: Proposal, envelope: Envelope | None = None) -> bytes:
    """Return the file that a person carries to another machine, to read there the order before or after signing it."""
    return encode_canonical(
        {
            "disclosures": [disclosure_value(disclosure) for disclosure in proposal.disclosures],
            "documents": {role: encode_base64(data) for role, data in proposal.documents.items()},
            "envelope": None if envelope is None else parse_canonical(encode_envelope(envelope)),
            "reported": sorted(proposal.reported),
            "statement": encode_base64(encode_order(proposal.order)),
            "version": 1,
        }
    )


def parse_proposal(data: bytes) -> tuple[Proposal, Envelope | None]:
    """Parse an order file, or a statement alone, verify its texts and compare its documents.

    The envelope's signature is not verified.

    Raises: Tampered if a text or document is not the one that the statement binds; BadInput for a malformed file.
    """
    value = parse_canonical(data)
    if isinstance(value, dict) and "predicateType" in value:
        return Proposal(ORDERS.parse(data)), None
    fields = parse_object(value, "order file", _FIELDS)
    order = ORDERS.parse(parse_base64(fields["statement"], "order file, statement"))
    disclosures = tuple(map(parse_disclosure_value, parse_list(fields["disclosures"], "order file, disclosures")))
    for one in disclosures:
        verify_disclosure(one)
    if not isinstance(fields["documents"], dict):
        raise BadInput(f"order file, documents: expected an object, got {type(fields['documents']).__name__}")
    documents = {role: parse_base64(text, f"order file, document {role}") for role, text in fields["documents"].items()}
    check_documents(order, documents)
    names = [parse_text(one, "order file, reported") for one in parse_list(fields["reported"], "order file, reported")]
    envelope = None if fields["envelope"] is None else parse_envelope(encode_canonical(fields["envelope"]))
    if envelope is not None and envelope.payload != encode_order(order):
        raise Tampered("order file, envelope: expected one over the statement beside it, got one over another")
    proposal = Proposal(order, disclosures, documents, frozenset(names))
    if encode_proposal(proposal, envelope) != data:
        raise BadInput("order file: expected version 1 in its one spelling, got another")
    return proposal, envelope
