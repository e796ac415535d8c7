"""The invariants: who may do what. Each rule returns its reasons against; no reason means allowed.

Site policies (access) may only tighten what stands here. `now` is the entry's time: the later of the clock and the last
entry.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeVar

from appliance.domain import approval, custody
from appliance.domain.approval import Reasons, base_is, is_unit
from appliance.domain.baselines import incomparable
from appliance.domain.names import EXCLUSIVE_ROLES, SERVICE, Time, add_seconds, split_version
from appliance.domain.orders import (
    Activate,
    AdoptPolicy,
    Cancel,
    Endorse,
    Enroll,
    Erase,
    ExportAdapter,
    Grant,
    ImportBase,
    ImportDataset,
    LiftHold,
    NewKey,
    Order,
    PlaceHold,
    ReplaceKey,
    Replay,
    Resume,
    Review,
    RevokeAdapter,
    RevokeBase,
    RevokeDataset,
    RevokeKey,
    RevokePrincipal,
    RevokeTokens,
    RollBack,
    RotateKey,
    RotateLogKey,
    Train,
)
from appliance.domain.recipe import untrainable
from appliance.domain.signatures import heirs
from appliance.domain.state import Adapter, Principal, State, checkpoint_key, release_key, token_key
from appliance.errors import ApplianceError
from appliance.formats.keys import keyid_of

O = TypeVar("O", bound=Order)  # noqa: E741


def reasons_against(state: State, order: Order, now: Time) -> Reasons:
    """Everything that stands against an authentic order; empty when it is allowed."""
    signer = state.principals.get(order.signer)
    if signer is None or signer.revoked is not None:
        return [f"signer: expected a standing principal, got {order.signer}"]
    return _RULES[type(order)](state, order, signer, now)


def _needs(signer: Principal, *roles: str) -> Reasons:
    if any(signer.has(role) for role in roles):
        return []
    return [f"role: expected {signer.name} to be {' or '.join(roles)}, got {', '.join(signer.roles)}"]


def _enroll(state: State, order: Enroll, signer: Principal, now: Time) -> Reasons:
    reasons = _needs(signer, "administrator") + exclusive_roles(order.roles)
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
    except (ApplianceError, ValueError):
        keyid = "no public key"
    if keyid != order.keyid:
        reasons.append(f"key: expected the key id {order.keyid}, got {keyid}")
    return reasons


def _replace_key(state: State, order: ReplaceKey, signer: Principal, now: Time) -> Reasons:
    return _needs(signer, "administrator") + _new_key(state, order) + _standing(state, order.principal)


def _rotate_key(state: State, order: RotateKey, signer: Principal, now: Time) -> Reasons:
    reasons = _new_key(state, order) + overlap(state, order.old_until, now)
    if order.principal != signer.name:
        reasons.append(f"principal: expected the signer's own name {signer.name}, got {order.principal}")
    return reasons


def _revoke_key(state: State, order: RevokeKey, signer: Principal, now: Time) -> Reasons:
    reasons = [] if signer.name == order.principal else _needs(signer, "administrator")
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
    reasons = _needs(signer, "administrator") + _units_of(state, (order.role,))
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
    return _needs(signer, "administrator") + _standing(state, order.principal)


def _revoke_tokens(state: State, order: RevokeTokens, signer: Principal, now: Time) -> Reasons:
    """The unit itself, who owns its releases, or an administrator: whoever may take away does."""
    reasons = [] if signer.name == order.unit else _needs(signer, "administrator", f"release-owner:{order.unit}")
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
    return _needs(signer, "administrator")


def _endorse(state: State, order: Endorse, signer: Principal, now: Time) -> Reasons:
    reasons = _needs(signer, "administrator")
    pending = state.pending.get(order.order)
    if pending is None:
        return [*reasons, f"order: expected one that waits for a second administrator, got {order.order}"]
    if pending.signer == order.signer:
        reasons.append(f"separation of duties: expected another administrator than {pending.signer}, who ordered it")
    if pending.expires_at <= now:
        reasons.append(f"order: expected one that stands at {now}, got one that expired at {pending.expires_at}")
    return reasons


def _rotate_log_key(state: State, order: RotateLogKey, signer: Principal, now: Time) -> Reasons:
    return (
        _needs(signer, "administrator") + custody.log_key(state, order.log_key) + overlap(state, order.old_until, now)
    )


def overlap(state: State, until: Time, now: Time) -> Reasons:
    limit = add_seconds(now, state.parameters.key_overlap_s)
    return [f"old keys: expected them to stand until {limit} at most, got {until}"] if until > limit else []


def _erase(state: State, order: Erase, signer: Principal, now: Time) -> Reasons:
    return _needs(signer, "administrator") + custody.kept(state, order.commitment, now)


def _place_hold(state: State, order: PlaceHold, signer: Principal, now: Time) -> Reasons:
    reasons = _needs(signer, "administrator", "auditor")
    if (hold := state.holds.get(order.subject)) is not None:
        reasons.append(f"hold: expected none on {order.subject}, got that of entry {hold.index}")
    if not custody.is_known(state, order.subject):
        kinds = "principal, unit, base, dataset, adapter, run or task"
        reasons.append(f"hold: expected a {kinds} that the log knows, got {order.subject}")
    return reasons


def _lift_hold(state: State, order: LiftHold, signer: Principal, now: Time) -> Reasons:
    missing = [] if order.subject in state.holds else [f"hold: expected one on {order.subject}, got none"]
    return _needs(signer, "administrator") + missing


def _import_base(state: State, order: ImportBase, signer: Principal, now: Time) -> Reasons:
    reasons = _needs(signer, "operator")
    if order.base in state.bases:
        reasons.append(f"base: expected a name never used here, got {order.base}")
    if any(i.status == "requested" and i.subject == f"base:{order.base}" for i in state.imports.values()):
        reasons.append(f"base: expected no import of {order.base} under way, got one")
    return reasons


def _import_dataset(state: State, order: ImportDataset, signer: Principal, now: Time) -> Reasons:
    return _needs(signer, "operator") + base_is(state, order.base, order.base_digest)


def _train(state: State, order: Train, signer: Principal, now: Time) -> Reasons:
    recipe = order.recipe
    reasons = _needs(signer, "operator") + base_is(state, recipe.base, order.base_digest)
    dataset = state.datasets.get(recipe.dataset)
    if dataset is None:
        return [*reasons, f"dataset: expected an imported one, got {recipe.dataset}"]
    reasons += approval.dataset_stands(state, recipe.dataset)
    if dataset.digest != order.dataset_digest:
        reasons.append(f"dataset {recipe.dataset}: expected {dataset.digest}, got {order.dataset_digest}")
    if dataset.base_digest != order.base_digest:
        reasons.append(f"dataset {recipe.dataset}: expected one rendered for base {recipe.base}, got {dataset.base}")
    base = state.bases.get(recipe.base)
    if base is None:
        return reasons
    # What resolving the recipe would have refused: whoever signed it may not have resolved it.
    facts = dataset.facts
    context, longest, rows = base.facts.get("context_length"), facts.get("max_tokens"), facts.get("train_rows")
    reasons += incomparable(state, recipe, order.base_digest, order.dataset_digest)
    return reasons + untrainable(recipe, context, longest, rows)


def _cancel(state: State, order: Cancel, signer: Principal, now: Time) -> Reasons:
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = [] if signer.name == run.ordered_by else _needs(signer, "administrator")
    if run.status not in ("queued", "running", "trained"):
        reasons.append(f"run {run.id}: expected one that is queued or running, got one that is {run.status}")
    return reasons


def _resume(state: State, order: Resume, signer: Principal, now: Time) -> Reasons:
    """Who ordered the run answers for it still; an administrator may where they are gone."""
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = _needs(signer, "operator" if signer.name == run.ordered_by else "administrator")
    if run.status != "failed":
        reasons.append(f"run {run.id}: expected one that failed, got one that is {run.status}")
    if not run.step:
        reasons.append(f"run {run.id}: expected one that has a training checkpoint, got one that has none")
    return reasons + approval.inputs_stand(state, run)


def _replay(state: State, order: Replay, signer: Principal, now: Time) -> Reasons:
    """On a revoked dataset too: what is trained again proves what was made, and is thrown away."""
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = _needs(signer, "auditor")
    if order.from_step >= order.to_step:
        reasons.append(f"steps: expected a window that goes forward, got {order.from_step} to {order.to_step}")
    for step in (order.from_step, order.to_step):
        if step and checkpoint_key(run.id, step) not in state.training_checkpoints:
            reasons.append(f"step {step}: expected one of {run.id} that has a training checkpoint, got one without")
    return reasons + base_is(state, run.base, run.base_digest)


def _adapter(state: State, order: Review | Activate | RollBack | RevokeAdapter | ExportAdapter) -> Adapter | Reasons:
    adapter = state.adapters.get(order.name)
    if adapter is None:
        return [f"adapter: expected a sealed one, got {order.name}"]
    if adapter.manifest != order.manifest:
        return [f"adapter {order.name}: expected the manifest {adapter.manifest}, got {order.manifest}"]
    return adapter


def _review(state: State, order: Review, signer: Principal, now: Time) -> Reasons:
    adapter = _adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = _needs(signer, f"reviewer:{order.field}") + approval.duties(adapter, signer.name)
    if not is_unit(state, order.unit):
        reasons.append(f"unit: expected an enrolled one, got {order.unit}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    if order.valid_until <= now:
        reasons.append(f"valid until: expected a time after {now}, got {order.valid_until}")
    limit = add_seconds(now, state.parameters.approval_lifetime_s)
    if order.valid_until > limit:
        reasons.append(f"valid until: expected at most {limit}, got {order.valid_until}")
    return reasons


def _activate(state: State, order: Activate | RollBack, signer: Principal, now: Time) -> Reasons:
    adapter = _adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = _needs(signer, f"release-owner:{order.unit}")
    if signer.name == adapter.ordered_by:
        reasons.append(f"separation of duties: expected a release owner who did not order the run, got {signer.name}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    return reasons + approval.inadmissible(state, adapter, order.unit, now)


def _roll_back(state: State, order: RollBack, signer: Principal, now: Time) -> Reasons:
    reasons = _activate(state, order, signer, now)
    release = state.releases.get(release_key(order.unit, order.task))
    earlier = [] if release is None else [a.adapter for a in release.history]
    if release is not None and release.current.adapter == order.name:
        reasons.append(f"adapter: expected an earlier one than today's, got {order.name}")
    elif order.name not in earlier:
        reasons.append(f"adapter: expected one that answered {order.unit}/{order.task} before, got {order.name}")
    return reasons


def _export(state: State, order: ExportAdapter, signer: Principal, now: Time) -> Reasons:
    """Only what answers the unit's task today; no longer than approvals and witnesses stand and policy lets it."""
    adapter = _adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = _needs(signer, f"release-owner:{order.unit}")
    release = state.releases.get(release_key(order.unit, order.task))
    if release is None or release.current.adapter != order.name:
        got = "none" if release is None else release.current.adapter
        return [*reasons, f"release: expected {order.name} to answer {order.unit}/{order.task}, got {got}"]
    reasons += approval.barred(state, release, adapter, now) + custody.unwitnessed(state, now)
    ends = [review.valid_until for review in approval.standing_reviews(state, adapter, order.unit, now)]
    limit = min([add_seconds(now, state.parameters.export_lifetime_s), *ends, *custody.witnessed_until(state)])
    if not now < order.valid_until <= limit:
        reasons.append(f"valid until: expected a time after {now} and not after {limit}, got {order.valid_until}")
    return reasons


