"""The registry of verbs and events: the one table that everything else asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.domain.core.event import Event
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.roles import Reasons
from appliance.domain.core.signatures import OrderReader
from appliance.domain.core.state import State
from appliance.domain.core.verb import NEWEST_RULES, EventRule, Rule, Verb
from appliance.domain.data import bases, datasets, imports, validation_sets
from appliance.domain.governance import (
    clock,
    delegations,
    endorsement,
    keys,
    log_keys,
    passkeys,
    people,
    policies,
    rules,
    service,
    sessions,
)
from appliance.domain.operations import integrity
from appliance.domain.releases import (
    activations,
    adapters,
    emergencies,
    exports,
    findings,
    looks,
    requests_for_release,
    reviews,
)
from appliance.domain.retention import holds, texts
from appliance.domain.runs import authorisation, cancellation, checkpoints, replays, resumption, training
from appliance.domain.serving import applications, requests, slots, tokens
from appliance.domain.witnesses import cosignatures
from appliance.errors import BadInput, Denied

_VERBS: tuple[Verb, ...] = (
    *people.VERBS, *keys.VERBS, *passkeys.VERBS, *log_keys.VERBS, *policies.VERBS, *rules.VERBS, *clock.VERBS,
    *endorsement.VERBS, *delegations.VERBS,
    *texts.VERBS, *holds.VERBS,
    *imports.VERBS, *bases.VERBS, *datasets.VERBS, *validation_sets.VERBS,
    *training.VERBS, *authorisation.VERBS, *cancellation.VERBS, *resumption.VERBS, *replays.VERBS,
    *adapters.VERBS, *requests_for_release.VERBS, *findings.VERBS, *looks.VERBS, *reviews.VERBS, *activations.VERBS,
    *emergencies.VERBS, *exports.VERBS,
    *applications.VERBS, *tokens.VERBS,
)  # fmt: skip
_EVENTS: tuple[EventRule, ...] = (
    *service.EVENTS, *sessions.EVENTS, *endorsement.EVENTS,
    *cosignatures.EVENTS,
    *imports.EVENTS, *bases.EVENTS, *datasets.EVENTS, *validation_sets.EVENTS,
    *training.EVENTS, *checkpoints.EVENTS, *resumption.EVENTS, *replays.EVENTS,
    *adapters.EVENTS, *looks.EVENTS,
    *applications.EVENTS, *slots.EVENTS, *requests.EVENTS,
    *integrity.EVENTS,
)  # fmt: skip


@dataclass(frozen=True)
class Book:
    """The rules of one version: every verb by its name, and by the type of entry how it changes the state."""

    verbs: Mapping[str, Verb]
    rules: Mapping[str, Rule]


def make_book(version: int, verbs: Iterable[Verb] = _VERBS, events: Iterable[EventRule] = _EVENTS) -> Book:
    """Of each verb and event the latest row that counts in this version.

    TypeError where two verbs would record the same type of entry by different rules: a mistake in a family.
    """
    known = {row.name: row for row in sorted(verbs, key=_since) if row.since <= version}
    rules: dict[str, Rule] = {row.event.type: row.apply for row in sorted(events, key=_since) if row.since <= version}
    for verb in known.values():
        if verb.event is None or verb.apply is None:
            continue
        if rules.setdefault(verb.event.type, verb.apply) is not verb.apply:
            raise TypeError(f"{verb.event.type}: expected one rule, got {rules[verb.event.type]} and {verb.apply}")
    return Book(known, rules)


def _since(row: Verb | EventRule) -> int:
    return row.since


BOOKS: dict[int, Book] = {version: make_book(version) for version in range(1, NEWEST_RULES + 1)}
"""The rules of every version that this build knows."""
VERBS = BOOKS[NEWEST_RULES].verbs
"""Every verb by its name, as this build knows it best: what it means, and what an order of it carries."""
EVENTS: Mapping[str, type[Event]] = {
    event.type: event
    for event in (*(row.event for row in _EVENTS), *(verb.event for verb in _VERBS))
    if event is not None
}
"""Every type of entry, by its name, as the class of its body."""
ORDERS = OrderReader({verb.name: verb.order for verb in VERBS.values()})
"""Reads every order that this build knows."""


def book_of(state: State) -> Book:
    """The rules in force; BadInput where the log is under a later version than this build knows."""
    site = state.sites.get("site")
    version = 1 if site is None else site.rules
    book = BOOKS.get(version)
    if book is None:
        raise BadInput(
            f"rules: expected version {NEWEST_RULES} at most, got {version}: this build is older than the log"
        )
    return book


def reasons_against(state: State, order: Order, now: Time) -> Reasons:
    """Every reason against an authentic order; empty when it is allowed. `now` is the entry's time: the later
    of the clock and the last entry. Site policies (`access`) may only tighten what the invariants say."""
    signer = state.principals.get(order.signer)
    if signer is None or signer.revoked is not None:
        return [f"signer: expected a standing principal, got {order.signer}"]
    verb = book_of(state).verbs.get(order.verb)
    if verb is None:
        return [f"verb: expected one of rules version {state.site.rules}, got {order.verb}, which a later one brings"]
    return verb.may(state, order, signer, now)


def verb_of(state: State, order: Order) -> Verb:
    """The order's row under the rules in force; Denied for one that a later version brings."""
    verb = book_of(state).verbs.get(order.verb)
    if verb is None:
        raise Denied(f"verb: expected one of rules version {state.site.rules}, got {order.verb}")
    return verb


def events_of(verb: Verb) -> tuple[type[Event], ...]:
    """What an order of the verb can become, once it is signed: pending, then its own event."""
    pending = (endorsement.OrderPending,) if verb.two_administrators else ()
    return pending if verb.event is None else (*pending, verb.event)
