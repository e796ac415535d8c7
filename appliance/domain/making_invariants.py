"""The invariants of making and answering: imports, runs, reviews, releases, and taking away."""

from __future__ import annotations

from collections.abc import Callable

from appliance.domain import approval, custody
from appliance.domain.approval import Reasons, base_is, is_unit
from appliance.domain.baselines import incomparable
from appliance.domain.governing_invariants import needs
from appliance.domain.names import Time, add_seconds, split_version
from appliance.domain.orders import (
    Activate,
    Cancel,
    CancelImport,
    ExportAdapter,
    ImportBase,
    ImportDataset,
    Order,
    Replay,
    Resume,
    Review,
    RevokeAdapter,
    RevokeBase,
    RevokeDataset,
    RollBack,
    Train,
)
from appliance.domain.recipe import untrainable
from appliance.domain.records import Adapter, Principal, checkpoint_key, release_key
from appliance.domain.state import State


def _import_base(state: State, order: ImportBase, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "operator")
    if order.base in state.bases:
        reasons.append(f"base: expected a name never used here, got {order.base}")
    if any(i.status == "requested" and i.subject == f"base:{order.base}" for i in state.imports.values()):
        reasons.append(f"base: expected no import of {order.base} under way, got one")
    return reasons


def _import_dataset(state: State, order: ImportDataset, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "operator") + base_is(state, order.base, order.base_digest)


def _train(state: State, order: Train, signer: Principal, now: Time) -> Reasons:
    recipe = order.recipe
    reasons = needs(signer, "operator") + base_is(state, recipe.base, order.base_digest)
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
    reasons = [] if signer.name == run.ordered_by else needs(signer, "administrator")
    if run.status not in ("queued", "running", "trained"):
        reasons.append(f"run {run.id}: expected one that is queued or running, got one that is {run.status}")
    return reasons


def _cancel_import(state: State, order: CancelImport, signer: Principal, now: Time) -> Reasons:
    record = state.imports.get(order.order)
    if record is None:
        return [f"import: expected one that was ordered, got {order.order}"]
    reasons = [] if signer.name == record.signer else needs(signer, "administrator")
    if record.status != "requested":
        reasons.append(f"import of {record.subject}: expected one under way, got one that is {record.status}")
    return reasons


def _resume(state: State, order: Resume, signer: Principal, now: Time) -> Reasons:
    """Who ordered the run answers for it still; an administrator may where they are gone."""
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = needs(signer, "operator" if signer.name == run.ordered_by else "administrator")
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
    reasons = needs(signer, "auditor")
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
    reasons = needs(signer, f"reviewer:{order.field}") + approval.duties(adapter, signer.name)
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
    reasons = needs(signer, f"release-owner:{order.unit}")
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
    reasons = needs(signer, f"release-owner:{order.unit}")
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
    reasons = [] if allowed else needs(signer, "administrator", "reviewer", "release-owner")
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
    return needs(signer, "administrator", "reviewer")


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


RULES: dict[type[Order], Callable[..., Reasons]] = {
    ImportBase: _import_base,
    ImportDataset: _import_dataset,
    Train: _train,
    Cancel: _cancel,
    CancelImport: _cancel_import,
    Resume: _resume,
    Replay: _replay,
    Review: _review,
    Activate: _activate,
    RollBack: _roll_back,
    RevokeAdapter: _revoke_adapter,
    ExportAdapter: _export,
    RevokeBase: _revoke_base,
    RevokeDataset: _revoke_dataset,
}
