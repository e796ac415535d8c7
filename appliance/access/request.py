"""What a site policy sees: an order as a Cedar request, with the facts that the ledger holds about it.

One action a verb, named as the verb. The principal is the signer, with its roles as Cedar parents: `Role::"operator"`,
or `Role::"reviewer:privacy"`, which itself is in `Role::"reviewer"`. What the order is about is the resource; what it
asks for beside that stands in the context. policies/default/schema.cedarschema is the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.domain.core import state
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.order import Order
from appliance.domain.core.records.people import Principal
from appliance.domain.core.table import Table, V
from appliance.domain.data.bases import RevokeBase
from appliance.domain.data.datasets import RevokeDataset, next_dataset_version
from appliance.domain.data.imports import CancelImport, ImportBase, ImportDataset, ImportValidationSet
from appliance.domain.data.validation_sets import RevokeValidationSet, next_set_version
from appliance.domain.governance.clock import ResetClock
from appliance.domain.governance.delegations import Delegate
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.governance.keys import ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.log_keys import RotateLogKey
from appliance.domain.governance.passkeys import EnrollPasskey
from appliance.domain.governance.people import Enroll, EnrollSeveral, Grant, RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.rules import RaiseRules
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.adapters import OnAdapter, RevokeAdapter
from appliance.domain.releases.blocking import find_finding
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.releases.exports import ExportAdapter
from appliance.domain.releases.findings import AddFinding, CloseFinding
from appliance.domain.releases.looks import TryAdapter, ViewSamples
from appliance.domain.releases.requests_for_release import RequestRelease, WithdrawRequest
from appliance.domain.releases.reviews import Review
from appliance.domain.retention.holds import LiftHold, PlaceHold
from appliance.domain.retention.texts import Erase
from appliance.domain.runs.authorisation import AuthoriseRun, RefuseRun
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.runs.replays import ReplayRun
from appliance.domain.runs.resumption import Resume
from appliance.domain.runs.training import Train
from appliance.domain.serving.applications import EnrollApplication
from appliance.domain.serving.tokens import RevokeTokens
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


def requests_of(signer: Principal, order: Order, known: state.State, now: Time) -> tuple[Request, ...]:
    """What the site's policies are asked about an order. Of one that enrols several: whether each may be enrolled, so
    that a policy about `enroll` needs no second one."""
    orders = order.each() if isinstance(order, EnrollSeveral) else (order,)
    return tuple(request_of(signer, one, known, now) for one in orders)


def request_of(signer: Principal, order: Order, known: state.State, now: Time) -> Request:
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


def _validation_set(known: state.State, name: str) -> Thing:
    row = _find(known.validation_sets, name)
    return Thing(
        "ValidationSet",
        name,
        {
            "name": row.name,
            "version": row.version,
            "digest": row.digest,
            "licence": row.licence,
            "classification": row.classification,
            "blind": row.blind,
            "final": row.final,
            "imported_by": _principal(known, row.imported_by),
            "base": _base(known, row.base),
        },
    )


def _adapter(
    known: state.State,
    order: OnAdapter,
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


def _enroll(known: state.State, order: Enroll, signer: Principal) -> Facts:
    return principal_thing(order.principal, ()), {"roles": order.roles}


def _grant(known: state.State, order: Grant, signer: Principal) -> Facts:
    return _principal(known, order.principal), {"role": order.role}


def _revoke_principal(known: state.State, order: RevokePrincipal, signer: Principal) -> Facts:
    return _principal(known, order.principal), {}


def _adopt_policy(known: state.State, order: AdoptPolicy, signer: Principal) -> Facts:
    return Thing("Policy", order.policy, {"digest": order.policy}), {}


def _endorse(known: state.State, order: Endorse, signer: Principal) -> Facts:
    pending = _find(known.pending, order.order)
    return pending_thing(order.order, pending.verb, _principal(known, pending.signer)), {}


def pending_thing(digest: str, verb: str, signer: Thing) -> Thing:
    return Thing("PendingOrder", digest, {"verb": verb, "signer": signer})


def _import_base(known: state.State, order: ImportBase, signer: Principal) -> Facts:
    attributes = {
        "name": order.base,
        "digest": order.source,
        "licence": order.licence,
        "imported_by": principal_thing(signer.name, signer.roles),
    }
    return Thing("Base", order.base, attributes), {"format": order.format}


def _import_dataset(known: state.State, order: ImportDataset, signer: Principal) -> Facts:
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


def _import_validation_set(known: state.State, order: ImportValidationSet, signer: Principal) -> Facts:
    version = next_set_version(known, order.validation_set)
    attributes = {
        "name": order.validation_set,
        "version": version,
        "digest": order.file,
        "licence": order.licence,
        "classification": order.classification,
        "blind": order.blind,
        "final": order.final,
        "imported_by": principal_thing(signer.name, signer.roles),
        "base": _base(known, order.base),
    }
    return Thing("ValidationSet", versioned(order.validation_set, version), attributes), {"format": order.format}


def _train(known: state.State, order: Train, signer: Principal) -> Facts:
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
    return run, context if order.tier is None else {**context, "tier": order.tier}


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


def _on_run(known: state.State, order: AuthoriseRun | RefuseRun | Cancel | Resume, signer: Principal) -> Facts:
    return _run(known, order.run), {}


def import_thing(order: str, verb: str, subject: str, ordered_by: Thing) -> Thing:
    return Thing("Import", order, {"verb": verb, "subject": subject, "ordered_by": ordered_by})


def _cancel_import(known: state.State, order: CancelImport, signer: Principal) -> Facts:
    row = _find(known.imports, order.order)
    return import_thing(row.order, row.verb, row.subject, _principal(known, row.signer)), {}


def _replay(known: state.State, order: ReplayRun, signer: Principal) -> Facts:
    return _run(known, order.run), {"from_step": order.from_step, "to_step": order.to_step}


def _review(known: state.State, order: Review, signer: Principal) -> Facts:
    context = {"unit": order.unit, "field": order.field, "decision": order.decision}
    until = {} if order.valid_until is None else {"valid_until": Moment(order.valid_until)}
    place = {} if order.on_behalf_of is None else {"on_behalf_of": order.on_behalf_of}
    return _adapter(known, order), {**context, **until, **place}


def _request_release(known: state.State, order: RequestRelease, signer: Principal) -> Facts:
    context = {"unit": order.unit, "exposure": order.exposure, "purpose": order.purpose, "tier": order.tier}
    return _adapter(known, order), context


def _withdraw_request(known: state.State, order: WithdrawRequest, signer: Principal) -> Facts:
    return _adapter(known, order), {"unit": order.unit}


def _add_finding(known: state.State, order: AddFinding, signer: Principal) -> Facts:
    context = {"field": order.field, "kind": order.kind, "severity": order.severity, "blocks": order.blocks}
    context["accepts_verdict"] = order.accepts_verdict
    return _adapter(known, order), {**context, "owner": order.owner, "due": Moment(order.due)}


def _close_finding(known: state.State, order: CloseFinding, signer: Principal) -> Facts:
    found = find_finding(_find(known.adapters, order.name), order.entry)
    if found is None:
        raise NotFound(f"finding: expected one of {order.name}, got {order.entry}")
    context = {"field": found.field, "kind": found.kind, "severity": found.severity, "finder": found.finder}
    return _adapter(known, order), context


def _view_samples(known: state.State, order: ViewSamples, signer: Principal) -> Facts:
    return _adapter(known, order), {"count": order.count}


def _try_adapter(known: state.State, order: TryAdapter, signer: Principal) -> Facts:
    return _adapter(known, order), {"prompts": len(order.prompts)}


def _delegate(known: state.State, order: Delegate, signer: Principal) -> Facts:
    until = {} if order.until is None else {"until": Moment(order.until)}
    return _principal(known, order.principal), {"field": order.field, **until}


def _break_glass(known: state.State, order: BreakGlass, signer: Principal) -> Facts:
    return _adapter(known, order), {"unit": order.unit, "task": order.task, "until": Moment(order.until)}


def _release(known: state.State, order: Activate | RollBack, signer: Principal) -> Facts:
    context = {"unit": order.unit, "task": order.task, "adds_instruction": order.adds_instruction}
    return _adapter(known, order), context


def _export(known: state.State, order: ExportAdapter, signer: Principal) -> Facts:
    return _adapter(known, order), {"unit": order.unit, "task": order.task, "valid_until": Moment(order.valid_until)}


def _revoke_adapter(known: state.State, order: RevokeAdapter, signer: Principal) -> Facts:
    return _adapter(known, order), {}


def _revoke_base(known: state.State, order: RevokeBase, signer: Principal) -> Facts:
    return _base(known, order.base), {}


def _revoke_dataset(known: state.State, order: RevokeDataset, signer: Principal) -> Facts:
    return _dataset(known, order.name), {}


def _revoke_validation_set(known: state.State, order: RevokeValidationSet, signer: Principal) -> Facts:
    return _validation_set(known, order.name), {}


def _key(known: state.State, order: ReplaceKey | RotateKey | RevokeKey, signer: Principal) -> Facts:
    return _principal(known, order.principal), {}


def _passkey(known: state.State, order: EnrollPasskey, signer: Principal) -> Facts:
    place = {"rp_id": order.rp_id, "origins": order.origins}
    return _principal(known, order.principal), {"backup_eligible": order.backup_eligible, **place}


def _tokens(known: state.State, order: RevokeTokens, signer: Principal) -> Facts:
    return _principal(known, order.unit), {}


def _application(known: state.State, order: EnrollApplication, signer: Principal) -> Facts:
    return _principal(known, order.principal), {"application": order.application, "tasks": order.tasks}


def _rotate_log_key(known: state.State, order: RotateLogKey, signer: Principal) -> Facts:
    return Thing("LogKey", order.log_key, {"vkey": order.log_key}), {}


def _raise_rules(known: state.State, order: RaiseRules, signer: Principal) -> Facts:
    return Thing("Rules", str(order.rules), {"from": known.site.rules, "to": order.rules}), {}


def _reset_clock(known: state.State, order: ResetClock, signer: Principal) -> Facts:
    return Thing("Clock", order.last, {"last": Moment(order.last)}), {}


def _erase(known: state.State, order: Erase, signer: Principal) -> Facts:
    text = _find(known.texts, order.commitment)
    return Thing("Text", order.commitment, {"signer": text.signer, "subjects": text.subjects}), {}


def _hold(known: state.State, order: PlaceHold, signer: Principal) -> Facts:
    return Thing("Hold", order.subject, {"subject": order.subject}), {}


_FACTS: dict[type[Order], Callable[..., Facts]] = {
    Enroll: _enroll,
    Grant: _grant,
    RevokePrincipal: _revoke_principal,
    AdoptPolicy: _adopt_policy,
    Endorse: _endorse,
    ImportBase: _import_base,
    ImportDataset: _import_dataset,
    ImportValidationSet: _import_validation_set,
    Train: _train,
    AuthoriseRun: _on_run,
    RefuseRun: _on_run,
    Cancel: _on_run,
    CancelImport: _cancel_import,
    Resume: _on_run,
    ReplayRun: _replay,
    RequestRelease: _request_release,
    WithdrawRequest: _withdraw_request,
    AddFinding: _add_finding,
    CloseFinding: _close_finding,
    ViewSamples: _view_samples,
    TryAdapter: _try_adapter,
    Delegate: _delegate,
    BreakGlass: _break_glass,
    Review: _review,
    Activate: _release,
    RollBack: _release,
    RevokeAdapter: _revoke_adapter,
    ExportAdapter: _export,
    RevokeBase: _revoke_base,
    RevokeDataset: _revoke_dataset,
    RevokeValidationSet: _revoke_validation_set,
    ReplaceKey: _key,
    RotateKey: _key,
    RevokeKey: _key,
    EnrollPasskey: _passkey,
    EnrollApplication: _application,
    RevokeTokens: _tokens,
    RotateLogKey: _rotate_log_key,
    RaiseRules: _raise_rules,
    ResetClock: _reset_clock,
    Erase: _erase,
    PlaceHold: _hold,
    LiftHold: _hold,
}
