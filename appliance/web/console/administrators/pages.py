"""The pages of health and storage, pending orders, people and policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any, Literal, get_args

from appliance.api.log import EntrySummary
from appliance.api.operations import ActiveJob, Check, EngineRow, ProcessRow, ServiceRow, StoredKind
from appliance.api.people import PendingOrder
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.decisions import Delegation
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import EXCLUSIVE_ROLES, Time
from appliance.domain.core.records.people import Application, Invitation, Key, Principal
from appliance.domain.core.state import State
from appliance.domain.governance.delegations import Delegate, refuse_delegate
from appliance.domain.governance.identities import BindIdentity, UnbindIdentity
from appliance.domain.governance.invitations import EnrolWithPasskey
from appliance.domain.governance.keys import ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.passkeys import EnrolPasskey
from appliance.domain.governance.people import Grant, RemoveRole, RevokePrincipal
from appliance.domain.queries.alarms import Alarm
from appliance.domain.queries.measures import seconds_between
from appliance.domain.releases.reviews import delegation_reasons
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import NotFound, Refusal
from appliance.formats.signatures.dsse import encode_envelope
from appliance.web.console.auditors.entry import read_order
from appliance.web.console.core.page import (
    PAGE_ROWS,
    CsvTable,
    FormLink,
    ListPage,
    NameQuery,
    Page,
    PageValue,
    Query,
    Viewer,
    columns,
)
from appliance.web.console.core.render import sign_link
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.operations.status import storage, work
from appliance.workflows.queries import people as people_queries
from appliance.workflows.queries.people import pending_orders, waiting_for

Tab = Literal["service", "storage", "checks"]


class StorageUsage(PageValue):
    """The disk usage of one kind of data."""

    name: str
    bytes: int
    count: int
    largest: str | None


class HealthQuery(Query):
    """The chosen tab. Only one is computed, because examining files or the machine is slow."""

    tab: Tab = "service"


class Health(PageValue):
    """The page of health. Only the fields of the chosen tab are filled."""

    tab: str
    tabs: tuple[str, ...]
    service: ServiceRow | None
    alarms: tuple[Alarm, ...]
    engine: EngineRow | None
    jobs: tuple[ActiveJob, ...]
    processes: tuple[ProcessRow, ...]
    checks: tuple[Check, ...]
    kinds: tuple[StorageUsage, ...]
    bytes: int
    disk_bytes: int
    free_bytes: int


Examine = Callable[[], Iterable[Check]]
"""Function that computes the findings of `appliance doctor`."""


def health(examine: Examine, context: RunContext, viewer: Viewer, query: HealthQuery) -> Health:
    """Return the chosen tab."""
    found = work(context) if query.tab == "service" else None
    stored = storage(context) if query.tab == "storage" else None
    return Health(
        tab=query.tab,
        tabs=get_args(Tab),
        service=None if found is None else found.service,
        alarms=() if found is None else found.alarms,
        engine=None if found is None else found.engine,
        jobs=() if found is None else found.jobs,
        processes=() if found is None else found.processes,
        checks=tuple(examine()) if query.tab == "checks" else (),
        kinds=() if stored is None else tuple(_kind(name, kind) for name, kind in stored.kinds.items()),
        bytes=0 if stored is None else stored.bytes,
        disk_bytes=0 if stored is None else stored.disk.bytes,
        free_bytes=0 if stored is None else stored.disk.free_bytes,
    )


def _kind(name: str, kind: StoredKind) -> StorageUsage:
    largest = max(kind.items, key=lambda item: item.bytes, default=None)
    return StorageUsage(
        name=name, bytes=kind.bytes, count=len(kind.items), largest=None if largest is None else largest.name
    )


def _health_table(value: Health) -> CsvTable:
    if value.tab == "storage":
        return CsvTable(("kind", "bytes", "count", "largest"), [list(one.model_dump().values()) for one in value.kinds])
    headers = tuple(field.name for field in fields(Check))
    return CsvTable(headers, [[getattr(one, name) for name in headers] for one in value.checks])


def make_health_page(examine: Examine) -> Page:
    """Return the page of health and storage."""
    return Page("/health", "Health and storage", partial(health, examine), _health_table, group="Site", symbol="health")


class OrderRow(PendingOrder):
    """A pending order in words. `can_countersign` is true if the viewer can."""

    title: str
    meaning: str | None
    lines: tuple[tuple[str, str], ...]
    technical: tuple[tuple[str, str], ...]
    """Values of the order that are folded."""
    can_countersign: bool


def orders(context: LedgerContext, viewer: Viewer, query: Query) -> ListPage[OrderRow]:
    """Return the pending orders."""
    mine = {one.order for one in waiting_for(context, viewer.name)}
    rows = []
    for one in pending_orders(context):
        texts = {text.commitment: text.text for text in one.disclosures}
        meaning, lines = read_order(encode_envelope(one.envelope), texts)
        rows.append(
            OrderRow(
                **dict(one),
                title=ACTIONS[one.action].title,
                meaning=meaning,
                lines=tuple(line for line in lines if not _is_technical(*line)),
                technical=tuple(line for line in lines if _is_technical(*line)),
                can_countersign=one.digest in mine,
            )
        )
    return ListPage[OrderRow](rows=tuple(rows))


def _is_technical(label: str, text: str) -> bool:
    """Return True for a value by which nobody decides, as on the page before a signature."""
    return label in _TECHNICAL or text.startswith(("sha256:", "hmac-sha256:"))


_TECHNICAL = ("action", "origin", "signer", "nonce", "made", "expires", "key", "credential id")
"""Labels of technical values of an order."""


_COLUMNS = ("digest", "action", "signer", "index", "expires_at")
"""Columns of the table of orders."""
ORDERS_PAGE = Page("/orders", "Waiting orders", orders, columns("rows", *_COLUMNS), group="Site", symbol="order")


class PeopleQuery(Query):
    """`after` is the last name on the previous page."""

    after: str | None = None


class PersonRow(PageValue):
    """A person or unit in the list."""

    principal: Principal
    printed_name: str | None


class InvitationRow(PageValue):
    """An invitation that is open, or whose person has made a passkey.

    `waiting` is the order that enrols the passkey, once one administrator has signed it.
    """

    invitation: Invitation
    printed_name: str | None
    waiting: str | None
    can_countersign: bool


class People(ListPage[PersonRow]):
    """The page of people and units."""

    invitations: tuple[InvitationRow, ...]


def people(context: LedgerContext, viewer: Viewer, query: PeopleQuery) -> People:
    """Return the people and units by name."""
    rest = sorted(
        (one for one in context.ledger.state.principals.values() if query.after is None or one.name > query.after),
        key=attrgetter("name"),
    )
    shown = rest[: PAGE_ROWS + 1]
    names = context.ledger.disclosures([one.printed_name for one in shown if one.printed_name])
    rows = (
        PersonRow(principal=one, printed_name=names[one.printed_name].text if one.printed_name in names else None)
        for one in shown
    )
    invited = tuple(_invitations(context, viewer)) if query.after is None else ()
    return People.of(rows, attrgetter("principal.name"), invitations=invited)


def _invitations(context: LedgerContext, viewer: Viewer) -> Iterator[InvitationRow]:
    """Yield the invitations that are open or accepted, of people who are not enrolled."""
    state = context.ledger.state
    now = context.now(state)
    found = [one for one in state.invitations.values() if one.is_valid(now)]
    names = context.ledger.disclosures([one.printed_name for one in found])
    ordered = {order.keyid: row for row, order in people_queries.list_waiting(context, EnrolWithPasskey)}
    for one in found:
        if one.name in state.principals:
            continue
        order = ordered.get(one.keyid or "")
        yield InvitationRow(
            invitation=one,
            printed_name=names[one.printed_name].text if one.printed_name in names else None,
            waiting=None if order is None else order.digest,
            can_countersign=order is not None and viewer.has("administrator") and viewer.name != order.signer,
        )


class KeyRow(PageValue):
    """A key of a person or unit.

    `is_valid` is true while it is valid, and `revoke` is set if the viewer can revoke it.
    """

    title: str
    keyid: str
    is_passkey: bool
    enrolled: int
    enrolled_at: str
    age_s: int
    until: str | None
    revoked: int | None
    distrusted: int | None
    is_valid: bool
    revoke: FormLink | None


class IdentityRow(PageValue):
    """The provider at which a person is bound to a subject, and the entry that bound them."""

    issuer: str
    entry: int


class DelegationRow(PageValue):
    """A delegation. `ended` says why it is not valid now, and `end` is set if the viewer can end it."""

    delegation: Delegation
    ended: Refusal | None
    end: FormLink | None


class PersonPage(PageValue):
    """The page of a person or unit."""

    principal: Principal
    printed_name: str | None
    identity: IdentityRow | None
    keys: tuple[KeyRow, ...]
    applications: tuple[Application, ...]
    given: tuple[DelegationRow, ...]
    """Delegations by which others decide in this person's place."""
    received: tuple[DelegationRow, ...]
    """Delegations by which this person decides in the place of others."""
    actions: tuple[FormLink, ...]


