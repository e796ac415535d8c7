"""Enrolment of people and units, their roles, and their revocation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned, Ordered
from appliance.domain.core.example import NEW_KEY, make_example
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.names import SERVICE, Commitment, Identifier, Role, Time
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, exclusive_roles, is_unit, require_enrolled
from appliance.domain.core.state import State
from appliance.domain.governance.keys import (
    POSSESSION,
    NewKey,
    ProvedKey,
    check_possession,
    complete_key,
    make_key_row,
    refuse_new_key,
)
from appliance.errors import Denied, RefusalCode, Rejected
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import parse_list

MOST_PEOPLE = 24
"""Largest number of people in one order. Each is a subject of the entry, which can have 32 subjects."""

NAME_TAKEN = RefusalCode(
    "name-taken", "order", "The name {id} belongs to an enrolled or revoked principal for ever.", "Choose another name."
)
NAME_OF_SERVICE = RefusalCode(
    "name-of-service", "order", "The name {id} is that of the service itself.", "Choose another name."
)
KEY_REPEATED = RefusalCode(
    "key-repeated",
    "order",
    "The order enrols the key of {name} for two people.",
    "Give each person a key of their own.",
)
OWNED_UNIT_UNKNOWN = RefusalCode(
    "owned-unit-unknown",
    "state",
    "{name} would be the release owner of {unit}, which is not an enrolled unit.",
    "Name a unit that is enrolled, or have two administrators enrol it first.",
)
ROLE_HELD = RefusalCode("role-held", "state", "{id} has the role {role} already.", "Grant another role.")
ROLE_NOT_HELD = RefusalCode(
    "role-not-held", "state", "{id} does not have the role {role}.", "Name one of the person's roles."
)
LAST_ROLE = RefusalCode(
    "last-role",
    "rule",
    "{role} is the only role of {id}. A person or unit has at least one role.",
    "Revoke the person or unit, or give the person another role first.",
)


class Enrol(NewKey):
    """An order to enrol a person or unit."""

    action = "enrol"
    printed_name: Commitment = entered("the full name, as other people read it")
    roles: tuple[Role, ...] = entered("what the person may do", min_length=1, max_length=8)


class Enrolment(ProvedKey):
    """One person or unit of an order that enrols several."""

    printed_name: Commitment
    roles: tuple[Role, ...] = Field(min_length=1, max_length=8)


class EnrolSeveral(Order):
    """An order to enrol several people and units, all of them or none."""

    action = "enrol-several"
    people: tuple[Enrolment, ...] = Field(min_length=1, max_length=MOST_PEOPLE)

    def subjects(self) -> Subjects:
        return tuple((f"principal:{person.principal}", person.keyid) for person in self.people)

    def commitments(self) -> dict[str, str]:
        names = {f"printed_name.{person.principal}": person.printed_name for person in self.people}
        return super().commitments() | names

    def each(self) -> tuple[Enrol, ...]:
        """Return one `Enrol` order for each person."""
        header = {name: getattr(self, name) for name in Order.model_fields}
        return tuple(Enrol(**header, **person.__dict__) for person in self.people)


class Grant(Order):
    """An order to give a principal one more role."""

    action = "grant"
    principal: Identifier
    role: Role

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class RemoveRole(Order):
    """An order to remove one role of a principal, who keeps the others."""

    action = "remove-role"
    principal: Identifier
    role: Role

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class RevokePrincipal(Order):
    """An order to revoke a person or unit with all keys."""

    action = "revoke-principal"
    principal: Identifier

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class PrincipalEnrolled(Countersigned):
    """The event of the enrolment of one person or unit."""

    type = "principal.enrolled"
    documents = ("order", "possession")


class PrincipalsEnrolled(Countersigned):
    """The event of the enrolment of several people and units.

    The document `possessions` is a canonical JSON array of the proofs of possession. It has the same sequence as the
    order's `people`.
    """

    type = "principals.enrolled"
    documents = ("order", "possessions")


class RoleGranted(Countersigned):
    """The event of a grant of one more role to a principal."""

    type = "principal.granted"


class RoleRemoved(Countersigned):
    """The event of the removal of a role."""

    type = "principal.role-removed"


class PrincipalRevoked(Ordered):
    """The event of the revocation of a person or unit."""

    type = "principal.revoked"


def check_possessions(case: Case, order: EnrolSeveral, data: bytes) -> None:
    """Check that `data` contains a valid proof of possession for each person, made by their key for their name.

    Raises: Denied for another number of proofs; BadInput or Tampered for an invalid proof.
    """
    proofs = split_proofs(data)
    case.require(len(proofs) == len(order.people), "possessions", f"{len(order.people)} proofs", len(proofs))
    for person, proof in zip(order.people, proofs, strict=True):
        check_possession(case, person, proof)


def split_proofs(data: bytes) -> list[bytes]:
    """Return the envelopes in a document `possessions`, which is a canonical JSON array."""
    return [encode_canonical(proof) for proof in parse_list(parse_canonical(data), "possessions")]


def join_proofs(proofs: Iterable[bytes]) -> bytes:
    """Return the document `possessions` that contains these envelopes."""
    return encode_canonical([parse_canonical(proof) for proof in proofs])


def authorise_enrol(state: State, order: Enrol, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of an enrolment."""
    return _refuse_enrolment(state, order)


