"""Checks that bases, datasets and validation sets are usable."""

from __future__ import annotations

from appliance.domain.core.records.data import BoundSet
from appliance.domain.core.records.runs import Adapter, Run
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.errors import RefusalCode, Rejected

BASE_UNKNOWN = RefusalCode(
    "base-unknown", "state", "No base model with the name {name} was imported.", "Choose one of: appliance base list."
)
BASE_QUARANTINED = RefusalCode(
    "base-quarantined",
    "state",
    "The files of base model {id} have changed on disk, so that entry {entry} put it in quarantine.",
    "Restore the files: appliance ledger verify lists them.",
)
BASE_REVOKED = RefusalCode(
    "base-revoked", "state", "Base model {id} was revoked by entry {entry}.", "Use another base: appliance base list."
)
DATASET_UNKNOWN = RefusalCode(
    "dataset-unknown",
    "state",
    "No dataset with the name {name} was imported.",
    "Choose one of: appliance dataset list.",
)
DATASET_REVOKED = RefusalCode(
    "dataset-revoked",
    "state",
    "Dataset {id} was revoked by entry {entry}.",
    "Use another dataset: appliance dataset list.",
)
SET_UNKNOWN = RefusalCode(
    "validation-set-unknown",
    "state",
    "No validation set with the name {name} was imported.",
    "Name one that was imported for this base model.",
)
SET_REVOKED = RefusalCode(
    "validation-set-revoked",
    "state",
    "Validation set {id} was revoked by entry {entry}.",
    "Train another adapter, which is evaluated on a valid set.",
)
DIGEST_DIFFERS = RefusalCode(
    "digest-differs",
    "order",
    "The order names {id} by the digest {named}. The imported one has the digest {digest}.",
    "Prepare the order again.",
)


def refuse_invalid_base(state: State, name: str, digest: str) -> Reasons:
    """Return the reasons against using a base: not imported, another digest, in quarantine, or revoked."""
    base = state.bases.get(name)
    if base is None:
        return [BASE_UNKNOWN(name=Rejected(name))]
    if base.digest != digest:
        return [DIGEST_DIFFERS(f"base:{name}", digest=base.digest, named=Rejected(digest))]
    if base.quarantined is not None:
        return [BASE_QUARANTINED(f"base:{name}", entry=base.quarantined)]
    if base.revoked is not None:
        return [BASE_REVOKED(f"base:{name}", entry=base.revoked)]
    return []


def refuse_invalid_dataset(state: State, name: str) -> Reasons:
    """Return the reasons against using a dataset: not imported, or revoked."""
    dataset = state.datasets.get(name)
    if dataset is None:
        return [DATASET_UNKNOWN(name=Rejected(name))]
    if dataset.revoked is not None:
        return [DATASET_REVOKED(f"dataset:{name}", entry=dataset.revoked)]
    return []


def refuse_invalid_set(state: State, bound: BoundSet) -> Reasons:
    """Return the reasons against using a validation set: not imported, another digest, or revoked."""
    found = state.validation_sets.get(bound.validation_set)
    if found is None:
        return [SET_UNKNOWN(name=Rejected(bound.validation_set))]
    subject = f"validation-set:{bound.validation_set}"
    if found.digest != bound.digest:
        return [DIGEST_DIFFERS(subject, digest=found.digest, named=Rejected(bound.digest))]
    if found.revoked is not None:
        return [SET_REVOKED(subject, entry=found.revoked)]
    return []


def refuse_invalid_sets(state: State, sets: tuple[BoundSet, ...]) -> Reasons:
    """Return the reasons against using any of the validation sets that adapters are evaluated on."""
    return [reason for bound in sets for reason in refuse_invalid_set(state, bound)]


def refuse_invalid_inputs(state: State, made: Run | Adapter) -> Reasons:
    """Return the reasons against using the base or the dataset that a run or an adapter is trained on."""
    return refuse_invalid_base(state, made.base, made.base_digest) + refuse_invalid_dataset(state, made.dataset)
