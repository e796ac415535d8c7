"""How an order is shown before it is signed: every value that the signature binds, as a label and a text.

The console's script shows a statement the same way from its bytes (web/console/static/signing.js).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.domain.core.order import encode_order
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.governance.people import EnrollSeveral
from appliance.domain.rulebook.proposals import HEADER, Proposal
from appliance.domain.runs.training import Train
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import Envelope
from appliance.formats.signatures.webauthn import parse_assertion


def describe(proposal: Proposal) -> list[tuple[str, str]]:
    """Every value that the signature binds, in order, as (label, text); committed texts are shown as they read."""
    order = proposal.order
    texts = {disclosure.commitment: disclosure.text for disclosure in proposal.disclosures}
    lines = [("verb", order.verb), ("signer", order.signer), ("log", order.origin)]
    for name, value in order.model_dump(mode="json").items():
        if name == "gates":
            lines += describe_gates(proposal)
            continue
        if name in HEADER or value is None:
            continue
        if name == "commitment":
            # What an erasure names; the text behind it is shown while it is there.
            lines.append((name, value))
            lines.append(("text", texts.get(value, "not disclosed: what would be erased cannot be shown")))
            continue
        if name == "columns":
            value = dict(sorted(value.items()))  # as the signed bytes have them
        if isinstance(order, EnrollSeveral) and name == "people":
            lines += describe_people(value, texts)
        elif name == "recipe" and isinstance(order, Train):
            lines += describe_recipe(value, proposal.resolved)
        else:
            lines.append((label_of(name), show_value(texts.get(value, value) if isinstance(value, str) else value)))
    return [*lines, ("expires", order.expires_at), ("statement", digest_bytes(encode_order(order)))]


def describe_people(people: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Of an order that enrols several: every value of each person, under the person's name."""
    return [
        (
            f"{person['principal']}, {label_of(name)}",
            show_value(texts.get(value, value) if isinstance(value, str) else value),
        )
        for person in people
        for name, value in person.items()
        if name != "principal"
    ]


def describe_recipe(recipe: Mapping[str, Any], resolved: frozenset[str]) -> list[tuple[str, str]]:
    """The resolved recipe; values that were `auto` are marked."""
    return [
        (label_of(name), f"{show_value(value)}{'  (auto)' if name in resolved else ''}")
        for name, value in recipe.items()
    ]


def describe_gates(proposal: Proposal) -> list[tuple[str, str]]:
    """The gate set that an order to train binds, gate by gate from its bytes; or that it binds none."""
    data, bound = proposal.documents.get("gates"), getattr(proposal.order, "gates", None)
    if bound is None:
        return [("gates", "none: no gate decides on this adapter")]
    if data is None:
        return [("gates", f"not disclosed: what {bound} decides cannot be shown")]
    gates = parse_gates(data)
    rules = f"alpha {gates.alpha}, correction {gates.correction}, luck {gates.luck}, seed {gates.seed}"
    lines = [("gates", f"{gates.name}, {digest_bytes(data)}"), ("gates, rules", rules)]
    return lines + [(f"gate {gate.name}", f"{gate.leg}: {gate.describe()}") for gate in gates.gates]


LABELS = {
    "backup_eligible": "can be copied to a cloud",
    "credential_id": "credential id",
    "expires_at": "expires",
    "issued_at": "made",
    "keyid": "key id",
    "on": "trains on",
    "origins": "signs at",
    "passkey": "name of the passkey",
    "rp_id": "host",
}
"""Of members whose own name says too little. The console's script has the same."""


def label_of(name: str) -> str:
    return LABELS.get(name) or name.replace("_", " ")


def show_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {show_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(show_value(item) for item in value) or "none"
    return str(value)


def describe_signature(envelope: Envelope) -> str:
    """What kind of signature it is, and of a passkey's where and how; nothing of it is checked."""
    try:
        assertion = parse_assertion(envelope.signature.sig)
        place = json.loads(assertion.client_data_json)["origin"]
    except (BadInput, ValueError, LookupError, TypeError):
        return "by a key file"
    return f"by a passkey at {place}, its counter at {assertion.counter}"
