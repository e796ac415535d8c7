"""Lists from which the fields of order forms are chosen, filled from the state and the valid policy set.

A field finds its list by its name, because a name means the same in every order: `unit` is an enrolled unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.names import EXCLUSIVE_ROLES, PARTED_ROLES
from appliance.domain.core.records.people import Key, PendingOrder, Principal
from appliance.domain.core.state import State
from appliance.domain.data.imports import CancelImport
from appliance.domain.governance.countersignature import WithdrawOrder, list_waiting_orders
from appliance.domain.governance.delegations import Delegate, refuse_delegate
from appliance.domain.governance.invitations import EnrolWithPasskey, Invite, WithdrawInvitation
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import Grant, RemoveRole, RevokePrincipal
from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.reviews import ReviewAdapter, list_delegations
from appliance.domain.releases.suspensions import ResumeRelease, SuspendRelease, list_suspending_roles
from appliance.domain.retention import LiftHold
from appliance.domain.runs.control import AuthoriseRun, Cancel, RefuseRun, Resume
from appliance.domain.runs.replays import ReplayRun
from appliance.web.console.core.page import PageValue, Viewer
from appliance.web.console.core.render import name_role, name_roles
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.gates import list_gates

MOST_LISTED = 200
"""Maximum number of choices of a field. The newest are listed, and another one can be typed."""


class Choice(PageValue):
    """A value of a field, with its label and the heading under which a list shows it."""

    value: str
    label: str
    group: str = ""


@dataclass(frozen=True)
class ChoiceQuery:
    """The form for which lists are made: its action and its viewer at a time."""

    context: LedgerContext
    viewer: Viewer
    action: str
    now: str

    @property
    def state(self) -> State:
        """Return the state from which lists are filled."""
        return self.context.ledger.state


def _plain(values: Iterable[str]) -> Iterator[Choice]:
    return (Choice(value=one, label=one) for one in values)


def _adapters(query: ChoiceQuery) -> Iterator[Choice]:
    if query.action == Rollback.action:
        return _earlier(query)
    return _plain(name for name, row in query.state.adapters.items() if row.revoked is None)


def _earlier(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the versions to which each release can be rolled back, the latest first."""
    for release in query.state.releases.values():
        for step in release.earlier:
            row = query.state.adapters.get(step.adapter)
            if row is not None and row.revoked is None:
                group = f"{release.unit}, {release.served_model}"
                yield Choice(value=step.adapter, label=step.adapter, group=group)


def _bases(query: ChoiceQuery) -> Iterator[Choice]:
    return _plain(name for name, row in query.state.bases.items() if row.revoked is None)


def _datasets(query: ChoiceQuery) -> Iterator[Choice]:
    return _plain(name for name, row in query.state.datasets.items() if row.revoked is None)


def _validation_sets(query: ChoiceQuery) -> Iterator[Choice]:
    return _plain(name for name, row in query.state.validation_sets.items() if row.revoked is None)


_STATUSES = {
    Cancel.action: ("waiting", "queued", "running", "trained"),
    Resume.action: ("failed",),
    AuthoriseRun.action: ("waiting",),
    RefuseRun.action: ("waiting",),
    ReplayRun.action: ("sealed",),
}
"""States of the runs that an action can be about."""


def _runs(query: ChoiceQuery, *, by_order: bool = False) -> Iterator[Choice]:
    fitting = _STATUSES.get(query.action)
    for run in query.state.runs.values():
        if fitting is None or run.status in fitting:
            words = f"{run.id}: {run.name}, {run.status}, ordered by {run.ordered_by}"
            yield Choice(value=run.order if by_order else run.id, label=words)


def _baselines(query: ChoiceQuery) -> Iterator[Choice]:
    for run in query.state.runs.values():
        if run.status == "sealed":
            yield Choice(value=run.id, label=f"{run.id}: {run.name}")


def _orders(query: ChoiceQuery) -> Iterator[Choice]:
    if query.action == CancelImport.action:
        for one in query.state.imports.values():
            if one.status == "requested":
                yield Choice(value=one.order, label=f"{one.subject}, ordered by {one.signer}")
    elif query.action in (AuthoriseRun.action, RefuseRun.action):
        yield from _runs(query, by_order=True)
    else:
        for order in _list_waiting(query):
            yield Choice(
                value=order.digest,
                label=f"{ACTIONS[order.action].title}, ordered by {order.signer}, entry {order.index}",
            )


