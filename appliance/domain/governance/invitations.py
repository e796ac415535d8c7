"""Invitations of people who have no key: the person makes a passkey in a browser, and two administrators enrol it.

An administrator signs the invitation, which contains the digest of a secret. The secret is in the address that the
person opens. An entry of the log records the proof of their passkey; each invitation allows one such entry. Then two
administrators sign the enrolment, as they do for other people.
"""

from __future__ import annotations

import base64
from typing import Any

from appliance.domain.core.action import Action, Attachment, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import Countersigned, Event, Ordered
from appliance.domain.core.example import NOW, example_digest
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.names import Commitment, Digest, Identifier, Role, Time, add_seconds
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.records.people import Invitation, Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.governance.passkeys import (
    PASSKEY_EXAMPLE,
    EnrolPasskey,
    check_passkey_possession,
    complete_passkey,
    make_passkey_row,
    make_passkey_scope,
    refuse_new_passkey,
)
from appliance.domain.governance.people import make_enrolment_changes, refuse_newcomer
from appliance.errors import RefusalCode, Rejected
from appliance.formats.core.digest import short_code
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope

MAX_INVITATION_S = 3_600
"""Largest number of seconds between an invitation and its end."""

INVITATION_END = RefusalCode(
    "invitation-end-out-of-range",
    "order",
    "An invitation can end by {latest}. The order says {until}.",
    "Give an end after {now} and not after {latest}.",
    order_field="until",
)
UNIT_INVITED = RefusalCode(
    "unit-invited",
    "order",
    "A unit cannot be invited: its programs sign with a key file.",
    "Enrol the unit with its key file: appliance principal enrol.",
)
INVITATION_SECRET_USED = RefusalCode(
    "invitation-secret-used",
    "order",
    "Another invitation has the same secret.",
    "Open the form again, which makes a new secret.",
    order_field="secret",
)
INVITATION_NOT_VALID = RefusalCode(
    "invitation-not-valid",
    "state",
    "{name} has no invitation that is open or accepted.",
    "Name one that People and units lists. One that was withdrawn or has expired needs no withdrawal.",
    order_field="principal",
)


PASSKEY_NOT_INVITED = RefusalCode(
    "passkey-not-invited",
    "state",
    "The invitation of {name} was not accepted with this passkey.",
    "Reload the page of the person, and enrol the passkey that it shows. If there is none, invite the person again.",
    order_field="keyid",
)


class Invite(Order):
    """An order to invite a person who has no key. A later invitation of the same name replaces an earlier one."""

    action = "invite"
    principal: Identifier = entered("a new name: small letters, digits and hyphens", label="name", kind="name")
    printed_name: Commitment = entered("the person's full name, as other people read it")
    roles: tuple[Role, ...] = entered("what the person may do", min_length=1, max_length=8)
    secret: Digest = entered(
        "The address has a secret that your browser makes. The service gets its digest only.",
        kind="secret",
        description="SHA-256 of the secret in the invitation's address",
    )
    until: Time = entered("1h at most", label="the address works until", first="1h")

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class WithdrawInvitation(Order):
    """An order to end the invitation of a name at once. The passkey that the person has made by it is dropped."""

    action = "withdraw-invitation"
    principal: Identifier = entered("the name of an invitation that is open or accepted", label="name")

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class EnrolWithPasskey(EnrolPasskey):
    """An order to enrol a person whose first key is a passkey."""

    action = "enrol-with-passkey"
    printed_name: Commitment = entered("the person's full name, as other people read it")
    roles: tuple[Role, ...] = entered("what the person may do", min_length=1, max_length=8)


class PersonInvited(Ordered):
    """The event of an invitation."""

    type = "principal.invited"


class InvitationWithdrawn(Ordered):
    """The event of an invitation that an administrator withdrew."""

    type = "invitation.withdrawn"


