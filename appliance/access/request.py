"""What a site policy sees: an order as a Cedar request, with the facts that the ledger holds about it.

One action a verb, named as the verb. The principal is the signer, with its roles as Cedar parents: `Role::"operator"`,
or `Role::"reviewer:privacy"`, which itself is in `Role::"reviewer"`. What the order is about is the resource; what it
asks for beside that stands in the context. policies/default/schema.cedarschema is the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.domain import orders, records, state
from appliance.domain.making_invariants import next_dataset_version
from appliance.domain.names import Time, versioned
from appliance.domain.table import Table, V
from appliance.errors import NotFound


@dataclass(frozen=True, slots=True)
class Moment:
    """A Cedar `datetime`."""

    time: Time


@dataclass(frozen=True, slots=True)
class Thing:
    """A Cedar entity. Attributes are text, integers, truth values, tuples of text, moments and other things."""

    type: str
    id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    principal: Thing
    verb: str
    resource: Thing
    context: Mapping[str, Any]


Facts = tuple[Thing, Mapping[str, Any]]
"""The resource, and the context that this verb adds."""


def request_of(signer: records.Principal, order: orders.Order, known: state.State, now: Time) -> Request:
    """NotFound when the order is about something that the state does not hold."""
    resource, context = _FACTS[type(order)](known, order, signer)
    standing = {"now": Moment(now), "single_administrator": known.site.single_administrator}
    return Request(principal_thing(signer.name, signer.roles), order.verb, resource, {**standing, **context})


def principal_thing(name: str, roles: tuple[str, ...]) -> Thing:
    return Thing("Principal", name, {"name": name, "roles": roles}, roles)


def _find(rows: Table[V], key: str) -> V:
    row = rows.get(key)
    if row is None:
        raise NotFound(f"{rows.kind}: expected a known one, got {key}")
    return row


def _principal(known: state.State, name: str) -> Thing:
    person = _find(known.principals, name)
    return principal_thing(person.name, person.roles)


def _base(known: state.State, name: str) -> Thing:
    row = _find(known.bases, name)
    return Thing(
        "Base",
        row.name,
        {
            "name": row.name,
            "digest": row.digest,
            "licence": row.licence,
            "imported_by": _principal(known, row.imported_by),
        },
    )


def _dataset(known: state.State, name: str) -> Thing:
    row = _find(known.datasets, name)
    return Thing(
        "Dataset",
        name,
        {
            "name": row.name,
            "version": row.version,
            "digest": row.digest,
            "licence": row.licence,
            "classification": row.classification,
            "imported_by": _principal(known, row.imported_by),
            "base": _base(known, row.base),
        },
    )


def _adapter(
    known: state.State,
    order: orders.Review | orders.Activate | orders.RollBack | orders.RevokeAdapter | orders.ExportAdapter,
) -> Thing:
    row = _find(known.adapters, order.name)
    return Thing(
        "Adapter",
        order.name,
        {
            "name": row.name,
            "version": row.version,
            "manifest": row.manifest,
            "ordered_by": _principal(known, row.ordered_by),
            "base": _base(known, row.base),
            "dataset": _dataset(known, _find(known.runs, row.run).dataset),
        },
    )


def _enroll(known: state.State, order: orders.Enroll, signer: records.Principal) -> Facts:
    return principal_thing(order.principal, ()), {"roles": order.roles}


def _grant(known: state.State, order: orders.Grant, signer: records.Principal) -> Facts:
    return _principal(known, order.principal), {"role": order.role}


def _revoke_principal(known: state.State, order: orders.RevokePrincipal, signer: records.Principal) -> Facts:
    return _principal(known, order.principal), {}


def _adopt_policy(known: state.State, order: orders.AdoptPolicy, signer: records.Principal) -> Facts:
    return Thing("Policy", order.policy, {"digest": order.policy}), {}


def _endorse(known: state.State, order: orders.Endorse, signer: records.Principal) -> Facts:
    pending = _find(known.pending, order.order)
    return pending_thing(order.order, pending.verb, _principal(known, pending.signer)), {}


def pending_thing(digest: str, verb: str, signer: Thing) -> Thing:
    return Thing("PendingOrder", digest, {"verb": verb, "signer": signer})


def _import_base(known: state.State, order: orders.ImportBase, signer: records.Principal) -> Facts:
    attributes = {
        "name": order.base,
        "digest": order.source,
        "licence": order.licence,
        "imported_by": principal_thing(signer.name, signer.roles),
    }
    return Thing("Base", order.base, attributes), {"format": order.format}


def _import_dataset(known: state.State, order: orders.ImportDataset, signer: records.Principal) -> Facts:
    version = next_dataset_version(known, order.dataset)
    attributes = {
        "name": order.dataset,
        "version": version,
        "digest": order.file,
        "licence": order.licence,
        "classification": order.classification,
        "imported_by": principal_thing(signer.name, signer.roles),
        "base": _base(known, order.base),
    }
    return Thing("Dataset", versioned(order.dataset, version), attributes), {"format": order.format}


def _train(known: state.State, order: orders.Train, signer: records.Principal) -> Facts:
    recipe = order.recipe
    run = Thing(
        "Run",
        f"r-{len(known.runs) + 1:06d}",
        {
            "adapter": recipe.name,
            "status": "requested",
            "ordered_by": principal_thing(signer.name, signer.roles),
            "base": _base(known, recipe.base),
            "dataset": _dataset(known, recipe.dataset),
        },
    )
    context = {
        "method": recipe.method,
        "purpose": recipe.purpose,
        "device": recipe.device,
        "rank": recipe.rank,
        "epochs": recipe.epochs,
    }
    return run, context


def _run(known: state.State, name: str) -> Thing:
    row = _find(known.runs, name)
    attributes = {
        "adapter": row.name,
        "status": row.status,
        "ordered_by": _principal(known, row.ordered_by),
        "base": _base(known, row.base),
        "dataset": _dataset(known, row.dataset),
    }
    return Thing("Run", row.id, attributes)


def _on_run(known: state.State, order: orders.Cancel | orders.Resume, signer: records.Principal) -> Facts:
    return _run(known, order.run), {}


def import_thing(order: str, verb: str, subject: str, ordered_by: Thing) -> Thing:
    return Thing("Import", order, {"verb": verb, "subject": subject, "ordered_by": ordered_by})


def _cancel_import(known: state.State, order: orders.CancelImport, signer: records.Principal) -> Facts:
    row = _find(known.imports, order.order)
    return import_thing(row.order, row.verb, row.subject, _principal(known, row.signer)), {}


def _replay(known: state.State, order: orders.Replay, signer: records.Principal) -> Facts:
    return _run(known, order.run), {"from_step": order.from_step, "to_step": order.to_step}


def _review(known: state.State, order: orders.Review, signer: records.Principal) -> Facts:
    context = {
        "unit": order.unit,
        "field": order.field,
        "decision": order.decision,
        "valid_until": Moment(order.valid_until),
    }
    return _adapter(known, order), context


def _release(known: state.State, order: orders.Activate | orders.RollBack, signer: records.Principal) -> Facts:
    return _adapter(known, order), {"unit": order.unit, "task": order.task}


def _export(known: state.State, order: orders.ExportAdapter, signer: records.Principal) -> Facts:
    return _adapter(known, order), {"unit": order.unit, "task": order.task, "valid_until": Moment(order.valid_until)}


def _revoke_adapter(known: state.State, order: orders.RevokeAdapter, signer: records.Principal) -> Facts:
    return _adapter(known, order), {}


def _revoke_base(known: state.State, order: orders.RevokeBase, signer: records.Principal) -> Facts:
    return _base(known, order.base), {}


def _revoke_dataset(known: state.State, order: orders.RevokeDataset, signer: records.Principal) -> Facts:
    return _dataset(known, order.name), {}


def _key(
    known: state.State, order: orders.ReplaceKey | orders.RotateKey | orders.RevokeKey, signer: records.Principal
) -> Facts:
    return _principal(known, order.principal), {}


def _tokens(known: state.State, order: orders.RevokeTokens, signer: records.Principal) -> Facts:
    return _principal(known, order.unit), {}


def _rotate_log_key(known: state.State, order: orders.RotateLogKey, signer: records.Principal) -> Facts:
    return Thing("LogKey", order.log_key, {"vkey": order.log_key}), {}


def _erase(known: state.State, order: orders.Erase, signer: records.Principal) -> Facts:
    text = _find(known.texts, order.commitment)
    return Thing("Text", order.commitment, {"signer": text.signer, "subjects": text.subjects}), {}


def _hold(known: state.State, order: orders.PlaceHold, signer: records.Principal) -> Facts:
    return Thing("Hold", order.subject, {"subject": order.subject}), {}


_FACTS: dict[type[orders.Order], Callable[..., Facts]] = {
    orders.Enroll: _enroll,
    orders.Grant: _grant,
    orders.RevokePrincipal: _revoke_principal,
    orders.AdoptPolicy: _adopt_policy,
    orders.Endorse: _endorse,
    orders.ImportBase: _import_base,
    orders.ImportDataset: _import_dataset,
    orders.Train: _train,
    orders.Cancel: _on_run,
    orders.CancelImport: _cancel_import,
    orders.Resume: _on_run,
    orders.Replay: _replay,
    orders.Review: _review,
    orders.Activate: _release,
    orders.RollBack: _release,
    orders.RevokeAdapter: _revoke_adapter,
    orders.ExportAdapter: _export,
    orders.RevokeBase: _revoke_base,
    orders.RevokeDataset: _revoke_dataset,
    orders.ReplaceKey: _key,
    orders.RotateKey: _key,
    orders.RevokeKey: _key,
    orders.RevokeTokens: _tokens,
    orders.RotateLogKey: _rotate_log_key,
    orders.Erase: _erase,
    orders.PlaceHold: _hold,
    orders.LiftHold: _hold,
}
