"""Passkeys: further keys of a person or a unit, each in an authenticator, which sign by assertions at the origins
enrolled.

A unit's passkeys are for its people, who sign in to the console with them: its programs hold its key file, and a
passkey signs no token.
"""

from __future__ import annotations

import base64

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import CredentialId, Origin, PasskeyPossession, parse_credential
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Identifier, Time
from appliance.domain.core.records.people import Key, Passkey, Principal
from appliance.domain.core.roles import Reasons, needs, stands
from appliance.domain.core.signatures import against_scope
from appliance.domain.core.state import State
from appliance.domain.core.verb import Attachment, Verb
from appliance.domain.governance.keys import NewKey, check_new_key, new_key
from appliance.errors import BadInput
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.relying_party import PasskeyScope
from appliance.formats.signatures.webauthn import is_passkey_key


class EnrollPasskey(NewKey):
    """One more key of an enrolled person, or of somebody in a unit; the others stay."""

    verb = "enroll-passkey"
    passkey: Identifier = Field(description="the owner's own name for it")
    credential_id: CredentialId
    rp_id: str = Field(max_length=253)
    origins: tuple[Origin, ...] = Field(min_length=1, max_length=8)
    backup_eligible: bool


class PasskeyEnrolled(Endorsed):
    type = "passkey.enrolled"
    documents = ("order", "possession")


PASSKEY_MEMBERS = ("passkey", "credential_id", "rp_id", "origins", "backup_eligible")
_PROVED = ("key", "keyid", *PASSKEY_MEMBERS)
"""What the passkey signed of itself, and the order repeats."""


def check_passkey_possession(case: Case, order: EnrollPasskey, data: bytes) -> None:
    """The passkey signed, for this log and this person, where it signs, at one of these origins."""
    envelope = parse_envelope(data)
    proof = parse_credential(PasskeyPossession, envelope.payload)
    what = f"proof of possession of {order.principal}"
    expected = {"origin": case.state.site.origin, "signer": order.principal, "possession": order.possession}
    expected |= {name: getattr(order, name) for name in _PROVED}
    found = {"origin": proof.origin, "signer": proof.signer, "possession": envelope.pae_digest}
    found |= {name: getattr(proof, name) for name in _PROVED}
    for name, value in expected.items():
        if found[name] != value:
            raise BadInput(f"{what}, {name}: expected {value}, got {found[name]}")
    verify_envelope(envelope, base64.b64decode(order.key), scope_of(order))


def scope_of(order: EnrollPasskey | PasskeyPossession) -> PasskeyScope:
    """Where the passkey's assertions count; BadInput where no browser would make one."""
    return PasskeyScope(order.rp_id, order.origins, order.backup_eligible)


def may_enroll_passkey(state: State, order: EnrollPasskey, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator") + stands(state, order.principal) + check_new_key(state, order)
    reasons += _against_kind(order) + _against_twins(state, order)
    try:
        return reasons + against_scope(state.parameters, scope_of(order))
    except BadInput as error:
        return [*reasons, error.message]


def _against_kind(order: EnrollPasskey) -> Reasons:
    try:
        is_passkey = is_passkey_key(base64.b64decode(order.key))
    except BadInput:
        return []  # check_new_key says it
    return [] if is_passkey else [f"key: expected a passkey's, of the curve P-256, got {order.keyid}"]


def _against_twins(state: State, order: EnrollPasskey) -> Reasons:
    """A name means one passkey of the person, and a credential id one passkey of the log, for ever."""
    reasons = []
    for key in passkeys_of(state):
        assert key.passkey is not None
        if key.passkey.credential_id == order.credential_id:
            reasons.append(f"credential id: expected one never enrolled here, got that of {key.keyid}")
        if key.principal == order.principal and key.passkey.name == order.passkey:
            reasons.append(f"passkey: expected a name that {order.principal} never gave, got {order.passkey}")
    return reasons


def passkeys_of(state: State, principal: str | None = None) -> list[Key]:
    """Every passkey that was ever enrolled; with `principal`, those of this person."""
    return [
        key
        for key in state.keys.values()
        if key.passkey is not None and (principal is None or key.principal == principal)
    ]


def passkey_enrolled(case: Case) -> Changes:
    order = case.order(EnrollPasskey)
    passkey = Passkey(
        name=order.passkey,
        credential_id=order.credential_id,
        rp_id=order.rp_id,
        origins=order.origins,
        backup_eligible=order.backup_eligible,
    )
    key = new_key(case, order.principal, order.key, order.keyid)
    return [(case.state.keys, order.keyid, key.model_copy(update={"passkey": passkey}))]


VERBS = (
    Verb(
        EnrollPasskey,
        may=may_enroll_passkey,
        signers=("administrator",),
        meaning=(
            "The person or unit also signs with this passkey, at these origins only. "
            "Compare the key id with its holder first."
        ),
        event=PasskeyEnrolled,
        apply=passkey_enrolled,
        two_administrators=True,
        attachment=Attachment("possession", check_passkey_possession),
    ),
)
