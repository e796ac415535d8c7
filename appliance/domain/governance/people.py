"""People: enrolled, given roles, revoked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed, Ordered
from appliance.domain.core.names import SERVICE, Commitment, Identifier, Role, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, exclusive_roles, is_unit, needs, stands
from appliance.domain.core.state import State
from appliance.domain.core.verb import Attachment, Verb
from appliance.domain.governance.keys import (
    POSSESSION,
    NewKey,
    ProvedKey,
    check_new_key,
    check_possession,
    new_key,
)
from appliance.errors import Denied
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import parse_list

MOST_PEOPLE = 24
"""In one order: its entry is filed under each of them, and an entry has 32 subjects at most."""


class Enroll(NewKey):
    verb = "enroll"
    printed_name: Commitment
    roles: tuple[Role, ...] = Field(min_length=1, max_length=8)


class Enrolment(ProvedKey):
    """One person or unit of an order that enrols several."""

    printed_name: Commitment
    roles: tuple[Role, ...] = Field(min_length=1, max_length=8)


class EnrollSeveral(Order):
    """People and units who come in together, or not at all."""

    verb = "enroll-several"
    people: tuple[Enrolment, ...] = Field(min_length=1, max_length=MOST_PEOPLE)

    def subjects(self) -> Subjects:
        return tuple((f"principal:{person.principal}", person.keyid) for person in self.people)

    def commitments(self) -> dict[str, str]:
        names = {f"printed_name.{person.principal}": person.printed_name for person in self.people}
        return super().commitments() | names

    def each(self) -> tuple[Enroll, ...]:
        """The order that would enrol each of them alone."""
        header = {name: getattr(self, name) for name in Order.model_fields}
        return tuple(Enroll(**header, **person.__dict__) for person in self.people)


class Grant(Order):
    verb = "grant"
    principal: Identifier
    role: Role

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class RevokePrincipal(Order):
    verb = "revoke-principal"
    principal: Identifier

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class PrincipalEnrolled(Endorsed):
    type = "principal.enrolled"
    documents = ("order", "possession")


class PrincipalsEnrolled(Endorsed):
    """`possessions` is an array of the proofs, in the order of the order's `people`."""

    type = "principals.enrolled"
    documents = ("order", "possessions")


class RoleGranted(Endorsed):
    type = "principal.granted"


class PrincipalRevoked(Ordered):
    type = "principal.revoked"


def check_possessions(case: Case, order: EnrollSeveral, data: bytes) -> None:
    """Each key proved itself, under its own name; one proof for each person and no other."""
    proofs = split_proofs(data)
    case.require(len(proofs) == len(order.people), "possessions", f"{len(order.people)} proofs", len(proofs))
    for person, proof in zip(order.people, proofs, strict=True):
        check_possession(case, person, proof)


def split_proofs(data: bytes) -> list[bytes]:
    """The envelopes of a document `possessions`, a canonical array."""
    return [encode_canonical(proof) for proof in parse_list(parse_canonical(data), "possessions")]


def join_proofs(proofs: Iterable[bytes]) -> bytes:
    """The document `possessions` of these envelopes."""
    return encode_canonical([parse_canonical(proof) for proof in proofs])


