"""Whether a base or a dataset can be used, and who may take it out of use."""

from __future__ import annotations

from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import BoundSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Run
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State


def base_is(state: State, name: str, digest: str) -> Reasons:
    base = state.bases.get(name)
    if base is None:
        return [f"base: expected an imported one, got {name}"]
    if base.digest != digest:
        return [f"base {name}: expected {base.digest}, got {digest}"]
    if base.quarantined is not None:
        return [f"base {name}: expected its bytes whole, got quarantine by entry {base.quarantined}"]
    if base.revoked is not None:
        return [f"base {name}: expected a standing one, got one revoked by entry {base.revoked}"]
    return []


def dataset_stands(state: State, name: str) -> Reasons:
    dataset = state.datasets.get(name)
    if dataset is None:
        return [f"dataset: expected an imported one, got {name}"]
    if dataset.revoked is not None:
        return [f"dataset {name}: expected a standing one, got one revoked by entry {dataset.revoked}"]
    return []


def set_stands(state: State, bound: BoundSet) -> Reasons:
    found = state.validation_sets.get(bound.validation_set)
    if found is None:
        return [f"validation set: expected an imported one, got {bound.validation_set}"]
    what = f"validation set {bound.validation_set}"
    if found.digest != bound.digest:
        return [f"{what}: expected {found.digest}, got {bound.digest}"]
    if found.revoked is not None:
        return [f"{what}: expected a standing one, got one revoked by entry {found.revoked}"]
    return []


def sets_stand(state: State, sets: tuple[BoundSet, ...]) -> Reasons:
    """What adapters are judged on, of which none may be revoked."""
    return [reason for bound in sets for reason in set_stands(state, bound)]


def inputs_stand(state: State, made: Run | Adapter) -> Reasons:
    """What it is trained on: the base whole, and neither base nor dataset revoked."""
    return base_is(state, made.base, made.base_digest) + dataset_stands(state, made.dataset)


def may_take_away(signer: Principal) -> Reasons:
    """Taking away is always easier than giving: one administrator or one reviewer, of any field."""
    if any(role.startswith("reviewer:") for role in signer.roles):
        return []
    return needs(signer, "administrator", "reviewer")


def revocable(what: str, digest: str, revoked: int | None, named: str) -> Reasons:
    reasons = [] if named == digest else [f"{what}: expected {digest}, got {named}"]
    return reasons + (
        [] if revoked is None else [f"{what}: expected a standing one, got one revoked by entry {revoked}"]
    )
