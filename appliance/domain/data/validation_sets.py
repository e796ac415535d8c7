"""Validation sets: imported, revoked. Rows of the site's own, on which adapters are judged and nothing is trained."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.names import Digest, Identifier, Time, VersionedName, split_version, versioned
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.data import ValidationSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.imports import check_import, check_rendered_for, finish_import
from appliance.domain.data.standing import may_take_away, revocable
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes


class RevokeValidationSet(Order):
    """With it go stale all approvals of adapters that were judged on it."""

    verb = "revoke-validation-set"
    validation_set: Identifier
    version: int = Field(ge=1)
    digest: Digest

    @property
    def name(self) -> str:
        return versioned(self.validation_set, self.version)

    def subjects(self) -> Subjects:
        return ((f"validation-set:{self.name}", self.digest),)


class ValidationSetImported(Event):
    """`root` is the RFC 6962 root over the row digests, each under its own key."""

    type = "validation-set.imported"
    documents = ("manifest",)
    order: Digest
    validation_set: VersionedName
    base: Identifier
    root: Digest
    facts: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"validation-set:{self.validation_set}")


class ValidationSetRevoked(Ordered):
    """No run is judged on it any more, and no approval that rests on it counts."""

    type = "validation-set.revoked"


def may_revoke_validation_set(state: State, order: RevokeValidationSet, signer: Principal, now: Time) -> Reasons:
    found = state.validation_sets.get(order.name)
    if found is None:
        return [f"validation set: expected an imported one, got {order.name}"]
    reasons = [] if signer.has("validator") else may_take_away(signer)
    return reasons + revocable(f"validation set {order.name}", found.digest, found.revoked, order.digest)


def next_set_version(state: State, name: str) -> int:
    versions = [split_version(key)[1] for key, _ in state.validation_sets.items() if split_version(key)[0] == name]
    return max(versions, default=0) + 1


def validation_set_imported(case: Case) -> Changes:
    body = case.of(ValidationSetImported)
    name, version = split_version(body.validation_set)
    record, changes = finish_import(case, body.order, "validation-set", name)
    expected = next_set_version(case.state, name)
    case.require(version == expected, "version", expected, version)
    base = check_rendered_for(case, record, body.base)
    case.require(body.facts.get("task") == record.task, "facts, task", record.task, body.facts.get("task"))
    check_import(case, body.walls, name, version)
    found = ValidationSet(
        name=name,
        version=version,
        digest=digest_bytes(case.documents["manifest"]),
        root=body.root,
        file=record.held_out_of,
        task=record.task,
        base=base.name,
        base_digest=base.digest,
        licence=record.licence,
        classification=record.classification,
        blind=record.blind,
        final=record.final,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*changes, (case.state.validation_sets, body.validation_set, found)]


def validation_set_revoked(case: Case) -> Changes:
    name = case.order(RevokeValidationSet).name
    found = case.state.validation_sets.get(name)
    if found is None:
        raise Denied(f"entry {case.entry.index}: validation set: expected an imported one, got {name}")
    return [(case.state.validation_sets, name, found.model_copy(update={"revoked": case.entry.index}))]


VERBS = (
    Verb(
        RevokeValidationSet,
        may=may_revoke_validation_set,
        signers=("validator", "administrator", "any reviewer"),
        meaning="No adapter is judged on this set any more, and approvals that rest on it go stale. This cannot be "
        "taken back.",
        event=ValidationSetRevoked,
        apply=validation_set_revoked,
        changes_answers=True,
    ),
)
EVENTS = (EventRule(ValidationSetImported, validation_set_imported),)