def may_enroll(state: State, order: Enroll, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + _against_newcomer(state, order)


def may_enroll_several(state: State, order: EnrollSeveral, signer: Principal, now: Time) -> Reasons:
    """The reasons against each of them, and a key that several would have."""
    reasons = needs(signer, "administrator")
    for person in order.people:
        reasons += [f"{person.principal}: {reason}" for reason in _against_newcomer(state, person)]
    # A name is there once, since it is a subject of the order's statement.
    keys = Counter(person.keyid for person in order.people)
    reasons += [f"key: expected each once in the order, got {key} more than once" for key in keys if keys[key] > 1]
    return reasons


def _against_newcomer(state: State, person: Enroll | Enrolment) -> Reasons:
    reasons = exclusive_roles(person.roles)
    if person.principal in state.principals:
        reasons.append(f"principal: expected a name never used here, got {person.principal}")
    return reasons + unlike_service(person.principal) + check_new_key(state, person) + _units_of(state, person.roles)


def unlike_service(name: str) -> Reasons:
    """No person's or unit's entries read as the appliance's own."""
    return [f"principal: expected a name other than the appliance's own actor, got {name}"] if name == SERVICE else []


def may_grant(state: State, order: Grant, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator") + _units_of(state, (order.role,))
    principal = state.principals.get(order.principal)
    if principal is None or principal.revoked is not None:
        return [*reasons, f"principal: expected a standing one, got {order.principal}"]
    if order.role in principal.roles:
        reasons.append(f"role: expected one that {order.principal} lacks, got {order.role}")
    return reasons + exclusive_roles((*principal.roles, order.role))


def _units_of(state: State, roles: tuple[str, ...]) -> Reasons:
    reasons = []
    for role in roles:
        kind, _, unit = role.partition(":")
        if kind == "release-owner" and not is_unit(state, unit):
            reasons.append(f"role: expected the release owner of an enrolled unit, got {role}")
    return reasons


def may_revoke_principal(state: State, order: RevokePrincipal, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + stands(state, order.principal)


def enrolled_person(
    case: Case, name: str, printed_name: str | None, roles: tuple[str, ...], spki: str, keyid: str
) -> Changes:
    index = case.entry.index
    return [
        (
            case.state.principals,
            name,
            Principal(name=name, printed_name=printed_name, roles=roles, keyid=keyid, enrolled=index),
        ),
        (case.state.keys, keyid, new_key(case, name, spki, keyid)),
    ]


def enrolled(case: Case) -> Changes:
    order = case.order(Enroll)
    return enrolled_person(case, order.principal, order.printed_name, order.roles, order.key, order.keyid)


def several_enrolled(case: Case) -> Changes:
    return [
        change
        for one in case.order(EnrollSeveral).people
        for change in enrolled_person(case, one.principal, one.printed_name, one.roles, one.key, one.keyid)
    ]


def granted(case: Case) -> Changes:
    grant = case.order(Grant)
    principal = case.state.principals.get(grant.principal)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a standing one, got {grant.principal}")
    changed = principal.model_copy(update={"roles": (*principal.roles, grant.role)})
    return [(case.state.principals, grant.principal, changed)]


def revoked(case: Case) -> Changes:
    """Taking away needs one administrator; the name and the key stay taken for ever."""
    order = case.order(RevokePrincipal)
    state, index = case.state, case.entry.index
    principal = state.principals.get(order.principal)
    if principal is None:
        raise Denied(f"entry {index}: principal: expected a standing one, got {order.principal}")
    gone = principal.model_copy(update={"revoked": index, "revoked_at": case.entry.time})
    changes: Changes = [(state.principals, principal.name, gone)]
    for key in state.keys.values():
        if key.principal == principal.name and key.revoked is None:
            changes.append((state.keys, key.keyid, key.model_copy(update={"revoked": index})))
    return changes


VERBS = (
    Verb(
        Enroll,
        may=may_enroll,
        signers=("administrator",),
        meaning="The key becomes this person's, for ever, with these roles. Compare the key id with the person first.",
        event=PrincipalEnrolled,
        apply=enrolled,
        two_administrators=True,
        attachment=POSSESSION,
    ),
    Verb(
        EnrollSeveral,
        may=may_enroll_several,
        signers=("administrator",),
        meaning="Each key becomes its person's, for ever, with these roles. Compare each key id with the person first.",
        event=PrincipalsEnrolled,
        apply=several_enrolled,
        two_administrators=True,
        attachment=Attachment("possessions", check_possessions),
    ),
    Verb(
        Grant,
        may=may_grant,
        signers=("administrator",),
        meaning="This person gets one role more.",
        event=RoleGranted,
        apply=granted,
        two_administrators=True,
    ),
    Verb(
        RevokePrincipal,
        may=may_revoke_principal,
        signers=("administrator",),
        meaning="This person and their keys count for nothing from now on. The name and the keys stay taken.",
        event=PrincipalRevoked,
        apply=revoked,
        changes_answers=True,
    ),
)
