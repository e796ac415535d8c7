"""The pending reviews: adapters without the required approvals, and whether a person may decide on them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from appliance.domain.core.decisions import Delegation
from appliance.domain.core.names import Time, Value, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.approval import (
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
from appliance.domain.releases.verdicts import is_open


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


class _Settled(NamedTuple):
    """A cached result for one adapter that had no pending decision.

    It holds for this value of the adapter, at this revision of the state, until a time.
    """

    adapter: Adapter
    revision: int
    until: Time

    def counts(self, adapter: Adapter, revision: int, now: Time) -> bool:
        """Return True if the result holds for this value of the adapter, at this revision, now."""
        return self.adapter is adapter and self.revision == revision and now < self.until


_NEVER = "9999"
_SETTLED: WeakKeyDictionary[State, dict[int, _Settled]] = WeakKeyDictionary()
"""Cached results by the adapter's entry, for each state.

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
    known, revision = _SETTLED.setdefault(state, {}), state.revision
    for adapter in reversed(state.adapters.values()) if adapters is None else adapters:
        found = known.get(adapter.index)
        if found is not None and found.counts(adapter, revision, now):
            continue
        if adapter.revoked is not None or adapter.quarantined is not None:
            continue
        units = _units(state, adapter)
        waiting = [unit for unit in units if _waits(state, adapter, unit, now)]
        if not waiting:
            ends = [end for unit in units if unit is not None for end in _ends(state, adapter, unit, now)]
            known[adapter.index] = _Settled(adapter, revision, min(ends, default=_NEVER))
        elif before is None or adapter.index < before:
            rows = (_describe(state, now, decider, adapter, unit) for unit in waiting)
            yield from (one for one in rows if one.mine or everyone)


def _units(state: State, adapter: Adapter) -> list[str | None]:
    """Return the units of the release requests; otherwise those of the reviews, or None if nobody has named a unit."""
    requested = {request.unit for request in adapter.requests}
    current = sorted(unit for unit in requested if find_current_request(state, adapter, unit) is not None)
    found: list[str | None] = [*(current or sorted({review.unit for review in adapter.reviews} - requested))]
    return found or ([] if requested else [None])


def _waits(state: State, adapter: Adapter, unit: str | None, now: Time) -> bool:
    """Return True if approvals are missing and nobody has rejected the adapter or requested changes."""
    if unit is None:
        return True
    refused = list_refusals(state, adapter, unit, now)
    return not refused and bool(refuse_missing_approvals(state, adapter, unit, now))


def _ends(state: State, adapter: Adapter, unit: str, now: Time) -> Iterator[Time]:
    """Yield the ends of the valid approvals, rejections and requests for changes."""
    decisions = (*list_counted_approvals(state, adapter, unit, now), *list_refusals(state, adapter, unit, now))
    for review in decisions:
        yield from (
            end for end in (review.valid_until, find_reattestation_deadline(state, adapter, review)) if end is not None
        )


def _describe(state: State, now: Time, decider: _Decider, adapter: Adapter, unit: str | None) -> PendingReview:
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
