"""The impact of an order on releases: what an activation would replace, and the releases that an order would stop.

An activation is shown with the dates and conditions that would limit it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from appliance.domain.actions.apply import try_order
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.decisions import Conditions, ReleaseRequest, ReviewRecord
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.records.serving import Release
from appliance.domain.core.state import State
from appliance.domain.releases.approval import find_release_blockers
from appliance.errors import ApplianceError, Refusal
from appliance.reports.review.words import describe_conditions

Fact = tuple[str, str]
"""A label and its text."""


class Term(NamedTuple):
    """A release request or a valid approval, recorded by `entry`, on which an activation rests.

    `ends` are the dates at which it expires or must be renewed.
    """

    source: str
    entry: int
    conditions: Conditions | None
    ends: tuple[Time, ...] = ()


def list_terms(request: ReleaseRequest | None, approvals: Iterable[tuple[ReviewRecord, Time | None]]) -> list[Term]:
    """Return the terms of a release by the unit's valid request and its valid approvals.

    Each approval comes with the time by which it must be renewed.
    """
    terms = [] if request is None else [Term("request", request.index, request.conditions)]
    for review, again_by in approvals:
        ends = tuple(end for end in (review.valid_until, again_by) if end is not None)
        terms.append(Term("approval", review.index, review.conditions, ends))
    return terms


def describe_activation(current: Release | None, terms: Sequence[Term]) -> tuple[Fact, ...]:
    """Return the version that an activation replaces, the date at which it ends first, and its conditions."""
    return (("replaces", _describe_current(current)), ("until", _describe_end(terms)), *_list_conditions(terms))


def _describe_current(current: Release | None) -> str:
    if current is None:
        return "nothing: no version was active under this name"
    active = current.current
    kind = "" if active.kind == "activate" else f" ({active.kind})"
    return f"{active.adapter}, active by entry {active.index} of {active.signer}{kind}"


def _describe_end(terms: Iterable[Term]) -> str:
    found = [(end, term.entry) for term in terms for end in term.ends]
    for term in terms:
        if term.conditions is not None and term.conditions.not_after is not None:
            found.append((term.conditions.not_after, term.entry))
    if not found:
        return "no valid approval"
    end, entry = min(found)
    return f"{end}, the first date that ends it, by entry {entry}"


def _list_conditions(terms: Iterable[Term]) -> list[Fact]:
    found = [
        (f"condition of {term.source} {term.entry}", describe_conditions(term.conditions))
        for term in terms
        if term.conditions is not None
    ]
    return found or [("conditions", "none")]


_MOST_NAMED = 10


def describe_stop(state: State, order: Order, now: Time) -> tuple[Fact, ...]:
    """Return the releases that serve now and that the order stops, each with the reason and its remedy.

    An order that waits for a second administrator is described as it takes effect. The result is empty if no release
    stops, if the order would be refused, and for an order that binds a document.
    """
    if not ACTIONS[order.action].recheck_slots:
        return ()
    try:
        after = try_order(state, order, now)
    except ApplianceError:
        return ()  # it takes no effect; the page names the reasons of a refusal
    stopped: dict[tuple[str, str], list[str]] = {}
    for release, reason in _list_stopped(state, after, now):
        text = _name_entry(str(reason), state.size)
        stopped.setdefault((release.current.adapter, text), []).append(f"{release.served_model} for {release.unit}")
    facts = [
        ("stops", f"{_shorten(names)}, where {adapter} serves now. {reason}")
        for (adapter, reason), names in sorted(stopped.items())
    ]
    more = len(facts) - _MOST_NAMED
    return (*facts[:_MOST_NAMED], *([("stops", f"releases of {more} more versions")] if more > 0 else []))


def _list_stopped(state: State, after: State, now: Time) -> Iterator[tuple[Release, Refusal]]:
    """Yield the releases that are blocked after an order and not before it, each with its first blocker."""
    for release in state.releases.values():
        before = _find_blocker(state, release, now)
        blocker = _find_blocker(after, release, now)
        if before is None and blocker is not None:
            yield release, blocker


def _find_blocker(state: State, release: Release, now: Time) -> Refusal | None:
    adapter = state.adapters.get(release.current.adapter)
    blockers = [] if adapter is None else find_release_blockers(state, release, adapter, now)
    return blockers[0] if blockers else None


def _name_entry(text: str, index: int) -> str:
    """Return the text with `this entry` for the number that the order's entry may get, since others may come first."""
    return re.sub(rf"\b([Ee]ntry|[Ff]inding|[Rr]eview|[Rr]equest) {index}\b", _name_without_number, text)


def _name_without_number(found: re.Match[str]) -> str:
    return f"{'This' if found[1][0].isupper() else 'this'} {found[1].lower()}"


def _shorten(names: list[str]) -> str:
    """Return the first names in order, and the number of the others."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(sorted(names)[:_MOST_NAMED])}{more}"