def _list_waiting(query: ChoiceQuery) -> list[PendingOrder]:
    """Return the orders that the viewer can countersign; for a withdrawal, all of the viewer's own."""
    if query.action != WithdrawOrder.action:
        return list_waiting_orders(query.state, query.now, query.viewer.name)
    own = (one for one in query.state.pending.values() if one.signer == query.viewer.name)
    return [one for one in own if one.expires_at > query.now]


def _units(query: ChoiceQuery) -> Iterator[Choice]:
    return _plain(row.name for row in query.state.principals.values() if row.has("unit"))


def _principals(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the people that the action can be about; units too where they can be named."""
    if query.action == WithdrawInvitation.action:
        for one in query.state.invitations.values():
            if one.is_valid(query.now) and one.name not in query.state.principals:
                yield Choice(value=one.name, label=f"{one.name} ({name_roles(one.roles)}), invited by {one.invited_by}")
        return
    for row in query.state.principals.values():
        if row.revoked is None and _fits(query, row):
            yield Choice(value=row.name, label=f"{row.name} ({name_roles(row.roles) or 'no role'})")


def _fits(query: ChoiceQuery, row: Principal) -> bool:
    """Return False for a person about whom the rules refuse this action."""
    if query.action == RevokeKey.action and not query.viewer.has("administrator"):
        return row.name == query.viewer.name
    if query.action == Delegate.action:
        return row.name != query.viewer.name and not refuse_delegate(query.state, row.name)
    if query.action == Grant.action:
        return not set(row.roles) & set(EXCLUSIVE_ROLES)
    if query.action == RemoveRole.action:
        return len(row.roles) > 1
    return "unit" not in row.roles or query.action in (RevokePrincipal.action, RevokeKey.action)


def _keys(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the keys that can be revoked, under their owners. The viewer's own are first."""
    owners = sorted(
        (row.name for row in query.state.principals.values() if row.revoked is None),
        key=lambda name: (name != query.viewer.name, name),
    )
    if not query.viewer.has("administrator"):
        owners = owners[:1]
    held: dict[str, list[Key]] = {}
    for key in query.state.keys.values():
        if key.revoked is None:
            held.setdefault(key.principal, []).append(key)
    for owner in owners:
        for key in held.get(owner, ()):
            yield Choice(
                value=key.keyid, label=f"{key.title}, {key.keyid[7:19]}…, since entry {key.enrolled}", group=owner
            )


def _functions(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the review functions that the viewer has, or decides for as a delegate."""
    own = list(query.viewer.places("reviewer"))
    if query.action == ReviewAdapter.action:
        own += [one.review_function for one in list_delegations(query.state, query.viewer.name, query.now)]
    return _plain(dict.fromkeys(own))


def _delegators(query: ChoiceQuery) -> Iterator[Choice]:
    for one in list_delegations(query.state, query.viewer.name, query.now):
        yield Choice(value=one.delegator, label=f"{one.delegator} ({one.review_function})")


def _findings(query: ChoiceQuery) -> Iterator[Choice]:
    for name, adapter in query.state.adapters.items():
        for one in adapter.findings:
            if one.closed is None:
                words = f"entry {one.index}: {one.severity} {one.kind}, {one.review_function}, found by {one.finder}"
                yield Choice(value=str(one.index), label=words, group=name)


def _suspensions(query: ChoiceQuery) -> Iterator[Choice]:
    for name, adapter in query.state.adapters.items():
        for one in adapter.suspensions:
            if one.lifted is None:
                words = f"entry {one.index}: {one.served_model or 'all served models'} of {one.unit}, by {one.by}"
                yield Choice(value=str(one.index), label=words, group=name)


def _entries(query: ChoiceQuery) -> Iterator[Choice]:
    return _suspensions(query) if query.action == ResumeRelease.action else _findings(query)


def _roles(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the roles of this log: review functions of the policy and of people, and an owner's role for each unit.

    A person who suspends a release names a role of their own. A role that is removed is one that somebody has.
    """
    if query.action == RemoveRole.action:
        for row in query.state.principals.values():
            if row.revoked is None and _fits(query, row):
                yield from (Choice(value=role, label=name_role(role), group=row.name) for role in row.roles)
        return
    if query.action == SuspendRelease.action:
        owned = (*query.viewer.places("release-owner"), "")
        yield from _name_roles(role for unit in owned for role in list_suspending_roles(query.viewer.roles, unit))
        return
    exclusive = [one for one in EXCLUSIVE_ROLES if one != "unit" or query.action not in _OF_PEOPLE]
    held = [role for row in query.state.principals.values() for role in row.roles]
    rules = query.state.parameters
    required = [*rules.required_functions, *(name for tier in rules.tiers for name in tier.required_functions)]
    yield from _name_roles(sorted({*exclusive, *PARTED_ROLES}))
    functions = {*(f"reviewer:{one}" for one in required), *(role for role in held if role.startswith("reviewer:"))}
    yield from _name_roles(sorted(functions))
    units = [row.name for row in query.state.principals.values() if row.has("unit")]
    yield from _name_roles(f"release-owner:{unit}" for unit in units)


def _name_roles(roles: Iterable[str]) -> Iterator[Choice]:
    return (Choice(value=role, label=name_role(role)) for role in roles)


_OF_PEOPLE = (Invite.action, EnrolWithPasskey.action)
"""Actions about people only."""


def _served(query: ChoiceQuery) -> Iterator[Choice]:
    for release in query.state.releases.values():
        yield Choice(
            value=release.served_model, label=f"{release.served_model}: {release.current.adapter}", group=release.unit
        )


def _holds(query: ChoiceQuery) -> Iterator[Choice]:
    if query.action == LiftHold.action:
        for hold in query.state.holds.values():
            yield Choice(value=hold.subject, label=f"{hold.subject}, held by {hold.signer} since entry {hold.index}")


def _applications(query: ChoiceQuery) -> Iterator[Choice]:
    for row in query.state.applications.values():
        if row.revoked is None:
            yield Choice(value=row.name, label=row.name, group=row.unit)


def _gates(query: ChoiceQuery) -> Iterator[Choice]:
    for one in list_gates(query.context):
        required = ", required by policy" if one.digest in query.state.parameters.required_gates else ""
        group = "shipped" if one.validation_set is None else "on validation sets"
        yield Choice(
            value=one.digest, label=f"{one.title}{required}", group=group if one.run is None else "of earlier runs"
        )


def _proofs(query: ChoiceQuery) -> Iterator[Choice]:
    """Yield the passkeys of accepted invitations."""
    if query.action == EnrolWithPasskey.action:
        for row in query.state.invitations.values():
            if row.keyid is not None and row.name not in query.state.principals:
                yield Choice(value=row.keyid, label=f"the passkey of {row.name}, entry {row.accepted}")


SOURCES: Mapping[str, Callable[[ChoiceQuery], Iterable[Choice]]] = {
    "adapter": _adapters,
    "application": _applications,
    "base": _bases,
    "classification": lambda query: _plain(query.state.parameters.classifications),
    "conditions.served_models": _served,
    "dataset": _datasets,
    "entry": _entries,
    "exposure": lambda query: _plain(query.state.parameters.exposures),
    "review_function": _functions,
    "gates": _gates,
    "keyid": _keys,
    "licence": lambda query: _plain(query.state.parameters.licences),
    "on_behalf_of": _delegators,
    "order": _orders,
    "owner": _principals,
    "possession": _proofs,
    "principal": _principals,
    "purpose": lambda query: _plain(query.state.parameters.purposes),
    "recipe.base": _bases,
    "recipe.baseline": _baselines,
    "recipe.dataset": _datasets,
    "role": _roles,
    "roles": _roles,
    "run": _runs,
    "subject": _holds,
    "served_model": _served,
    "tier": lambda query: _plain(tier.name for tier in query.state.parameters.tiers),
    "unit": _units,
    "validation_set": _validation_sets,
}
"""Source of the choices of each field that names something known."""
_OPEN = ("gates", "possession", "licence", "role", "roles", "conditions.served_models")
"""Fields that can have a value beside their list, in every action."""


def list_choices(query: ChoiceQuery, name: str) -> tuple[tuple[Choice, ...], bool]:
    """Return the choices of a field, and True if another value can be given beside them."""
    source = SOURCES.get(name)
    if source is None:
        return (), False
    found = tuple({(one.value, one.group): one for one in source(query)}.values())
    is_open = name in _OPEN or (name, query.action) == ("served_model", Activate.action)
    if query.action in (SuspendRelease.action, RemoveRole.action):
        is_open = False
    is_open = is_open or len(found) > MOST_LISTED
    return found[-MOST_LISTED:], is_open