def authorise_enrol_several(state: State, order: EnrolSeveral, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of all enrolments in the order, and of a key that occurs more than once."""
    reasons = [reason for person in order.people for reason in _refuse_enrolment(state, person)]
    # Names are unique, since they are subjects of the order's statement.
    keys = Counter(person.keyid for person in order.people)
    reasons += [KEY_REPEATED(name=Rejected(person.principal)) for person in order.people if keys[person.keyid] > 1]
    return reasons


def _refuse_enrolment(state: State, person: Enrol | Enrolment) -> Reasons:
    return refuse_newcomer(state, person.principal, person.roles) + refuse_new_key(state, person)


def refuse_newcomer(state: State, name: str, roles: tuple[str, ...]) -> Reasons:
    """Return the refusal reasons of a newcomer's name and roles."""
    reasons = exclusive_roles(Rejected(name), roles)
    if name in state.principals:
        reasons.append(NAME_TAKEN(f"principal:{name}"))
    return reasons + refuse_service_name(name) + _refuse_owned_units(state, Rejected(name), roles)


def refuse_service_name(name: str) -> Reasons:
    """Return the refusal reason of a name that is reserved for the service itself."""
    return [NAME_OF_SERVICE(f"principal:{name}")] if name == SERVICE else []


def authorise_grant(state: State, order: Grant, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a grant."""
    reasons = _refuse_owned_units(state, Rejected(order.principal), (order.role,))
    principal = state.principals.get(order.principal)
    if principal is None or principal.revoked is not None:
        return [*reasons, *require_enrolled(state, order.principal)]
    if order.role in principal.roles:
        reasons.append(ROLE_HELD(f"principal:{order.principal}", role=order.role))
    return reasons + exclusive_roles(principal.name, (*principal.roles, order.role))


def authorise_remove_role(state: State, order: RemoveRole, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the removal of a role. A principal's only role cannot be removed."""
    principal = state.principals.get(order.principal)
    if principal is None or principal.revoked is not None:
        return require_enrolled(state, order.principal)
    subject = f"principal:{order.principal}"
    if order.role not in principal.roles:
        return [ROLE_NOT_HELD(subject, role=Rejected(order.role, recorded=order.role.partition(":")[0]))]
    return [LAST_ROLE(subject, role=order.role)] if len(principal.roles) == 1 else []


def _refuse_owned_units(state: State, name: Rejected, roles: tuple[str, ...]) -> Reasons:
    reasons = []
    for role in roles:
        kind, _, unit = role.partition(":")
        if kind == "release-owner" and not is_unit(state, unit):
            reasons.append(OWNED_UNIT_UNKNOWN(name=name, unit=Rejected(unit)))
    return reasons


def authorise_revoke_principal(state: State, order: RevokePrincipal, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a revocation."""
    return require_enrolled(state, order.principal)


def make_enrolment_changes(
    case: Case, name: str, printed_name: str | None, roles: tuple[str, ...], spki: str, keyid: str
) -> Changes:
    """Return the changes that add a principal and its key to the state.

    `printed_name` is the commitment to the person's full name, or None for administrators of the log's first entry.
    `spki` is the public key as SubjectPublicKeyInfo (DER, base64).
    """
    index = case.entry.index
    return [
        (
            case.state.principals,
            name,
            Principal(name=name, printed_name=printed_name, roles=roles, keyid=keyid, enrolled=index),
        ),
        (case.state.keys, keyid, make_key_row(case, name, spki, keyid)),
    ]


def apply_enrolment(case: Case) -> Changes:
    """Apply the enrolment of one person or unit."""
    order = case.order(Enrol)
    return make_enrolment_changes(case, order.principal, order.printed_name, order.roles, order.key, order.keyid)


def apply_enrolments(case: Case) -> Changes:
    """Apply the enrolment of several people and units."""
    return [
        change
        for person in case.order(EnrolSeveral).people
        for change in make_enrolment_changes(
            case, person.principal, person.printed_name, person.roles, person.key, person.keyid
        )
    ]


def apply_grant(case: Case) -> Changes:
    """Apply a grant."""
    grant = case.order(Grant)
    return _change_roles(case, grant.principal, lambda roles: (*roles, grant.role))


def apply_role_removal(case: Case) -> Changes:
    """Apply the removal of a role. The person's decisions in that role are invalid until they get it again."""
    order = case.order(RemoveRole)
    return _change_roles(case, order.principal, lambda roles: tuple(role for role in roles if role != order.role))


def _change_roles(case: Case, name: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Changes:
    principal = case.state.principals.get(name)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a valid one, got {name}")
    changed = principal.model_copy(update={"roles": change(principal.roles)})
    return [(case.state.principals, name, changed)]


def apply_principal_revocation(case: Case) -> Changes:
    """Revoke a person or unit with all keys. The name and the keys cannot be enrolled again."""
    order = case.order(RevokePrincipal)
    state, index = case.state, case.entry.index
    principal = state.principals.get(order.principal)
    if principal is None:
        raise Denied(f"entry {index}: principal: expected a valid one, got {order.principal}")
    updated = principal.model_copy(update={"revoked": index, "revoked_at": case.entry.time})
    changes: Changes = [(state.principals, principal.name, updated)]
    for key in state.keys.values():
        if key.principal == principal.name and key.revoked is None:
            changes.append((state.keys, key.keyid, key.model_copy(update={"revoked": index})))
    return changes


def _describe_newcomer(state: State, order: Enrol, signer: Principal) -> PrincipalEntity:
    return PrincipalEntity(id=order.principal, name=order.principal, roles=())


_NINA: dict[str, Any] = {"principal": "nina", "roles": ("operator", "release-owner:legal"), **NEW_KEY}


ACTIONS = (
    Action(
        Enrol,
        title="Add a person or unit",
        complete=complete_key,
        authorise=authorise_enrol,
        signers=("administrator",),
        meaning="The key becomes this person's, for ever, with these roles. Compare its short code with the person "
        "first.",
        event=PrincipalEnrolled,
        apply=apply_enrolment,
        two_administrators=True,
        attachment=POSSESSION,
        facts=ActionFacts(PrincipalEntity, _describe_newcomer, ("roles",)),
        example_values={"signer": "anna", **_NINA},
    ),
    Action(
        EnrolSeveral,
        title="Add several people and units",
        has_form=False,
        authorise=authorise_enrol_several,
        signers=("administrator",),
        meaning="Each key becomes its person's, for ever, with these roles. Compare each short code with the person "
        "first.",
        event=PrincipalsEnrolled,
        apply=apply_enrolments,
        two_administrators=True,
        attachment=Attachment("possessions", check_possessions),
        example_values={"signer": "anna", "people": (make_example(Enrolment, **_NINA),)},
    ),
    Action(
        Grant,
        title="Give a role",
        authorise=authorise_grant,
        signers=("administrator",),
        meaning="This person gets one role more.",
        event=RoleGranted,
        apply=apply_grant,
        two_administrators=True,
        facts=ActionFacts(PrincipalEntity, "principal", ("role",)),
        example_values={"signer": "anna", "role": "reviewer:safety"},
    ),
    Action(
        RemoveRole,
        title="Remove a role",
        authorise=authorise_remove_role,
        signers=("administrator",),
        meaning="This person loses the role at once and keeps the others. What they approved, activated or delegated "
        "in this role is invalid while they do not have it.",
        event=RoleRemoved,
        apply=apply_role_removal,
        two_administrators=True,
        recheck_slots=True,
        facts=ActionFacts(PrincipalEntity, "principal", ("role",)),
        example_values={"signer": "anna", "principal": "vera", "role": "reviewer:safety"},
    ),
    Action(
        RevokePrincipal,
        title="Revoke a person or unit",
        authorise=authorise_revoke_principal,
        signers=("administrator",),
        meaning="This person or unit, all of its keys and its sessions end at once. This cannot be undone. The name "
        "and the keys cannot be used again. With fewer than two administrators, enrolling needs recovery keys.",
        event=PrincipalRevoked,
        apply=apply_principal_revocation,
        recheck_slots=True,
        facts=ActionFacts(PrincipalEntity, "principal"),
        example_values={"signer": "anna"},
    ),
)