def person(context: LedgerContext, viewer: Viewer, query: NameQuery) -> PersonPage:
    """Return the page of a person or unit.

    Raises: NotFound for a name that was never enrolled.
    """
    state = context.ledger.state
    found = state.principals.get(query.name)
    if found is None:
        raise NotFound(f"principal: expected an enrolled one, got {query.name}")
    now = context.now(state)
    names = context.ledger.disclosures([found.printed_name] if found.printed_name else [])
    delegations = [one for one in state.delegations.values() if found.name in (one.delegator, one.delegate)]
    bound = state.identities.get(found.name)
    return PersonPage(
        principal=found,
        printed_name=names[found.printed_name].text if found.printed_name in names else None,
        identity=None if bound is None else IdentityRow(issuer=bound.issuer, entry=bound.index),
        keys=tuple(_key(viewer, key, now) for key in state.keys.values() if key.principal == found.name),
        applications=tuple(one for one in state.applications.values() if one.unit == found.name),
        given=tuple(_delegation(state, viewer, one, now) for one in delegations if one.delegator == found.name),
        received=tuple(_delegation(state, viewer, one, now) for one in delegations if one.delegate == found.name),
        actions=tuple(_list_actions(state, viewer, found)),
    )


def _key(viewer: Viewer, key: Key, now: Time) -> KeyRow:
    can_revoke = key.revoked is None and (viewer.name == key.principal or viewer.has("administrator"))
    revoke = sign_link(RevokeKey, f"Revoke {key.title}", principal=key.principal, keyid=key.keyid)
    return KeyRow(
        title=key.title,
        keyid=key.keyid,
        is_passkey=key.passkey is not None,
        enrolled=key.enrolled,
        enrolled_at=key.enrolled_at,
        age_s=seconds_between(key.enrolled_at, now),
        until=key.until,
        revoked=key.revoked,
        distrusted=key.distrusted,
        is_valid=key.is_valid(now),
        revoke=revoke if can_revoke else None,
    )


