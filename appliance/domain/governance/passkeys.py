"""Passkeys: further keys of a person or unit. Each is in an authenticator and signs at its enrolled origins only.

The people of a unit sign in to the console with the unit's passkeys. A unit's programs use its key file, because a
passkey cannot sign tokens.
"""

from __future__ import annotations

import base64
from typing import Any

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import CredentialId, Origin, PasskeyPossession, parse_credential
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Identifier, Time
from appliance.domain.core.order import derived
from appliance.domain.core.records.people import Key, Passkey, Principal
from appliance.domain.core.roles import Reasons, require_enrolled
from appliance.domain.core.signatures import refuse_passkey_scope
from appliance.domain.core.state import State
from appliance.domain.governance.keys import NewKey, derive_key_fields, make_key_row, refuse_new_key
from appliance.errors import BadInput, RefusalCode, Rejected
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.webauthn import PasskeyScope, is_passkey_key

PASSKEY_ADDRESS_INVALID = RefusalCode(
    "passkey-address-invalid",
    "order",
    "The passkey is for an address at which no browser can use it: {detail}.",
    "Make a passkey at the address of this console.",
)
NOT_A_PASSKEY = RefusalCode(
    "key-not-of-a-passkey",
    "order",
    "The key is not that of a passkey, which is on the curve P-256.",
    "Make a passkey in the console.",
)
CREDENTIAL_TAKEN = RefusalCode(
    "credential-taken",
    "order",
    "This passkey was enrolled before, with the key {keyid}.",
    "Make a new passkey.",
)
PASSKEY_NAME_TAKEN = RefusalCode(
    "passkey-name-taken",
    "order",
    "{id} has had a passkey with the name {name}.",
    "Give the passkey another name.",
)


class EnrolPasskey(NewKey):
    """An order to enrol a passkey as one more key of a person or unit; the other keys stay."""

    action = "enrol-passkey"
    passkey: Identifier = derived(description="the owner's own name for it")
    credential_id: CredentialId = derived()
    rp_id: str = derived(max_length=253)
    origins: tuple[Origin, ...] = derived(min_length=1, max_length=8)
    backup_eligible: bool = derived()


class PasskeyEnrolled(Countersigned):
    """The event of the enrolment of a passkey."""

    type = "passkey.enrolled"
    documents = ("order", "possession")


PASSKEY_FIELDS = ("passkey", "credential_id", "rp_id", "origins", "backup_eligible")
"""Fields of an order that describe its passkey."""
_PROVED_FIELDS = ("key", "keyid", *PASSKEY_FIELDS)
"""Fields of an order that must equal those of the proof, which the passkey signed."""


def complete_passkey(order_input: OrderInput, lookup: Lookup) -> Completed:
    """Return the fields that describe a passkey, from its proof of possession that is sent with the order."""
    envelope = parse_envelope(order_input.documents.get("possession", b""))
    proof = parse_credential(PasskeyPossession, envelope.payload)
    passkey_fields = {name: ProvenValue(getattr(proof, name)) for name in PASSKEY_FIELDS}
    return {**derive_key_fields(proof, envelope.pae_digest), **passkey_fields}


def check_passkey_possession(case: Case, order: EnrolPasskey, data: bytes) -> None:
    """Check that the passkey signed its proof for this log, this principal and one of the order's origins.

    Raises: BadInput if the proof and the order differ; Tampered if the assertion is invalid.
    """
    envelope = parse_envelope(data)
    proof = parse_credential(PasskeyPossession, envelope.payload)
    label = f"proof of possession of {order.principal}"
    expected = {"origin": case.state.site.origin, "signer": order.principal, "possession": order.possession}
    expected |= {name: getattr(order, name) for name in _PROVED_FIELDS}
    proved = {"origin": proof.origin, "signer": proof.signer, "possession": envelope.pae_digest}
    proved |= {name: getattr(proof, name) for name in _PROVED_FIELDS}
    for name, expected_value in expected.items():
        if proved[name] != expected_value:
            raise BadInput(f"{label}, {name}: expected {expected_value}, got {proved[name]}")
    verify_envelope(envelope, base64.b64decode(order.key), make_passkey_scope(order))


