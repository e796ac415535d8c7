"""Roles: who has which, and which exclude each other."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.domain.core.names import EXCLUSIVE_ROLES, PARTED_ROLES
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.errors import Refusal, RefusalCode, Rejected

Reasons = list[Refusal]
"""Refusal reasons; an empty list allows."""

ROLE_MISSING = RefusalCode(
    "role-missing",
    "rule",
    "{id} is {roles}. This action needs {needed}.",
    "Ask somebody who has the role, or have two administrators grant it.",
)
NOT_ENROLLED = RefusalCode(
    "not-enrolled", "state", "{name} is not enrolled or has been revoked.", "Name a person or unit that is enrolled."
)
REVOKED = RefusalCode(
    "principal-revoked", "state", "{id} was revoked by entry {entry}.", "Name another person or unit."
)
UNIT_UNKNOWN = RefusalCode(
    "unit-unknown",
    "state",
    "{name} is not an enrolled unit.",
    "Name a unit that is enrolled, or have two administrators enrol it.",
)
ROLE_EXCLUSIVE = RefusalCode(
    "role-exclusive",
    "rule",
    "A principal with the role {role} can have no other role. The roles of {name} would be {roles}.",
    "Give the other role to another person.",
)
ROLES_APART = RefusalCode(
    "roles-apart",
    "rule",
    "One person cannot have the roles {parted}. The roles of {name} would be {roles}.",
    "Give one of the roles to another person.",
)


def is_unit(state: State, name: str) -> bool:
    """Return True if the name is that of a unit that is not revoked."""
    unit = state.principals.get(name)
    return unit is not None and unit.has("unit")


def is_person(state: State, name: str) -> bool:
    """Return True if the name was enrolled as anything but a unit. The person may have been revoked since."""
    principal = state.principals.get(name)
    return principal is not None and "unit" not in principal.roles


def refuse_without_role(signer: Principal, *roles: str) -> Reasons:
    """Return the refusal reason of a signer who has none of the roles.

    A role is compared whole: `reviewer:privacy` fits that role only, and `reviewer` fits no role.
    """
    if any(signer.has(role) for role in roles):
        return []
    return [refuse_role(signer.name, signer.roles, roles)]


def refuse_role(name: str, roles: Sequence[str], needed: Sequence[str], kinds: Sequence[str] = ()) -> Refusal:
    """Return the refusal of a principal with these roles who has none of the needed ones.

    The log records the kinds of the needed ones, since the order can name a unit, a review function or a person that is
    not known. They are `kinds`, or follow from the roles.
    """
    recorded = " or ".join(role.partition(":")[0] for role in kinds or needed)
    held = tuple(roles) or "without a role"
    return ROLE_MISSING(f"principal:{name}", roles=held, needed=Rejected(" or ".join(needed), recorded=recorded))


def require_unit(state: State, name: str) -> Reasons:
    """Return the refusal reason of a name that is not that of an enrolled unit."""
    return [] if is_unit(state, name) else [UNIT_UNKNOWN(name=Rejected(name))]


def require_enrolled(state: State, name: str) -> Reasons:
    """Return the refusal reason of a name that is not enrolled or was revoked."""
    principal = state.principals.get(name)
    if principal is None:
        return [NOT_ENROLLED(name=Rejected(name))]
    return [] if principal.revoked is None else [REVOKED(f"principal:{name}", entry=principal.revoked)]


def exclusive_roles(name: str, roles: tuple[str, ...]) -> Reasons:
    """Return the refusal reasons of a set of roles that violates the separation of duties at enrolment.

    Administrators, auditors and units hold no second role. No operator is a validator. Callers pass a `name` that is
    not enrolled as `Rejected`, so that the log records its length.
    """
    reasons = []
    kinds = Rejected(", ".join(roles), recorded=", ".join(role.partition(":")[0] for role in roles))
    if len(set(roles)) > 1:
        reasons = [ROLE_EXCLUSIVE(name=name, role=role, roles=kinds) for role in EXCLUSIVE_ROLES if role in roles]
    if set(PARTED_ROLES) <= set(roles):
        reasons.append(ROLES_APART(name=name, parted=" and ".join(PARTED_ROLES), roles=kinds))
    return reasons