def _delegation(state: State, viewer: Viewer, one: Delegation, now: Time) -> DelegationRow:
    end = sign_link(Delegate, "End it", principal=one.delegate, review_function=one.review_function)
    ended = next(iter(delegation_reasons(state, one, now)), None)
    can_end = ended is None and viewer.name == one.delegator
    return DelegationRow(delegation=one, ended=ended, end=end if can_end else None)


def _list_actions(state: State, viewer: Viewer, found: Principal) -> Iterator[FormLink]:
    """Yield what the viewer can do with a person or unit. A revoked one stays revoked."""
    if found.revoked is not None:
        return
    functions, is_own = viewer.places("reviewer"), viewer.name == found.name
    if functions and (is_own or not ("unit" in found.roles or refuse_delegate(state, found.name))):
        given = {} if is_own else {"principal": found.name}
        given |= {"review_function": functions[0]} if len(functions) == 1 else {}
        yield sign_link(Delegate, "Delegate a review function" if is_own else f"Delegate to {found.name}", **given)
    if is_own:
        yield sign_link(RotateKey, "Rotate your key")
    if "unit" in found.roles and (viewer.has("administrator") or found.name in viewer.places("release-owner")):
        yield sign_link(RevokeTokens, "Revoke tokens", unit=found.name)
    if viewer.has("administrator"):
        yield from _list_administrator_actions(state, found)


def _list_administrator_actions(state: State, found: Principal) -> Iterator[FormLink]:
    if not set(found.roles) & set(EXCLUSIVE_ROLES):
        yield sign_link(Grant, principal=found.name)
    if len(found.roles) > 1:
        yield sign_link(RemoveRole, principal=found.name)
    if "unit" not in found.roles:
        yield sign_link(BindIdentity, principal=found.name)
        if found.name in state.identities:
            yield sign_link(UnbindIdentity, principal=found.name)
    yield sign_link(ReplaceKey, "Replace a lost key")
    yield sign_link(EnrolPasskey, "Add a passkey")
    yield sign_link(RevokePrincipal, f"Revoke {found.name}", principal=found.name)


def _keys_table(value: PersonPage) -> CsvTable:
    headers = tuple(name for name in KeyRow.model_fields if name != "revoke")
    return CsvTable(headers, [[getattr(one, name) for name in headers] for one in value.keys])


_OF_PEOPLE = ("principal.name", "printed_name", "principal.roles", "principal.enrolled", "principal.revoked")
"""Columns of the table of people."""
PEOPLE_PAGE = Page("/people", "People and units", people, columns("rows", *_OF_PEOPLE), group="Site", symbol="people")
PERSON = Page("/people/{name}", "Person", person, _keys_table)


_ADOPTED = ("appliance.initialized", "policy.adopted")
"""Types of entries that make a policy set valid."""


class PolicyPage(PageValue):
    """The page of the valid policy set."""

    digest: str
    name: str
    parameters: dict[str, Any]
    cedar: str
    rules: int
    newest_rules: int
    adopted: tuple[EntrySummary, ...]


def policy(context: LedgerContext, viewer: Viewer, query: Query) -> PolicyPage:
    """Return the valid policy set and when sets were adopted."""
    found, rules = people_queries.policy(context), people_queries.rules(context)
    entries = [parse_entry(data) for _, data in context.ledger.find(types=_ADOPTED, newest=True, limit=PAGE_ROWS)]
    return PolicyPage(
        digest=found.digest,
        name=found.policy.name,
        parameters=found.policy.parameters.model_dump(mode="json"),
        cedar=found.policy.cedar,
        rules=rules.version,
        newest_rules=rules.newest,
        adopted=tuple(EntrySummary(entry=one.index, time=one.time, actor=one.actor, type=one.type) for one in entries),
    )


def _policy_table(value: PolicyPage) -> CsvTable:
    return CsvTable(("parameter", "value"), list(value.parameters.items()))


POLICY_PAGE = Page("/policy", "Policy", policy, _policy_table, group="Site", symbol="policy")