def make_passkey_scope(order: EnrolPasskey | PasskeyPossession) -> PasskeyScope:
    """Return the scope of a passkey: the host (`rp_id`) and the origins at which its assertions are valid.

    Raises: BadInput if no browser makes assertions at these addresses.
    """
    return PasskeyScope(order.rp_id, order.origins, order.backup_eligible)


def authorise_enrol_passkey(state: State, order: EnrolPasskey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the enrolment of a passkey."""
    return require_enrolled(state, order.principal) + refuse_new_passkey(state, order)


def refuse_new_passkey(state: State, order: EnrolPasskey | PasskeyPossession) -> Reasons:
    """Return the refusal reasons of a passkey.

    They are an enrolled or malformed key, another kind of key, a name or credential id in use, and a scope that is
    invalid or that policy does not allow.
    """
    reasons = refuse_new_key(state, order) + _check_key_kind(order) + _check_unique(state, order)
    try:
        return reasons + refuse_passkey_scope(state.parameters, make_passkey_scope(order))
    except BadInput as error:
        return [*reasons, PASSKEY_ADDRESS_INVALID(detail=Rejected(error.message))]


def _check_key_kind(order: EnrolPasskey | PasskeyPossession) -> Reasons:
    try:
        is_passkey = is_passkey_key(base64.b64decode(order.key))
    except BadInput:
        return []  # refuse_new_key reports it
    return [] if is_passkey else [NOT_A_PASSKEY()]


def _check_unique(state: State, order: EnrolPasskey | PasskeyPossession) -> Reasons:
    """Return the refusal reasons of a credential id that the log has, and a name that the principal used before."""
    reasons = []
    for key in list_passkeys(state):
        assert key.passkey is not None
        if key.passkey.credential_id == order.credential_id:
            reasons.append(CREDENTIAL_TAKEN(keyid=key.keyid))
        owner = order.principal if isinstance(order, EnrolPasskey) else order.signer
        if key.principal == owner and key.passkey.name == order.passkey:
            reasons.append(PASSKEY_NAME_TAKEN(f"principal:{owner}", name=order.passkey))
    return reasons


def list_passkeys(state: State, principal: str | None = None) -> list[Key]:
    """Return every passkey that was ever enrolled; with `principal`, those of this principal."""
    return [
        key
        for key in state.keys.values()
        if key.passkey is not None and (principal is None or key.principal == principal)
    ]


def apply_passkey_enrolment(case: Case) -> Changes:
    """Apply the enrolment of a passkey."""
    order = case.order(EnrolPasskey)
    return [(case.state.keys, order.keyid, make_passkey_row(case, order))]


def make_passkey_row(case: Case, order: EnrolPasskey) -> Key:
    """Return the state's row of the passkey that the current entry enrols."""
    passkey = Passkey(
        name=order.passkey,
        credential_id=order.credential_id,
        rp_id=order.rp_id,
        origins=order.origins,
        backup_eligible=order.backup_eligible,
    )
    key = make_key_row(case, order.principal, order.key, order.keyid)
    return key.model_copy(update={"passkey": passkey})


PASSKEY_EXAMPLE: dict[str, Any] = {
    "signer": "anna",
    "key": "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmxgR7gVyLfBZC3fahp1ckg4oM+f6DGS2WZBMj7QtEgIcCedgnKu4WwYUROCbACHZID"
    "cyZDehOv7shOWadNRJNQ==",
    "keyid": "sha256:4d361973770ef1c5dc320cb84066e576aa87751fe3f3c52bc4a1eb22bbf04480",
    "passkey": "blue",
    "credential_id": "ZXhhbXBsZQ",
    "rp_id": "appliance.example",
    "origins": ("https://appliance.example",),
}


ACTIONS = (
    Action(
        EnrolPasskey,
        title="Enrol a passkey",
        complete=complete_passkey,
        authorise=authorise_enrol_passkey,
        signers=("administrator",),
        meaning=(
            "The person or unit also signs with this passkey, at these addresses only. "
            "Compare its short code with the holder first."
        ),
        event=PasskeyEnrolled,
        apply=apply_passkey_enrolment,
        two_administrators=True,
        attachment=Attachment("possession", check_passkey_possession),
        facts=ActionFacts(PrincipalEntity, "principal", ("backup_eligible", "rp_id", "origins")),
        example_values=PASSKEY_EXAMPLE,
    ),
)
