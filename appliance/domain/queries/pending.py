"""Pending items: the decisions and the work that wait for one person or unit; and the pending reviews of adapters."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.decisions import Delegation, ReviewRecord
from appliance.domain.core.names import Time, Value, add_seconds, versioned
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Release
from appliance.domain.core.state import State, Table
from appliance.domain.governance.countersignature import list_waiting_orders
from appliance.domain.governance.invitations import EnrolWithPasskey
from appliance.domain.releases.approval import (
    approved_by_activator,
    find_blockers,
    find_release_blockers,
    list_counted_approvals,
    list_refusals,
    refuse_makers,
    refuse_missing_approvals,
)
from appliance.domain.releases.requests import (
    compute_requirement,
    find_current_request,
    find_reattestation_deadline,
    find_review_deadline,
    find_tier,
)
from appliance.domain.releases.reviews import list_delegations
from appliance.domain.releases.suspensions import list_suspensions
from appliance.domain.releases.verdicts import is_open
from appliance.domain.runs.control import can_authorise

V = TypeVar("V")

SOON_S = 1_209_600
"""Seconds before the end of an approval or a key from which on its end is a pending item: 14 days."""
RECENT_RUNS = 2_000
"""Number of the log's last runs among which a person's failed runs are found."""

PREVIEW = "Answers to fetch"
ORDER = "Order to countersign"
INVITED = "Passkey to enrol"
AUTHORISE = "Run to authorise"
REVIEW = "Review"
FINDING = "Finding to resolve"
DECISION = "Decision on a request"
READY = "Ready for release"
RELEASE = "Release that does not serve"
ENDING = "Release that ends soon"
RENEW = "Approval to renew"
SUSPENSION = "Suspension to lift or to keep"
KEY = "Key that ends soon"
FAILED = "Run that failed"


class PendingItem(Value):
    """A pending item of a person or unit.

    `kind` is a title of this module. `subject` names what the item is about as entries do, such as `run:r-000001`.
    `unit` is set for a unit's adapter. `urgent` marks an item that keeps something from working.
    """

    kind: str
    subject: str
    text: str
    unit: str | None = None
    urgent: bool = False


@dataclass(frozen=True)
class PendingQuery:
    """The state, the time and the person or unit for which items are found.

    With `subjects`, only items about these are found.
    """

    state: State
    now: Time
    person: Principal
    subjects: Collection[str] | None

    def rows(self, kind: str, table: Table[V]) -> tuple[V, ...]:
        """Return the rows of a table about which items are found."""
        if self.subjects is None:
            return table.values()
        keys = (name for found, _, name in (one.partition(":") for one in self.subjects) if found == kind)
        return tuple(row for key in keys if (row := table.get(key)) is not None)

    def has_subject(self, subject: str) -> bool:
        """Return True if items about this subject are found."""
        return self.subjects is None or subject in self.subjects

    def newest_adapters(self) -> Iterator[Adapter]:
        """Return the adapters about which items are found, newest first."""
        return reversed(self.rows("adapter", self.state.adapters))

    def places(self, kind: str) -> tuple[str, ...]:
        """Return the parts after the colon of the person's roles of this kind."""
        return tuple(role.partition(":")[2] for role in self.person.roles if role.partition(":")[0] == kind)

    def is_soon(self, end: Time | None) -> bool:
        """Return True if this time is within the next `SOON_S` seconds."""
        return end is not None and self.now < end <= add_seconds(self.now, SOON_S)


def list_pending(
    state: State, now: Time, name: str, most: int | None = None, *, subjects: Collection[str] | None = None
) -> Iterator[PendingItem]:
    """Yield the pending items of a person or unit, at most `most` of each kind. A revoked one has none.

    With `subjects`, only the items about these, without work for others.
    """
    person = state.principals.get(name)
    if person is None or person.revoked is not None:
        return
    query = PendingQuery(state, now, person, subjects)
    for find in (
        *(_list_previews, _list_orders, _list_invited, _list_authorisations),
        *(_list_reviews, _list_findings, _list_decisions),
        *(_list_ready, _list_stopped, _list_suspensions, _list_ending, _list_approvals, _list_keys, _list_failed),
    ):
        yield from islice((item for item in find(query) if query.has_subject(item.subject)), most)


