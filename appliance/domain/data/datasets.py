"""Datasets: imported, revoked."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.names import Digest, Identifier, Time, VersionedName, split_version, versioned
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.imports import check_import, check_rendered_for, finish_import
from appliance.domain.data.standing import may_take_away, revocable
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes


class RevokeDataset(Order):
    """With it fall all adapters that were trained on it, for every unit."""

    verb = "revoke-dataset"
    dataset: Identifier
    version: int = Field(ge=1)
    digest: Digest

    @property
    def name(self) -> str:
        return versioned(self.dataset, self.version)

    def subjects(self) -> Subjects:
        return ((f"dataset:{self.name}", self.digest),)


class DatasetImported(Event):
    """`root` is the RFC 6962 root over the row digests, each under its own key."""

    type = "dataset.imported"
    documents = ("manifest",)
    order: Digest
    dataset: VersionedName
    base: Identifier
    root: Digest
    facts: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"order:{self.order}",
            f"dataset:{self.dataset}",
        )


class DatasetRevoked(Ordered):
    """Nothing is trained on it, and nothing that was is served any more."""

    type = "dataset.revoked"


def may_revoke_dataset(state: State, order: RevokeDataset, signer: Principal, now: Time) -> Reasons:
    dataset = state.datasets.get(order.name)
    if dataset is None:
        return [f"dataset: expected an imported one, got {order.name}"]
    return may_take_away(signer) + revocable(f"dataset {order.name}", dataset.digest, dataset.revoked, order.digest)


def next_dataset_version(state: State, name: str) -> int:
    versions = [split_version(key)[1] for key, _ in state.datasets.items() if split_version(key)[0] == name]
    return max(versions, default=0) + 1


def dataset_imported(case: Case) -> Changes:
    body = case.of(DatasetImported)
    name, version = split_version(body.dataset)
    record, changes = finish_import(case, body.order, "dataset", name)
    expected = next_dataset_version(case.state, name)
    case.require(version == expected, "version", expected, version)
    base = check_rendered_for(case, record, body.base)
    check_import(case, body.walls, name, version)
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


def dataset_revoked(case: Case) -> Changes:
    name = case.order(RevokeDataset).name
    dataset = case.state.datasets.get(name)
    if dataset is None:
        raise Denied(f"entry {case.entry.index}: dataset: expected an imported one, got {name}")
    return [(case.state.datasets, name, dataset.model_copy(update={"revoked": case.entry.index}))]


VERBS = (
    Verb(
        RevokeDataset,
        may=may_revoke_dataset,
        signers=("administrator", "any reviewer"),
        meaning="No adapter trained on this dataset answers any more. This cannot be taken back.",
        event=DatasetRevoked,
        apply=dataset_revoked,
        changes_answers=True,
    ),
)
EVENTS = (EventRule(DatasetImported, dataset_imported),)
