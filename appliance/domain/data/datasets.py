"""Datasets: the order that revokes one, and the ledger entries for import and revocation."""

from __future__ import annotations

from functools import partial
from typing import Any

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.example import example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Digest, Identifier, Time, VersionedName, split_version, versioned
from appliance.domain.core.order import Order, Subjects, derived
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State, next_version
from appliance.domain.data.imports import DatasetEntity, check_import, check_rendered_for, finish_import
from appliance.domain.data.validity import (
    DATASET_REVOKED,
    DATASET_UNKNOWN,
    check_revocable,
    complete_revocation,
)
from appliance.errors import Denied, Rejected
from appliance.formats.core.digest import digest_bytes


class RevokeDataset(Order):
    """An order to revoke a dataset. It also revokes every adapter that was trained on it, for every unit."""

    action = "revoke-dataset"
    dataset: Identifier
    version: int = derived(ge=1)
    digest: Digest = derived()

    @property
    def name(self) -> str:
        """Return the dataset's versioned name."""
        return versioned(self.dataset, self.version)

    def subjects(self) -> Subjects:
        """Return the dataset and its digest."""
        return ((f"dataset:{self.name}", self.digest),)


class DatasetImported(Event):
    """A ledger entry that records an imported dataset.

    `root` is the RFC 6962 root over the row digests, each under its own key.
    """

    type = "dataset.imported"
    documents = ("manifest",)
    order: Digest
    dataset: VersionedName
    base: Identifier
    root: Digest
    facts: dict[str, Any]
    sandbox_probes: dict[str, str]

    def about(self) -> tuple[str, ...]:
        """Return the order and the dataset."""
        return (
            f"order:{self.order}",
            f"dataset:{self.dataset}",
        )


class DatasetRevoked(Ordered):
    """A ledger entry that revokes a dataset: no run trains on it, and adapters trained on it are not served."""

    type = "dataset.revoked"


def authorise_revoke_dataset(state: State, order: RevokeDataset, signer: Principal, now: Time) -> Reasons:
    """Return the reasons against the order; none if the signer may revoke the dataset."""
    dataset = state.datasets.get(order.name)
    if dataset is None:
        return [DATASET_UNKNOWN(name=Rejected(order.name))]
    return check_revocable(f"dataset:{order.name}", dataset.digest, dataset.revoked, order.digest, DATASET_REVOKED)


def apply_dataset_import(case: Case) -> Changes:
    """Add the dataset to the state, and finish its import.

    Raises: Denied where the entry contradicts its order, the manifest or the state.
    """
    body = case.of(DatasetImported)
    name, version = split_version(body.dataset)
    record, changes = finish_import(case, body.order, "dataset", name)
    expected = next_version(case.state.datasets, name)
    case.require(version == expected, "version", expected, version)
    base = check_rendered_for(case, record, body.base)
    check_import(case, body.sandbox_probes, name, version)
    dataset = Dataset(
        name=name,
        version=version,
        digest=digest_bytes(case.documents["manifest"]),
        root=body.root,
        base=base.name,
        base_digest=base.digest,
        licence=record.licence,
        classification=record.classification,
        imported_by=record.signer,
        order=record.order,
        instruction=record.instruction,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*changes, (case.state.datasets, body.dataset, dataset)]


def apply_dataset_revocation(case: Case) -> Changes:
    """Mark the dataset as revoked.

    Raises: Denied where no such dataset is imported.
    """
    name = case.order(RevokeDataset).name
    dataset = case.state.datasets.get(name)
    if dataset is None:
        raise Denied(f"entry {case.entry.index}: dataset: expected an imported one, got {name}")
    return [(case.state.datasets, name, dataset.model_copy(update={"revoked": case.entry.index}))]


ACTIONS = (
    Action(
        RevokeDataset,
        title="Revoke a dataset",
        complete=partial(complete_revocation, "dataset", "dataset"),
        authorise=authorise_revoke_dataset,
        signers=("administrator", "any reviewer"),
        meaning="No adapter trained on this dataset serves a unit any more. This cannot be taken back.",
        event=DatasetRevoked,
        apply=apply_dataset_revocation,
        recheck_slots=True,
        facts=ActionFacts(DatasetEntity, "name"),
        example_values={"signer": "rita", "dataset": "clauses", "digest": example_digest("clauses")},
    ),
)
EVENTS = (EventRule(DatasetImported, apply_dataset_import),)
