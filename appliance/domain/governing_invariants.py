"""The invariants of power and of keeping: people, roles, keys, policies, texts and holds."""

from __future__ import annotations

import base64
from collections.abc import Callable

from appliance.domain import custody
from appliance.domain.approval import Reasons, is_unit
from appliance.domain.names import EXCLUSIVE_ROLES, SERVICE, Time, add_seconds
from appliance.domain.orders import (
    AdoptPolicy,
    Endorse,
    Enroll,
    Erase,
    Grant,
    LiftHold,
    NewKey,
    Order,
    PlaceHold,
    ReplaceKey,
    RevokeKey,
    RevokePrincipal,
    RevokeTokens,
    RotateKey,
    RotateLogKey,
)
from appliance.domain.records import Principal, token_key
from appliance.domain.signatures import heirs
from appliance.domain.state import State
from appliance.errors import ApplianceError
from appliance.formats.keys import keyid_of


def needs(signer: Principal, *roles: str) -> Reasons:
    if any(signer.has(role) for role in roles):
        return []
    return [f"role: expected {signer.name} to be {' or '.join(roles)}, got {', '.join(signer.roles)}"]


def _enroll(state: State, order: Enroll, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator") + exclusive_roles(order.roles)
    if order.principal in state.principals:
        reasons.append(f"principal: expected a name never used here, got {order.principal}")
    return reasons + unlike_service(order.principal) + _new_key(state, order) + _units_of(state, order.roles)


def unlike_service(name: str) -> Reasons:
    """No person's or unit's entries read as the appliance's own."""
    return [f"principal: expected another name than the appliance's own actor, got {name}"] if name == SERVICE else []


def _new_key(state: State, order: NewKey) -> Reasons:
    reasons = []
    held = state.keys.get(order.keyid)
    if held is not None:
        reasons.append(f"key: expected one never enrolled here, got {order.keyid}, which belongs to {held.principal}")
    try:
        keyid = keyid_of(base64.b64decode(order.key))
    except ApplianceError as error:
        keyid = f"no public key ({error.message})"
    if keyid != order.keyid:
        reasons.append(f"key: expected the key id {order.keyid}, got {keyid}")
    return reasons


def _replace_key(state: State, order: ReplaceKey, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + _new_key(state, order) + _standing(state, order.principal)


def _rotate_key(state: State, order: RotateKey, signer: Principal, now: Time) -> Reasons:
    reasons = _new_key(state, order) + overlap(state, order.old_until, now)
    if order.principal != signer.name:
        reasons.append(f"principal: expected the signer's own name {signer.name}, got {order.principal}")
    return reasons


def _revoke_key(state: State, order: RevokeKey, signer: Principal, now: Time) -> Reasons:
    reasons = [] if signer.name == order.principal else needs(signer, "administrator")
    key = state.keys.get(order.keyid)
    if key is None or key.principal != order.principal:
        return [*reasons, f"key: expected one of {order.principal}, got {order.keyid}"]
    start = key.distrusted
    # Once more, where that takes back more: a thief may have revoked it himself, with a key that he rotated to.
    if start is not None and (order.since is None or order.since >= start) and not heirs(state, key.keyid, start):
        reasons.append(f"key {order.keyid}: expected one that counts, got one revoked from entry {start} on")
    if order.since is not None and not key.enrolled < order.since <= state.size:
        reasons.append(f"since: expected an entry in {key.enrolled + 1} to {state.size}, got {order.since}")
    return reasons


def _standing(state: State, name: str) -> Reasons:
    principal = state.principals.get(name)
    if principal is None or principal.revoked is not None:
        return [f"principal: expected a standing one, got {name}"]
    return []


def _grant(state: State, order: Grant, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator") + _units_of(state, (order.role,))
    principal = state.principals.get(order.principal)
    if principal is None or principal.revoked is not None:
        return [*reasons, f"principal: expected a standing one, got {order.principal}"]
    if order.role in principal.roles:
        reasons.append(f"role: expected one that {order.principal} lacks, got {order.role}")
    return reasons + exclusive_roles((*principal.roles, order.role))


def exclusive_roles(roles: tuple[str, ...]) -> Reasons:
    """Separation of duties at enrolment: administrators, auditors and units hold no second role."""
    if len(set(roles)) > 1:
        return [
            f"separation of duties: expected the role {role} to stand alone, got {', '.join(roles)}"
            for role in EXCLUSIVE_ROLES
            if role in roles
        ]
    return []


def _units_of(state: State, roles: tuple[str, ...]) -> Reasons:
    reasons = []
    for role in roles:
        kind, _, unit = role.partition(":")
        if kind == "release-owner" and not is_unit(state, unit):
            reasons.append(f"role: expected the release owner of an enrolled unit, got {role}")
    return reasons


def _revoke_principal(state: State, order: RevokePrincipal, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + _standing(state, order.principal)


def _revoke_tokens(state: State, order: RevokeTokens, signer: Principal, now: Time) -> Reasons:
    """The unit itself, who owns its releases, or an administrator: whoever may take away does."""
    reasons = [] if signer.name == order.unit else needs(signer, "administrator", f"release-owner:{order.unit}")
    unit = state.principals.get(order.unit)
    if unit is None or not unit.has("unit"):
        return [*reasons, f"unit: expected an enrolled one, got {order.unit}"]
    if (order.token is None) == (order.issued_before is None):
        reasons.append("tokens: expected one token or a time before which they were issued, got both or neither")
    revoked = None if order.token is None else state.tokens.get(token_key(order.unit, order.token))
    if revoked is not None:
        reasons.append(f"token {order.token}: expected one that counts, got one revoked by entry {revoked.index}")
    if order.issued_before is not None:
        latest = add_seconds(now, state.parameters.clock_skew_s)
        if not (unit.tokens_since or "") < order.issued_before <= latest:
            since = unit.tokens_since or "the beginning"
            reasons.append(f"issued before: expected a time after {since} and by {latest}, got {order.issued_before}")
    return reasons


def _adopt_policy(state: State, order: AdoptPolicy, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator")


def _endorse(state: State, order: Endorse, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator")
    pending = state.pending.get(order.order)
    if pending is None:
        return [*reasons, f"order: expected one that waits for a second administrator, got {order.order}"]
    if pending.signer == order.signer:
        reasons.append(f"separation of duties: expected another administrator than {pending.signer}, who ordered it")
    if pending.expires_at <= now:
        reasons.append(f"order: expected one that stands at {now}, got one that expired at {pending.expires_at}")
    return reasons


def _rotate_log_key(state: State, order: RotateLogKey, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + custody.log_key(state, order.log_key) + overlap(state, order.old_until, now)


def overlap(state: State, until: Time, now: Time) -> Reasons:
    limit = add_seconds(now, state.parameters.key_overlap_s)
    return [f"old keys: expected them to stand until {limit} at most, got {until}"] if until > limit else []


def _erase(state: State, order: Erase, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + custody.kept(state, order.commitment, now)


def _place_hold(state: State, order: PlaceHold, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator", "auditor")
    if (hold := state.holds.get(order.subject)) is not None:
        reasons.append(f"hold: expected none on {order.subject}, got that of entry {hold.index}")
    if not custody.is_known(state, order.subject):
        kinds = "principal, unit, base, dataset, adapter, run or task"
        reasons.append(f"hold: expected a {kinds} that the log knows, got {order.subject}")
    return reasons


def _lift_hold(state: State, order: LiftHold, signer: Principal, now: Time) -> Reasons:
    missing = [] if order.subject in state.holds else [f"hold: expected one on {order.subject}, got none"]
    return needs(signer, "administrator") + missing


RULES: dict[type[Order], Callable[..., Reasons]] = {
    Enroll: _enroll,
    Grant: _grant,
    RevokePrincipal: _revoke_principal,
    AdoptPolicy: _adopt_policy,
    Endorse: _endorse,
    ReplaceKey: _replace_key,
    RotateKey: _rotate_key,
    RevokeKey: _revoke_key,
    RotateLogKey: _rotate_log_key,
    Erase: _erase,
    PlaceHold: _place_hold,
    LiftHold: _lift_hold,
    RevokeTokens: _revoke_tokens,
}