def _list_previews(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the person's own sample views and trials that have not ended."""
    for preview in query.rows("preview", query.state.previews):
        if preview.by == query.person.name:
            kind = "samples" if preview.kind == "samples" else "trial"
            yield PendingItem(kind=PREVIEW, subject=f"preview:{preview.order}", text=f"{kind} of {preview.adapter}")


def _list_orders(query: PendingQuery) -> Iterator[PendingItem]:
    for order in list_waiting_orders(query.state, query.now, query.person.name):
        about = ", ".join(one.removeprefix("principal:") for one in order.about if "sha256:" not in one)
        text = f"{ACTIONS[order.action].title}{f' ({about})' if about else ''}, ordered by {order.signer}"
        yield PendingItem(kind=ORDER, subject=f"order:{order.digest}", text=text)


def _list_invited(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the invited people whose passkey an administrator can enrol."""
    if not query.person.has("administrator"):
        return
    waiting = list_waiting_orders(query.state, query.now)
    ordered = {one for order in waiting if order.action == EnrolWithPasskey.action for one in order.about}
    for row in query.rows("principal", query.state.invitations):
        is_ordered = f"principal:{row.name}" in ordered
        if row.accepted is not None and row.name not in query.state.principals and not is_ordered:
            text = f"{row.name}, invited by {row.invited_by}, has made a passkey: compare its short code"
            yield PendingItem(kind=INVITED, subject=f"principal:{row.name}", text=text)


def _list_authorisations(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the runs that need a second person's authorisation, if this person can give it."""
    for run in query.rows("run", query.state.runs):
        if run.status == "waiting" and can_authorise(query.state, run, query.person):
            tier = f", tier {run.tier}" if run.tier else ""
            text = f"{run.id}, {run.name} by {run.ordered_by}{tier}"
            yield PendingItem(kind=AUTHORISE, subject=f"run:{run.id}", text=text)


def _list_reviews(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the adapters that the person can decide on, as a reviewer or as a delegate."""
    state, now, person = query.state, query.now, query.person
    if not query.places("reviewer") and not list_delegations(state, person.name, now):
        return
    for one in list_pending_reviews(state, now, person.name, adapters=query.newest_adapters()):
        about = f"{one.adapter} for {one.unit}" if one.unit else one.adapter
        tier = f", tier {one.tier}" if one.tier else ""
        place = f", in the place of {', '.join(one.in_place_of)}" if one.in_place_of else ""
        text = f"{about}{tier}: {one.approvals} of {one.required} approvals{place}"
        yield PendingItem(kind=REVIEW, subject=f"adapter:{one.adapter}", text=text, unit=one.unit)


def _list_findings(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the open findings that the person owns."""
    for adapter in query.newest_adapters():
        if not adapter.findings or adapter.revoked is not None:
            continue
        name = versioned(adapter.name, adapter.version)
        for one in adapter.findings:
            if one.owner == query.person.name and is_open(query.state, one):
                is_due = one.due <= query.now
                end = f"{'was due' if is_due else 'due'} {one.due[:10]}{', blocks releases' if one.blocks else ''}"
                text = f"{name}, entry {one.index}: {one.severity} {one.kind}, {one.review_function}; {end}"
                yield PendingItem(kind=FINDING, subject=f"adapter:{name}", text=text, urgent=one.blocks or is_due)


def _list_decisions(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the valid rejections and requests for changes on the person's current release requests."""
    state, now, person = query.state, query.now, query.person
    for adapter in query.newest_adapters():
        if not adapter.requests or adapter.revoked is not None:
            continue
        for unit in sorted({one.unit for one in adapter.requests if one.requested_by == person.name}):
            request = find_current_request(state, adapter, unit)
            if request is None or request.requested_by != person.name:
                continue
            for review in list_refusals(state, adapter, unit, now):
                name = versioned(adapter.name, adapter.version)
                words = "rejected it" if review.decision == "reject" else "requested changes"
                text = f"{name} for {unit}: {review.reviewer} ({review.review_function}) {words}"
                yield PendingItem(kind=DECISION, subject=f"adapter:{name}", text=text, unit=unit, urgent=True)


def _list_ready(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the approved adapters that the person can release."""
    units = query.places("release-owner")
    adapters = tuple(query.newest_adapters()) if units else ()
    for adapter, unit in list_unreleased(query.state, query.now, units, adapters) if adapters else ():
        if not approved_by_activator(query.state, adapter, unit, query.person.name, query.now):
            name = versioned(adapter.name, adapter.version)
            yield PendingItem(kind=READY, subject=f"adapter:{name}", text=f"{name} for {unit}", unit=unit)


class _Settled(NamedTuple):
    """A cached result for one adapter for which no decision or release was pending.

    It holds for this value of the adapter, at this revision of the state, until a time.
    """

    adapter: Adapter
    revision: int
    until: Time

    def counts(self, adapter: Adapter, revision: int, now: Time) -> bool:
        """Return True if the result holds for this value of the adapter, at this revision, now."""
        return self.adapter is adapter and self.revision == revision and now < self.until


_NEVER = "9999"
_BLOCKED: WeakKeyDictionary[State, dict[tuple[int, str], _Settled]] = WeakKeyDictionary()
"""Adapters that were blocked for a unit, by entry and unit, for each state.

While nothing changes, only the end of a request for changes makes such an adapter admissible.
"""


def list_unreleased(
    state: State, now: Time, units: tuple[str, ...] | None = None, adapters: Iterable[Adapter] | None = None
) -> Iterator[tuple[Adapter, str]]:
    """Yield the approved adapters that no release of the unit ever named, newest first, with the unit.

    With `units`, only those of these units; with `adapters`, only these, in their order.
    """
    named = {(release.unit, past.adapter) for release in state.releases.values() for past in release.history}
    known, revision = _BLOCKED.setdefault(state, {}), state.revision
    for adapter in reversed(state.adapters.values()) if adapters is None else adapters:
        if adapter.revoked is not None or not (adapter.reviews or adapter.requests):
            continue
        for unit in sorted({one.unit for one in adapter.reviews} | {one.unit for one in adapter.requests}):
            found = known.get((adapter.index, unit))
            if found is not None and found.counts(adapter, revision, now):
                continue
            if (units is not None and unit not in units) or (unit, versioned(adapter.name, adapter.version)) in named:
                continue
            if not find_blockers(state, adapter, unit, now):
                yield adapter, unit
            else:
                end = _find_end_of_changes(state, adapter, unit, now)
                known[adapter.index, unit] = _Settled(adapter, revision, end)


def _find_end_of_changes(state: State, adapter: Adapter, unit: str, now: Time) -> Time:
    """Return the time at which the unit's first request for changes ends."""
    changes = [one for one in adapter.reviews if one.unit == unit and one.decision == "request-changes"]
    ends = [find_reattestation_deadline(state, adapter, one) for one in changes]
    return min((end for end in ends if end is not None and now < end), default=_NEVER)


def _list_stopped(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the releases of the person's units, or of the unit itself, that are not active now."""
    units = (query.person.name,) if "unit" in query.person.roles else query.places("release-owner")
    for release in query.rows("release", query.state.releases) if units else ():
        adapter = query.state.adapters.get(release.current.adapter)
        if release.unit not in units or adapter is None:
            continue
        if reasons := find_release_blockers(query.state, release, adapter, query.now):
            key = f"{release.unit}/{release.served_model}"
            yield PendingItem(
                kind=RELEASE, subject=f"release:{key}", text=f"{key}: {reasons[0]}", unit=release.unit, urgent=True
            )


def _list_suspensions(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the valid suspensions that the person can lift with one signature."""
    for adapter in query.newest_adapters():
        if not adapter.suspensions or adapter.revoked is not None:
            continue
        name = versioned(adapter.name, adapter.version)
        for one in list_suspensions(query.state, adapter):
            if query.person.has(one.role) and not refuse_makers(adapter, query.person.name):
                text = f"{name} for {one.unit}, entry {one.index}: suspended by {one.by} ({one.role})"
                yield PendingItem(kind=SUSPENSION, subject=f"adapter:{name}", text=text, unit=one.unit)


def _list_ending(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the active releases of the person's units of which an approval ends soon."""
    units = query.places("release-owner")
    for release in query.rows("release", query.state.releases) if units else ():
        adapter = query.state.adapters.get(release.current.adapter)
        if release.unit not in units or adapter is None:
            continue
        end = find_release_end(query.state, release, adapter, query.now)
        if end and query.is_soon(end) and not find_release_blockers(query.state, release, adapter, query.now):
            key = f"{release.unit}/{release.served_model}"
            text = f"{key}, {release.current.adapter}: until {end[:10]}"
            yield PendingItem(kind=ENDING, subject=f"release:{key}", text=text, unit=release.unit)


def find_release_end(state: State, release: Release, adapter: Adapter, now: Time) -> Time | None:
    """Return the earliest end of a release's valid approvals and of the release itself, or None."""
    approvals = list_counted_approvals(state, adapter, release.unit, now)
    dates = [*(find_approval_end(state, adapter, one) for one in approvals), release.current.until]
    return min((date for date in dates if date is not None), default=None)


def find_approval_end(state: State, adapter: Adapter, review: ReviewRecord) -> Time | None:
    """Return the time at which an approval ends or has to be renewed, or None."""
    ends = [end for end in (review.valid_until, find_reattestation_deadline(state, adapter, review)) if end is not None]
    return min(ends, default=None)


def _list_approvals(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the person's approvals of released adapters that end soon."""
    state, seen = query.state, set[int]()
    for release in state.releases.values():
        name = release.current.adapter
        adapter = state.adapters.get(name) if query.has_subject(f"adapter:{name}") else None
        for one in () if adapter is None else adapter.reviews:
            is_own = one.reviewer == query.person.name and one.unit == release.unit and one.approves
            if not is_own or one.index in seen or adapter is None:
                continue
            end = find_approval_end(state, adapter, one)
            if (
                end is not None
                and query.is_soon(end)
                and one in list_counted_approvals(state, adapter, release.unit, query.now)
            ):
                seen.add(one.index)
                text = f"{name} for {release.unit}, {one.review_function}: until {end[:10]}"
                yield PendingItem(kind=RENEW, subject=f"adapter:{name}", text=text, unit=release.unit)


def _list_keys(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the person's rotated keys that end soon."""
    for key in query.state.keys.values():
        if key.principal == query.person.name and key.revoked is None and key.until and query.is_soon(key.until):
            text = f"{key.title} {key.keyid[7:19]}…, which you replaced: until {key.until[:10]}"
            yield PendingItem(kind=KEY, subject=f"principal:{key.principal}", text=text)


def _list_failed(query: PendingQuery) -> Iterator[PendingItem]:
    """Yield the person's failed runs that no later run of theirs for the same adapter name follows."""
    if query.subjects is not None and all(run.status != "failed" for run in query.rows("run", query.state.runs)):
        return
    later: dict[str, str | None] = {}
    for run in reversed(query.state.runs.values()[-RECENT_RUNS:]):
        if run.ordered_by != query.person.name:
            continue
        is_followed = run.name in later and (run.sweep is None or later[run.name] != run.sweep)
        if run.status == "failed" and not is_followed:
            yield PendingItem(kind=FAILED, subject=f"run:{run.id}", text=f"{run.id}, {run.name}")
        later.setdefault(run.name, run.sweep)


class PendingReview(Value):
    """An adapter that waits for approvals.

    `unit` is None until a release is requested. `mine` is true if the person may decide and has not. `in_place_of`
    lists the reviewers in whose place the person may decide.
    """

    adapter: str
    unit: str | None
    tier: str | None
    exposure: str | None
    purpose: str | None
    asked_by: str
    asked: Time | None
    until: Time | None
    approvals: int
    required: int
    open_findings: int
    mine: bool
    in_place_of: tuple[str, ...]
    entry: int


class _Decider(NamedTuple):
    """A person, whether they are a reviewer, and the valid delegations to them."""

    name: str
    is_reviewer: bool
    delegations: Sequence[Delegation]


_DECIDED: WeakKeyDictionary[State, dict[int, _Settled]] = WeakKeyDictionary()
"""Adapters that wait for no approvals, by their entry, for each state.

Most adapters were decided long ago, and are not evaluated again for each page.
"""


def list_pending_reviews(
    state: State,
    now: Time,
    name: str,
    *,
    before: int | None = None,
    everyone: bool = False,
    adapters: Iterable[Adapter] | None = None,
) -> Iterator[PendingReview]:
    """Yield the pending reviews, newest first: those on which this person can decide, or all with `everyone`.

    `before` is the entry of an adapter. Later adapters and that one are left out. With `adapters`, only these, in their
    order.
    """
    person = state.principals.get(name)
    is_reviewer = person is not None and any(role.startswith("reviewer:") for role in person.roles)
    decider = _Decider(name, is_reviewer, list_delegations(state, name, now))
    known, revision = _DECIDED.setdefault(state, {}), state.revision
    for adapter in reversed(state.adapters.values()) if adapters is None else adapters:
        found = known.get(adapter.index)
        if found is not None and found.counts(adapter, revision, now):
            continue
        if adapter.revoked is not None or adapter.quarantined is not None:
            continue
        units = _list_units(state, adapter)
        waiting = [unit for unit in units if _is_waiting(state, adapter, unit, now)]
        if not waiting:
            ends = [end for unit in units if unit is not None for end in _list_ends(state, adapter, unit, now)]
            known[adapter.index] = _Settled(adapter, revision, min(ends, default=_NEVER))
        elif before is None or adapter.index < before:
            rows = (_describe_review(state, now, decider, adapter, unit) for unit in waiting)
            yield from (one for one in rows if one.mine or everyone)


def _list_units(state: State, adapter: Adapter) -> list[str | None]:
    """Return the units of the release requests; otherwise those of the reviews, or None if nobody has named a unit."""
    requested = {request.unit for request in adapter.requests}
    current = sorted(unit for unit in requested if find_current_request(state, adapter, unit) is not None)
    found: list[str | None] = [*(current or sorted({review.unit for review in adapter.reviews} - requested))]
    return found or ([] if requested else [None])


def _is_waiting(state: State, adapter: Adapter, unit: str | None, now: Time) -> bool:
    """Return True if approvals are missing and nobody has rejected the adapter or requested changes."""
    if unit is None:
        return True
    refused = list_refusals(state, adapter, unit, now)
    return not refused and bool(refuse_missing_approvals(state, adapter, unit, now))


def _list_ends(state: State, adapter: Adapter, unit: str, now: Time) -> Iterator[Time]:
    """Yield the ends of the valid approvals, rejections and requests for changes."""
    decisions = (*list_counted_approvals(state, adapter, unit, now), *list_refusals(state, adapter, unit, now))
    ends = (find_approval_end(state, adapter, review) for review in decisions)
    yield from (end for end in ends if end is not None)


def _describe_review(state: State, now: Time, decider: _Decider, adapter: Adapter, unit: str | None) -> PendingReview:
    request = None if unit is None else find_current_request(state, adapter, unit)
    tier = None if request is None else find_tier(state.parameters, request)
    approved = [] if unit is None else list_counted_approvals(state, adapter, unit, now)
    decided = any(review.reviewer == decider.name for review in approved)
    can_decide = not decided and not refuse_makers(adapter, decider.name)
    places = {review.reviewer if (by := review.on_behalf_of) is None else by.principal for review in approved}
    in_place_of = tuple(
        one.delegator for one in decider.delegations if can_decide and can_replace(adapter, one, places)
    )
    return PendingReview(
        adapter=versioned(adapter.name, adapter.version),
        unit=unit,
        tier=None if tier is None else tier.name,
        exposure=None if request is None else request.exposure,
        purpose=None if request is None else request.purpose,
        asked_by=adapter.ordered_by if request is None else request.requested_by,
        asked=None if request is None else request.time,
        until=None if request is None else find_review_deadline(state.parameters, request),
        approvals=len(approved),
        required=compute_requirement(state.parameters, tier).reviewers,
        open_findings=sum(is_open(state, finding) for finding in adapter.findings),
        mine=can_decide and (decider.is_reviewer or bool(in_place_of)),
        in_place_of=in_place_of,
        entry=adapter.index,
    )


def can_replace(adapter: Adapter, delegation: Delegation, places: Container[str] = ()) -> bool:
    """Return True if a decision in the delegator's place can count.

    `places` are the people whose approval counts already.
    """
    return delegation.delegator not in places and not refuse_makers(adapter, delegation.delegator)