class InvitationAccepted(Event):
    """The event of the passkey that an invited person made. The person is not enrolled by it.

    The document `possession` is the passkey's proof of possession.
    """

    type = "invitation.accepted"
    documents = ("possession",)
    principal: Identifier
    keyid: Digest

    def about(self) -> tuple[str, ...]:
        return (f"principal:{self.principal}",)


class EnrolledWithPasskey(Countersigned):
    """The event of the enrolment of a person whose first key is a passkey."""

    type = "principal.enrolled-with-passkey"
    documents = ("order", "possession")


def authorise_invite(state: State, order: Invite, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of an invitation."""
    reasons = refuse_newcomer(state, order.principal, order.roles)
    if "unit" in order.roles:
        reasons.append(UNIT_INVITED())
    if any(row.secret == order.secret for row in state.invitations.values()):
        reasons.append(INVITATION_SECRET_USED())
    latest = add_seconds(now, MAX_INVITATION_S)
    if not now < order.until <= latest:
        reasons.append(INVITATION_END(now=now, latest=latest, until=order.until))
    return reasons


def authorise_withdraw_invitation(state: State, order: WithdrawInvitation, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the withdrawal of an invitation. Every administrator can withdraw it."""
    row = state.invitations.get(order.principal)
    is_valid = row is not None and row.is_valid(now) and order.principal not in state.principals
    return [] if is_valid else [INVITATION_NOT_VALID(name=Rejected(order.principal))]


def authorise_enrol_with_passkey(state: State, order: EnrolWithPasskey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the enrolment of a person with a passkey.

    If the name has an invitation, the passkey must be the one by which that invitation was accepted. So an order with
    the passkey of a withdrawn or replaced invitation is refused.
    """
    reasons = refuse_newcomer(state, order.principal, order.roles)
    row = state.invitations.get(order.principal)
    if row is not None and row.keyid != order.keyid:
        reasons.append(PASSKEY_NOT_INVITED(name=order.principal))
    return reasons + ([UNIT_INVITED()] if "unit" in order.roles else []) + refuse_new_passkey(state, order)


def describe_dropped_passkey(name: str, keyid: Digest) -> str:
    """Return the sentence which warns that a new invitation drops the passkey `keyid` of this name."""
    return (
        f"{name} has made the passkey with the short code {short_code(keyid)} by an earlier invitation. "
        f"This invitation drops it: {name} makes another one."
    )


def apply_invitation(case: Case) -> Changes:
    """Record an invitation, and drop pending orders that enrol the name with the passkey of an earlier one."""
    order = case.order(Invite)
    row = Invitation(
        name=order.principal,
        printed_name=order.printed_name,
        roles=order.roles,
        secret=order.secret,
        until=order.until,
        invited_by=order.signer,
        index=case.entry.index,
    )
    return [(case.state.invitations, order.principal, row), *_drop_enrolments(case.state, order.principal)]


def apply_invitation_withdrawal(case: Case) -> Changes:
    """Apply the withdrawal of an invitation. It drops the passkey, and the orders that wait to enrol the person."""
    state, name = case.state, case.order(WithdrawInvitation).principal
    row = state.invitations.get(name)
    assert row is not None
    withdrawn = row.model_copy(update={"withdrawn": case.entry.index, "accepted": None, "keyid": None})
    return [(state.invitations, name, withdrawn), *_drop_enrolments(state, name)]


def _drop_enrolments(state: State, name: str) -> Changes:
    """Return the changes that drop pending orders to enrol this person with a passkey."""
    waiting = (pending for pending in state.pending.values() if pending.action == EnrolWithPasskey.action)
    return [(state.pending, pending.digest, None) for pending in waiting if f"principal:{name}" in pending.about]


def apply_acceptance(case: Case) -> Changes:
    """Record the passkey of an invited person after checking its proof.

    Raises: Denied if the invitation was used, was withdrawn or has expired, or the passkey is not allowed; Tampered if
        the proof's signature is invalid.
    """
    body, state = case.of(InvitationAccepted), case.state
    row = state.invitations.get(body.principal)
    case.require(row is not None and row.is_unused, "invitation", "one that is open", body.principal)
    assert row is not None
    case.require(case.entry.time < row.until, "time", f"a time before {row.until}", case.entry.time)
    envelope = parse_envelope(case.documents["possession"])
    proof = parse_credential(PasskeyPossession, envelope.payload)
    proved = (proof.origin, proof.signer, proof.keyid, envelope.signature.keyid)
    case.require(proved == (state.site.origin, row.name, body.keyid, body.keyid), "possession", row.name, proved)
    verify_envelope(envelope, base64.b64decode(proof.key), make_passkey_scope(proof))
    reasons = refuse_invited_passkey(state, row, proof)
    case.require(not reasons, "possession", "a newcomer's passkey that policy allows", "; ".join(map(str, reasons)))
    accepted = row.model_copy(update={"accepted": case.entry.index, "keyid": body.keyid})
    return [(state.invitations, row.name, accepted)]


def refuse_invited_passkey(state: State, row: Invitation, proof: PasskeyPossession) -> Reasons:
    """Return the refusal reasons of an invited person's passkey."""
    return refuse_newcomer(state, row.name, row.roles) + refuse_new_passkey(state, proof)


def apply_enrolment_with_passkey(case: Case) -> Changes:
    """Apply the enrolment of a person with a passkey. The invitation, if there was one, ends."""
    order, state = case.order(EnrolWithPasskey), case.state
    person, _ = make_enrolment_changes(case, order.principal, order.printed_name, order.roles, order.key, order.keyid)
    changes: Changes = [person, (state.keys, order.keyid, make_passkey_row(case, order))]
    if order.principal in state.invitations:
        changes.append((state.invitations, order.principal, None))
    return changes


def _describe_newcomer(
    state: State, order: Invite | WithdrawInvitation | EnrolWithPasskey, signer: Principal
) -> PrincipalEntity:
    return PrincipalEntity(id=order.principal, name=order.principal, roles=())


_NINA: dict[str, Any] = {"signer": "anna", "principal": "nina", "roles": ("operator", "release-owner:legal")}

ACTIONS = (
    Action(
        Invite,
        title="Invite a person",
        authorise=authorise_invite,
        signers=("administrator",),
        meaning="You get an address that works once and for a limited time. A person who opens it can make a passkey "
        "under this name. The passkey has no right before two administrators have enrolled it. Give the address to the "
        "person yourself.",
        event=PersonInvited,
        apply=apply_invitation,
        facts=ActionFacts(PrincipalEntity, _describe_newcomer, ("roles", "until")),
        example_values={**_NINA, "secret": example_digest("secret"), "until": add_seconds(NOW, 1_800)},
    ),
    Action(
        WithdrawInvitation,
        title="Withdraw an invitation",
        authorise=authorise_withdraw_invitation,
        signers=("administrator",),
        meaning="The address of this invitation stops working at once. A passkey that the person has made by it is "
        "dropped, with an order that waits to enrol it.",
        event=InvitationWithdrawn,
        apply=apply_invitation_withdrawal,
        facts=ActionFacts(PrincipalEntity, _describe_newcomer),
        example_values={"signer": "ben", "principal": "omar"},
    ),
    Action(
        EnrolWithPasskey,
        title="Enrol a person with a passkey",
        complete=complete_passkey,
        authorise=authorise_enrol_with_passkey,
        signers=("administrator",),
        meaning="The passkey becomes this person's, for ever, with these roles. It signs at these addresses only. "
        "Compare its short code with the person first.",
        event=EnrolledWithPasskey,
        apply=apply_enrolment_with_passkey,
        two_administrators=True,
        attachment=Attachment("possession", check_passkey_possession),
        facts=ActionFacts(PrincipalEntity, _describe_newcomer, ("roles", "backup_eligible", "rp_id", "origins")),
        example_values={**PASSKEY_EXAMPLE, **_NINA},
    ),
)
EVENTS = (EventRule(InvitationAccepted, apply_acceptance),)
