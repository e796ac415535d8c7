"""Release requests, findings, delegations and emergencies: proposed to be signed, and read back from the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from appliance.client.support.door import About, Door
from appliance.client.support.log import Anchor, Proven, read_entry
from appliance.client.support.orders import propose
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import list_problems, split_version
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Parameters
from appliance.domain.governance.delegations import Delegate
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.releases.findings import AddFinding, CloseFinding
from appliance.domain.releases.page.rows import show_decision, show_finding, show_request
from appliance.domain.releases.page.value import Asked, Decided, Found
from appliance.domain.releases.requests_for_release import RequestRelease, WithdrawRequest
from appliance.domain.releases.reviews import Review
from appliance.domain.releases.tiers import tier_for
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.rulebook.registry import ORDERS, VERBS
from appliance.errors import BadInput, NotFound, Tampered, refuse
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import parse_envelope


def with_reason(texts: Mapping[str, str], reason: str | None) -> dict[str, str]:
    return dict(texts) if reason is None else {**texts, "reason": reason}


def make_conditions(values: Mapping[str, Any]) -> Conditions | None:
    """None where they say nothing; BadInput names a value that cannot be one."""
    try:
        conditions = Conditions.model_validate(dict(values))
    except ValidationError as error:
        refuse("conditions", [f"conditions, {problem}" for problem in list_problems(error)])
        raise AssertionError("unreachable: invalid conditions have a problem") from None
    return None if conditions.say_nothing() else conditions


def on_sealed(door: Door, anchor: Anchor, name: str) -> dict[str, Any]:
    """The members that name an adapter, by the proved entry that sealed it."""
    row = door.get(f"/v1/adapters/{name}")
    entry = read_entry(door, anchor, int(row["index"])).entry
    if (entry.type, entry.body.get("adapter")) != ("adapter.sealed", name):
        raise Tampered(f"adapter {name}: expected its sealing as entry {entry.index}, got {entry.type}")
    adapter, version = split_version(name)
    return {"adapter": adapter, "version": version, "manifest": entry.documents["manifest"]}


def propose_request(
    door: Door, anchor: Anchor, signer: str, name: str, *, texts: Mapping[str, str], **terms: Any
) -> Proposal:
    """`terms`: unit, exposure, purpose and conditions. The tier is what the policy in force makes of them."""
    values = on_sealed(door, anchor, name)
    rules = Parameters.model_validate_json(encode_canonical(dict(door.about.parameters)))
    tier = tier_for(rules, terms["exposure"], terms["purpose"])
    if tier is None:
        known = {"exposure": rules.exposures, "purpose": rules.purposes}
        wrong = next(key for key, words in known.items() if terms[key] not in words)
        raise BadInput(f"{wrong}: expected one of {', '.join(known[wrong])}, got {terms[wrong]}")
    verdict = door.get(f"/v1/adapters/{name}")["verdict"]
    values |= {**terms, "tier": tier.name, "verdict": verdict}
    return propose(door.about, signer, RequestRelease, values, texts=texts)


def propose_request_withdrawal(
    door: Door, anchor: Anchor, signer: str, name: str, unit: str, reason: str | None
) -> Proposal:
    values = {**on_sealed(door, anchor, name), "unit": unit}
    for one in door.get(f"/v1/adapters/{name}")["asked"]:
        if one["request"]["unit"] == unit:
            values["request"] = read_request(door, anchor, name, one).order
            return propose(door.about, signer, WithdrawRequest, values, texts=with_reason({}, reason))
    raise NotFound(f"request: expected one that stands for {name} and {unit}, got none")


def propose_finding(
    door: Door, anchor: Anchor, signer: str, name: str, texts: Mapping[str, str], **terms: Any
) -> Proposal:
    values = {**on_sealed(door, anchor, name), **terms}
    return propose(door.about, signer, AddFinding, values, texts=texts)


def propose_closing(door: Door, anchor: Anchor, signer: str, name: str, entry: int, evidence: str) -> Proposal:
    values = {**on_sealed(door, anchor, name), "entry": entry}
    return propose(door.about, signer, CloseFinding, values, texts={"evidence": evidence})


def propose_delegation(about: About, signer: str, principal: str, field: str, until: str | None) -> Proposal:
    return propose(about, signer, Delegate, {"principal": principal, "field": field, "until": until})


def propose_emergency(door: Door, anchor: Anchor, signer: str, name: str, reason: str, **terms: Any) -> Proposal:
    """`terms`: unit, task, adds_instruction and until."""
    values = {**on_sealed(door, anchor, name), **terms}
    return propose(door.about, signer, BreakGlass, values, texts={"reason": reason})


def read_request(door: Door, anchor: Anchor, name: str, told: Mapping[str, Any]) -> Asked:
    """By its signer's order in the log; tier, what is missing and who could decide are the service's word.

    Tampered where the entry that the service names holds no such request for this adapter and unit.
    """
    row = told["request"]
    proven = read_entry(door, anchor, int(row["index"]))
    order, digest = ordered(proven)
    what = f"request of entry {proven.entry.index}"
    if not isinstance(order, RequestRelease | BreakGlass) or (order.name, order.unit) != (name, row["unit"]):
        raise Tampered(f"{what}: expected one for {name} and {row['unit']}, got {order.verb} of {order.about()}")
    if digest != row["order"]:
        raise Tampered(f"{what}, order: expected {digest}, got {row['order']}")
    return show_request(order, digest, proven.entry.index, _texts(proven, order), told)


def read_finding(door: Door, anchor: Anchor, name: str, row: Mapping[str, Any]) -> Found:
    """By its signer's order in the log; whether it is open is the service's word."""
    proven = read_entry(door, anchor, int(row["index"]))
    order, _ = ordered(proven)
    if not isinstance(order, AddFinding) or order.name != name:
        raise Tampered(f"finding {row['index']}: expected one of {name}, got {order.verb} of {order.about()}")
    terms = ("kind", "severity", "blocks", "accepts_verdict", "field", "owner", "due")
    told = (row["finder"], *(row[name] for name in terms))
    said = (order.signer, *(getattr(order, name) for name in terms))
    if told != said:
        raise Tampered(f"finding {row['index']}: expected {said}, got {told}")
    return show_finding(row, _texts(proven, order))


def read_decision(door: Door, anchor: Anchor, name: str, row: Mapping[str, Any]) -> Decided:
    """By its reviewer's order in the log; what it counts for is the service's word."""
    order, _ = ordered(read_entry(door, anchor, int(row["index"])))
    if not isinstance(order, Review) or order.name != name:
        raise Tampered(f"decision {row['index']}: expected one on {name}, got {order.verb} of {order.about()}")
    shown = show_decision(row)
    terms = ("decision", "unit", "field", "valid_until", "conditions", "on_behalf_of")
    told = (shown.reviewer, *(getattr(shown, name) for name in terms))
    said = (order.signer, *(getattr(order, name) for name in terms))
    if told != said:
        raise Tampered(f"decision {row['index']}: expected {said}, got {told}")
    return shown


def ordered(proven: Proven) -> tuple[Order, str]:
    """The order that took effect with this entry, and its digest; where two signed, the one that was endorsed. Tampered
    where it did not take effect: it was refused, or waits."""
    envelope = parse_envelope(proven.document("endorsed" if "endorsed" in proven.documents else "order"))
    order, entry = ORDERS.parse(envelope.payload), proven.entry
    event = VERBS[order.verb].event
    if event is None or entry.type != event.type:
        raise Tampered(f"entry {entry.index}: expected what an order {order.verb} becomes, got {entry.type}")
    return order, envelope.pae_digest


def _texts(proven: Proven, order: Order) -> dict[str, str]:
    """What the order's commitments open to, by member."""
    known = {disclosure.commitment: disclosure.text for disclosure in proven.disclosures}
    return {name: known[commitment] for name, commitment in order.commitments().items() if commitment in known}
