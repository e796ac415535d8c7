"""Base models: imported, quarantined, revoked."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Failed, Ordered
from appliance.domain.core.names import Digest, Identifier, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.data import Base
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.imports import check_import, finish_import
from appliance.domain.data.standing import may_take_away, revocable
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes


class RevokeBase(Order):
    """With it fall all adapters on it, for every unit."""

    verb = "revoke-base"
    base: Identifier
    digest: Digest

    def subjects(self) -> Subjects:
        return ((f"base:{self.base}", self.digest),)


class BaseImported(Event):
    """`manifest` lists the converted folder's files; its digest is the base's identity."""

    type = "base.imported"
    documents = ("manifest",)
    order: Digest
    base: Identifier
    facts: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"order:{self.order}",
            f"base:{self.base}",
        )


class BaseQuarantined(Failed):
    """The base's folder no longer hashes to its manifest: nothing trains on it and nothing is served on it."""

    type = "base.quarantined"
    base: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"base:{self.base}",)


class BaseRevoked(Ordered):
    """Nothing is trained on it or served on it any more."""

    type = "base.revoked"


def may_revoke_base(state: State, order: RevokeBase, signer: Principal, now: Time) -> Reasons:
    base = state.bases.get(order.base)
    if base is None:
        return [f"base: expected an imported one, got {order.base}"]
    return may_take_away(signer) + revocable(f"base {order.base}", base.digest, base.revoked, order.digest)


def base_imported(case: Case) -> Changes:
    body = case.of(BaseImported)
    record, changes = finish_import(case, body.order, "base", body.base)
    check_import(case, body.walls, body.base, 1)
    base = Base(
        name=body.base,
        digest=digest_bytes(case.documents["manifest"]),
        licence=record.licence,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*changes, (case.state.bases, body.base, base)]


def base_quarantined(case: Case) -> Changes:
    name = case.of(BaseQuarantined).base
    base = case.state.bases.get(name)
    if base is None or base.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: base: expected one not in quarantine, got {name}")
    return [(case.state.bases, name, base.model_copy(update={"quarantined": case.entry.index}))]


def base_revoked(case: Case) -> Changes:
    base = case.state.bases.get(case.order(RevokeBase).base)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got none")
    return [(case.state.bases, base.name, base.model_copy(update={"revoked": case.entry.index}))]


VERBS = (
    Verb(
        RevokeBase,
        may=may_revoke_base,
        signers=("administrator", "any reviewer"),
        meaning="No adapter on this base answers any more, and none is trained on it. This cannot be taken back.",
        event=BaseRevoked,
        apply=base_revoked,
        changes_answers=True,
    ),
)
EVENTS = (
    EventRule(BaseImported, base_imported),
    EventRule(BaseQuarantined, base_quarantined),
)
