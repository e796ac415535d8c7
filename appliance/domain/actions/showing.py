"""The display of an order before it is signed: every value that the signature binds, as a label and a text.

The console's script displays a statement in the same way from its bytes (web/console/static/signing.js).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.domain.actions.proposals import HEADER, Proposal
from appliance.domain.core.order import encode_order
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.governance.people import EnrolSeveral
from appliance.domain.runs.training import Train
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes, short_code
from appliance.formats.signatures.dsse import Envelope
from appliance.formats.signatures.webauthn import parse_assertion


def describe(proposal: Proposal) -> list[tuple[str, str]]:
    """Return every value that the signature binds, in order, as (label, text); commitments are shown as their texts."""
    order = proposal.order
    texts = {disclosure.commitment: disclosure.text for disclosure in proposal.disclosures}
    lines = [("action", order.action), ("signer", order.signer), ("log", order.origin)]
    for name, value in order.model_dump(mode="json").items():
        if name == "gates":
            lines += describe_gates(proposal)
            continue
        if name in HEADER or value is None:
            continue
        if name == "commitment":
            # An erasure names a commitment; its text is shown as long as it exists.
            lines.append((name, value))
            lines.append(("text", texts.get(value, "not disclosed: what would be erased cannot be shown")))
            continue
        if name == "columns":
            value = dict(sorted(value.items()))  # as the signed bytes have them
        if isinstance(order, EnrolSeveral) and name == "people":
            lines += describe_people(value, texts)
        elif name == "recipe" and isinstance(order, Train):
            lines += describe_recipe(value, proposal.reported)
        elif isinstance(value, list) and any(item in texts for item in value if isinstance(item, str)):
            lines += [(f"{label_of(name)}, {n}", _open_commitment(item, texts)) for n, item in enumerate(value, 1)]
        else:
            lines.append((label_of(name), show_value(_open_commitment(value, texts)) + _mark(name, proposal)))
        if name == "keyid":
            lines.append(("short code", short_code(value)))
    return [*lines, ("expires", order.expires_at), ("statement", digest_bytes(encode_order(order)))]


def _mark(name: str, proposal: Proposal) -> str:
    """Return the mark of a value that the service states without a proof."""
    return REPORTED if name in proposal.reported else ""


REPORTED = "  (as the service reports)"
"""Mark of a value that the service states without a proof. The console's script has the same."""


def _open_commitment(value: Any, texts: Mapping[str, str]) -> Any:
    """Return the text of a commitment, and any other value unchanged."""
    return texts.get(value, value) if isinstance(value, str) else value


def describe_people(people: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every value of each person of an order that enrols several, labelled with the person's name."""
    return [
        (
            f"{person['principal']}, {label_of(name)}",
            show_value(_open_commitment(value, texts)),
        )
        for person in people
        for name, value in person.items()
        if name != "principal"
    ]


def describe_recipe(recipe: Mapping[str, Any], reported: frozenset[str]) -> list[tuple[str, str]]:
    """Return the values of the resolved recipe; those that were `auto` are marked."""
    return [
        (label_of(name), f"{show_value(value)}{'  (auto)' if f'recipe.{name}' in reported else ''}")
        for name, value in recipe.items()
    ]


def describe_gates(proposal: Proposal) -> list[tuple[str, str]]:
    """Return the gates that an order to train binds, gate by gate from the file's bytes.

    There is a line to that effect if it binds none, or if the file is not disclosed.
    """
    data, bound = proposal.documents.get("gates"), getattr(proposal.order, "gates", None)
    if bound is None:
        return [("gates", "none: no gate decides on this adapter")]
    if data is None:
        return [("gates", f"not disclosed: what {bound} decides cannot be shown")]
    gates = parse_gates(data)
    rules = (
        f"alpha {gates.alpha}, correction {gates.correction}, run correction {gates.run_correction}, seed {gates.seed}"
    )
    lines = [("gates", f"{gates.name}, {digest_bytes(data)}"), ("gates, rules", rules)]
    return lines + [(f"gate {gate.name}", gate.describe_role()) for gate in gates.gates]


LABELS = {
    "adds_instruction": "send the dataset's instruction with each request",
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
"""Labels of fields whose own name is not clear enough. The console's signing page gets them from here."""


def label_of(name: str) -> str:
    """Return the label of a field."""
    return LABELS.get(name) or name.replace("_", " ")


def show_value(value: Any) -> str:
    """Return a value as text for people. Parts of an object that are null or empty are left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, dict):
        set_parts = ((key, item) for key, item in value.items() if item is not None and item != [] and item != ())
        return ", ".join(f"{label_of(key)} = {show_value(item)}" for key, item in set_parts) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(show_value(item) for item in value) or "none"
    return str(value)


def describe_signature(envelope: Envelope) -> str:
    """Return the kind of the signature, with a passkey's origin and counter. The signature is not verified."""
    try:
        assertion = parse_assertion(envelope.signature.sig)
        origin = json.loads(assertion.client_data_json)["origin"]
    except (BadInput, ValueError, LookupError, TypeError):
        return "by a key file"
    return f"by a passkey at {origin}, its counter at {assertion.counter}"