def _revoke_adapter(state: State, order: RevokeAdapter, signer: Principal, now: Time) -> Reasons:
    adapter = _adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    units = {review.unit for review in adapter.reviews}
    allowed = [role for role in signer.roles if role == "administrator" or role.startswith("reviewer:")]
    allowed += [role for role in signer.roles if role.partition(":")[2] in units and role.startswith("release-owner:")]
    reasons = [] if allowed else _needs(signer, "administrator", "reviewer", "release-owner")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    return reasons


def _revoke_base(state: State, order: RevokeBase, signer: Principal, now: Time) -> Reasons:
    base = state.bases.get(order.base)
    if base is None:
        return [f"base: expected an imported one, got {order.base}"]
    return _takes_away(signer) + _revocable(f"base {order.base}", base.digest, base.revoked, order.digest)


def _revoke_dataset(state: State, order: RevokeDataset, signer: Principal, now: Time) -> Reasons:
    dataset = state.datasets.get(order.name)
    if dataset is None:
        return [f"dataset: expected an imported one, got {order.name}"]
    return _takes_away(signer) + _revocable(f"dataset {order.name}", dataset.digest, dataset.revoked, order.digest)


def _takes_away(signer: Principal) -> Reasons:
    """Taking away is always easier than giving: one administrator or one reviewer, of any field."""
    if any(role.startswith("reviewer:") for role in signer.roles):
        return []
    return _needs(signer, "administrator", "reviewer")


