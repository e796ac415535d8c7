"""The action registry: all kinds of orders and events with their rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.domain import operations, retention, witnesses
from appliance.domain.core.action import NEWEST_RULES, Action, EventRule, Rule
from appliance.domain.core.entry import Event
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.roles import Reasons, require_enrolled
from appliance.domain.core.signatures import OrderReader
from appliance.domain.core.state import State
from appliance.domain.data import artifacts, imports
from appliance.domain.governance import (
    countersignature,
    delegations,
    identities,
    invitations,
    keys,
    log_control,
    passkeys,
    people,
    policies,
    post_quantum,
    recovery,
    restoration,
    service,
    sessions,
)
from appliance.domain.releases import activations, adapters, exports, findings, previews, reviews, suspensions
from appliance.domain.releases import requests as requests_for_release
from appliance.domain.runs import conditions, control, replays, training
from appliance.domain.serving import requests, slots, tokens
from appliance.errors import BadInput, Denied, RefusalCode

ACTION_LATER = RefusalCode(
    "action-later",
    "state",
    "The action {action} does not exist in rules version {rules}, which is valid for this log.",
    "Have two administrators raise the rules version: appliance rules raise.",
)

_ACTIONS: tuple[Action, ...] = (
    *people.ACTIONS, *keys.ACTIONS, *passkeys.ACTIONS, *invitations.ACTIONS,
    *identities.ACTIONS, *recovery.ACTIONS,
    *log_control.LOG_KEY_ACTIONS, *post_quantum.ACTIONS, *policies.ACTIONS,
    *log_control.RULES_ACTIONS, *log_control.CLOCK_ACTIONS, *restoration.ACTIONS,
    *countersignature.ACTIONS, *delegations.ACTIONS,
    *retention.ACTIONS,
    *imports.ACTIONS, *artifacts.ACTIONS,
    *training.ACTIONS, *control.AUTHORISATION_ACTIONS, *control.CANCELLATION_ACTIONS, *control.RESUMPTION_ACTIONS,
    *replays.ACTIONS,
    *adapters.ACTIONS, *requests_for_release.ACTIONS, *findings.ACTIONS, *previews.ACTIONS, *reviews.ACTIONS,
    *activations.ACTIONS, *activations.EMERGENCY_ACTIONS, *suspensions.ACTIONS, *exports.ACTIONS,
    *tokens.APPLICATION_ACTIONS, *tokens.ACTIONS,
)  # fmt: skip
_EVENTS: tuple[EventRule, ...] = (
    *service.EVENTS, *sessions.EVENTS, *invitations.EVENTS, *countersignature.EVENTS,
    *witnesses.EVENTS,
    *imports.EVENTS, *artifacts.EVENTS,
    *training.EVENTS, *conditions.EVENTS, *control.EVENTS, *replays.EVENTS,
    *adapters.EVENTS, *previews.EVENTS,
    *tokens.EVENTS, *slots.EVENTS, *requests.EVENTS,
    *operations.EVENTS,
)  # fmt: skip


@dataclass(frozen=True)
class RuleSet:
    """The rules of one version: every action by its name, and the rule of every type of entry."""

    actions: Mapping[str, Action]
    rules: Mapping[str, Rule]


def make_rule_set(version: int, actions: Iterable[Action] = _ACTIONS, events: Iterable[EventRule] = _EVENTS) -> RuleSet:
    """Return the rules of a version: the latest row of each action and event that applies to it.

    Raises: TypeError if two actions would record the same type of entry by different rules, which is a defect.
    """
    known = {row.name: row for row in sorted(actions, key=_since) if row.since <= version}
    rules: dict[str, Rule] = {row.event.type: row.apply for row in sorted(events, key=_since) if row.since <= version}
    for action in known.values():
        if action.event is None or action.apply is None:
            continue
        if rules.setdefault(action.event.type, action.apply) is not action.apply:
            raise TypeError(
                f"{action.event.type}: expected one rule, got {rules[action.event.type]} and {action.apply}"
            )
    return RuleSet(known, rules)


def _since(row: Action | EventRule) -> int:
    return row.since


RULE_SETS: dict[int, RuleSet] = {version: make_rule_set(version) for version in range(1, NEWEST_RULES + 1)}
"""The rules of every version that this build implements."""
ACTIONS = RULE_SETS[NEWEST_RULES].actions
"""Every action by its name, in the newest version of the rules."""
EVENTS: Mapping[str, type[Event]] = {
    event.type: event
    for event in (*(row.event for row in _EVENTS), *(action.event for action in _ACTIONS))
    if event is not None
}
"""The class of the body of every type of entry, by the name of the type."""
ORDERS = OrderReader({action.name: action.order for action in ACTIONS.values()})
"""A reader of every order that this build supports."""


def find_rule_set(state: State) -> RuleSet:
    """Return the rules that are valid for the log.

    Raises: BadInput if the log's version is later than those that this build implements.
    """
    site = state.sites.get("site")
    version = 1 if site is None else site.rules
    book = RULE_SETS.get(version)
    if book is None:
        raise BadInput(
            f"rules: expected version {NEWEST_RULES} at most, got {version}: this build is older than the log"
        )
    return book


def list_refusal_reasons(state: State, order: Order, now: Time) -> Reasons:
    """Return the refusal reasons of an authentic order; an empty list allows it.

    A signer who may not sign such an order gets this one reason: other reasons would tell facts that the signer may not
    read, and cost time to find. `now` is the entry's time: the later of the clock and the last entry. Cedar policies
    (`access`) can only add reasons.
    """
    refused, signer = refuse_signer(state, order), state.principals.get(order.signer)
    return refused if refused or signer is None else find_action(state, order).authorise(state, order, signer, now)


def refuse_signer(state: State, order: Order) -> Reasons:
    """Return one refusal reason if the order's signer may not sign such an order, else an empty list."""
    signer = state.principals.get(order.signer)
    if signer is None or signer.revoked is not None:
        return require_enrolled(state, order.signer)
    action = find_rule_set(state).actions.get(order.action)
    if action is None:
        return [ACTION_LATER(action=order.action, rules=state.site.rules)]
    return action.refuse_signer(order, signer)


def find_action(state: State, order: Order) -> Action:
    """Return the order's row under the valid rules.

    Raises: Denied for an order that only a later version has.
    """
    action = find_rule_set(state).actions.get(order.action)
    if action is None:
        refused = ACTION_LATER(action=order.action, rules=state.site.rules)
        raise Denied(f"order {order.action} by {order.signer}", refusals=(refused,))
    return action


def list_events(action: Action) -> tuple[type[Event], ...]:
    """Return the events that a signed order of the action can cause: pending, then its own."""
    pending = (countersignature.OrderPending,) if action.two_administrators else ()
    return pending if action.event is None else (*pending, action.event)
