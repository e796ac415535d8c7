"""An order in a file, from the console: read on another machine before, or after, it is signed."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.files import read_file
from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.records.people import Key
from appliance.domain.governance.passkeys import scope_of
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, resolve_recipe
from appliance.domain.rulebook.proposals import Proposal, parse_proposal
from appliance.domain.rulebook.showing import describe_signature, show_value
from appliance.domain.runs.training import Train
from appliance.errors import BadInput, NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, Envelope, pae, parse_envelope, verify_envelope
from appliance.formats.signatures.relying_party import PasskeyScope
from appliance.formats.signatures.webauthn import challenge_of

_MAX_FILE_BYTES = 4_194_304

UNWRITABLE: Mapping[str, Any] = {"rank": 0, "alpha": 0, "target_modules": (), "validate_every": 0}
"""Values of a resolved recipe that no author can write: in a recipe they are `auto`."""

Holder = tuple[bytes, PasskeyScope | None]
"""A public key, and of a passkey where its assertions count."""


def read_order_file(path: Path) -> tuple[Proposal, Envelope | None]:
    """BadInput or Tampered where the file is no order, or its texts and documents are not what the order binds."""
    return parse_proposal(read_file(path, "order file", _MAX_FILE_BYTES).rstrip(b"\r\n"))


def identity_of(order: Order) -> dict[str, str]:
    """What names the order in the log, and what a passkey is asked to sign."""
    signed = pae(PAYLOAD_TYPE, encode_order(order))
    return {"order": digest_bytes(signed), "challenge": encode_base64url(challenge_of(signed))}


def proved_key(path: Path, order: Order) -> Holder:
    """The passkey of a proof that its owner kept; the proof's own assertion is checked."""
    envelope = parse_envelope(read_file(path, "proof of a passkey", _MAX_FILE_BYTES).rstrip(b"\r\n"))
    statement = parse_credential(PasskeyPossession, envelope.payload)
    if (statement.signer, statement.origin) != (order.signer, order.origin):
        expected, got = f"{order.signer} at {order.origin}", f"{statement.signer} at {statement.origin}"
        raise BadInput(f"proof of a passkey, {path}: expected that of {expected}, got that of {got}")
    spki, scope = base64.b64decode(statement.key), scope_of(statement)
    verify_envelope(envelope, spki, scope)
    return spki, scope


def enrolled_key(door: Door, envelope: Envelope, order: Order) -> Holder:
    """The key that the service says was enrolled for the signer."""
    keyid = envelope.signature.keyid
    things = door.get("/v1/ledger/state", kind=("key",))["things"]
    for thing in things:
        key = Key.model_validate_json(_json(thing["value"]))
        if (key.keyid, key.principal) == (keyid, order.signer):
            return base64.b64decode(key.spki), key.scope
    raise NotFound(f"key of {order.signer}: expected {keyid} to be enrolled for them, got another's or none")


def _json(value: Mapping[str, Any]) -> bytes:
    from appliance.formats.core.canonical import encode_canonical

    return encode_canonical(value)


def check_signature(envelope: Envelope, holder: Holder) -> dict[str, str]:
    """Facts of the signature, once it holds; Tampered where it does not."""
    verify_envelope(envelope, *holder)
    return {"signed by": envelope.signature.keyid, "signature": f"holds: {describe_signature(envelope)}"}


def resolve_again(door: Door, proposal: Proposal) -> list[str]:
    """Of an order to train: each value that was `auto` and that this machine resolves otherwise."""
    order = proposal.order
    if not isinstance(order, Train) or not proposal.resolved:
        return []
    signed = order.recipe.model_dump()
    facts = door.get("/v1/recipes/facts", base=order.recipe.base, dataset=order.recipe.dataset)["facts"]
    left = proposal.resolved | {name for name, value in UNWRITABLE.items() if signed[name] == value}
    written = signed | dict.fromkeys(left, "auto")
    if signed["privacy"] is not None:
        # Epsilon follows from the noise: the rules compute it again.
        written["privacy"] = {name: value for name, value in signed["privacy"].items() if name != "epsilon"}
    asked = parse_recipe(written)
    found = resolve_recipe(asked, Facts.model_validate(facts)).model_dump()
    return [
        f"{name}: expected {show_value(found[name])}, got {show_value(signed[name])}"
        for name in sorted(left)
        if found[name] != signed[name]
    ]
