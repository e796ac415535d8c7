"""Roles: who has which, and which exclude each other."""

from __future__ import annotations

from appliance.domain.core.names import EXCLUSIVE_ROLES, PARTED_ROLES
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State

Reasons = list[str]
"""Reasons against something; none means allowed."""


def is_unit(state: State, name: str) -> bool:
    unit = state.principals.get(name)
    return unit is not None and unit.has("unit")


def is_person(state: State, name: str) -> bool:
    """Whether it was enrolled as anything but a unit; it may be revoked since."""
    principal = state.principals.get(name)
    return principal is not None and "unit" not in principal.roles


def needs(signer: Principal, *roles: str) -> Reasons:
    if any(signer.has(role) for role in roles):
        return []
    return [f"role: expected {signer.name} to be {' or '.join(roles)}, got {', '.join(signer.roles)}"]


def stands(state: State, name: str) -> Reasons:
    principal = state.principals.get(name)
    if principal is None or principal.revoked is not None:
        return [f"principal: expected a standing one, got {name}"]
    return []


def exclusive_roles(roles: tuple[str, ...]) -> Reasons:
    """Separation of duties at enrolment: administrators, auditors and units hold no second role, and no operator is a
    validator."""
    reasons = []
    if len(set(roles)) > 1:
        reasons = [
            f"separation of duties: expected the role {role} to stand alone, got {', '.join(roles)}"
            for role in EXCLUSIVE_ROLES
            if role in roles
        ]
    if set(PARTED_ROLES) <= set(roles):
        parted = " or ".join(PARTED_ROLES)
        reasons.append(f"separation of duties: expected {parted}, not both, got {', '.join(roles)}")
    return reasons