def _revocable(what: str, digest: str, revoked: int | None, named: str) -> Reasons:
    reasons = [] if named == digest else [f"{what}: expected {digest}, got {named}"]
    return reasons + (
        [] if revoked is None else [f"{what}: expected a standing one, got one revoked by entry {revoked}"]
    )


def next_version(state: State, name: str) -> int:
    """Versions count up per adapter name, over every adapter that was ever sealed."""
    versions = [split_version(key)[1] for key, _ in state.adapters.items() if split_version(key)[0] == name]
    return max(versions, default=0) + 1


def next_dataset_version(state: State, name: str) -> int:
    versions = [split_version(key)[1] for key, _ in state.datasets.items() if split_version(key)[0] == name]
    return max(versions, default=0) + 1


_RULES: dict[type[Order], Callable[..., Reasons]] = {
    Enroll: _enroll,
    Grant: _grant,
    RevokePrincipal: _revoke_principal,
    AdoptPolicy: _adopt_policy,
    Endorse: _endorse,
    ImportBase: _import_base,
    ImportDataset: _import_dataset,
    Train: _train,
    Cancel: _cancel,
    Resume: _resume,
    Replay: _replay,
    Review: _review,
    Activate: _activate,
    RollBack: _roll_back,
    RevokeAdapter: _revoke_adapter,
    ExportAdapter: _export,
    RevokeBase: _revoke_base,
    RevokeDataset: _revoke_dataset,
    ReplaceKey: _replace_key,
    RotateKey: _rotate_key,
    RevokeKey: _revoke_key,
    RotateLogKey: _rotate_log_key,
    Erase: _erase,
    PlaceHold: _place_hold,
    LiftHold: _lift_hold,
    RevokeTokens: _revoke_tokens,
}
