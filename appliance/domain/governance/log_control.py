"""Orders about the log itself: reset of its clock, version of its rules, and rotation of its key.

Two administrators set the log's time back after its clock ran ahead. Their order is valid for one entry of one log.
Everything that had expired by then stays expired. The rule of the reset's entry corrects the dates that the log itself
recorded (`apply_clock_reset`). Dates that people and witnesses signed stay; `Site.time_for` is compared with them.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.example import NOW
from appliance.domain.core.facts import ActionFacts, Entity
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.policy import own_witnesses
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.records.serving import Slot
from appliance.domain.core.records.site import (
    MOST_VKEY_CHARACTERS,
    ClockResetRecord,
    LogKey,
    Restoration,
    WitnessRecord,
)
from appliance.domain.core.roles import Reasons
from appliance.domain.core.signatures import check_lifetime
from appliance.domain.core.state import State
from appliance.domain.governance.keys import refuse_overlap
from appliance.errors import BadInput, RefusalCode, Rejected
from appliance.formats.log.note import is_post_quantum, parse_vkey

KeyRow = TypeVar("KeyRow", Key, LogKey)
DatedRow = TypeVar("DatedRow", Key, Principal, Restoration, Slot, WitnessRecord)


LAST_ENTRY_DIFFERS = RefusalCode(
    "last-entry-differs",
    "state",
    "The order names {last} as the time of the last entry, which has the time {time}.",
    "Prepare the order again: appliance clock reset.",
)
RULES_NOT_LATER = RefusalCode(
    "rules-not-later",
    "order",
    "The log is evaluated by rules version {rules}. The order names version {named}.",
    "Name a later version.",
)
LOG_KEY_INVALID = RefusalCode(
    "log-key-invalid",
    "order",
    "The order contains no valid key of a log.",
    "Make a new one: appliance log-key rotate.",
)
LOG_KEY_NAME = RefusalCode(
    "log-key-name",
    "order",
    "The new key has the name {name}. A key of this log has the name {origin}.",
    "Make a new one: appliance log-key rotate.",
)
POST_QUANTUM_KEY_MISSING = RefusalCode(
    "post-quantum-key-missing",
    "state",
    "The log has no post-quantum key that this one could replace.",
    "Add post-quantum keys first: appliance post-quantum add.",
)
LOG_KEY_USED = RefusalCode(
    "log-key-used",
    "order",
    "This key has signed this log before.",
    "Make a new one: appliance log-key rotate.",
)


class ResetClock(Order):
    """An order to set the log's time back to the host's clock. `last` is the time of the log's last entry."""

    action = "reset-clock"
    sets_time = True
    last: Time

    def subjects(self) -> Subjects:
        return self._self("clock")


class ClockReset(Countersigned):
    """The event of a reset of the clock."""

    type = "clock.reset"
    sets_time = True


def authorise_reset_clock(state: State, order: ResetClock, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a reset. `apply_clock_reset` checks the new time, which only the entry has."""
    if order.last == state.last_time:
        return []
    return [LAST_ENTRY_DIFFERS(last=order.last, time=state.last_time)]


def apply_clock_reset(case: Case) -> Changes:
    """Set the log's time back to that of the current entry, and limit all recorded dates to it.

    Issued tokens and pending orders end. The order must be valid at the new time; the countersignature was checked
    against that time before.

    Raises: Denied if the new time is not before the last entry's by more than the policy's clock skew, or the order has
        expired at it.
    """
    state, order, now = case.state, case.order(ResetClock), case.entry.time
    reached, skew_s = state.last_time, state.parameters.clock_skew_s
    is_behind = add_seconds(now, skew_s) < reached
    case.require(is_behind, "clock", f"a time more than {skew_s} s before the last entry's, {reached}", now)
    check_lifetime(
        "order reset-clock", order.issued_at, order.expires_at, now, state, state.parameters.order_lifetime_s
    )
    reset = ClockResetRecord(index=case.entry.index, reached=reached, time=now)
    log_keys = tuple(_limit_key_end(key, reset, state.parameters.key_overlap_s) for key in state.site.log_keys)
    # Statements signed before the date of a restoration are refused. With a later date, new ones would be refused, too.
    restorations = tuple(_limit_time(row, "time", now) for row in state.site.restorations)
    resets = (*state.site.resets, reset)
    site = state.site.model_copy(update={"resets": resets, "log_keys": log_keys, "restorations": restorations})
    # Issued tokens are invalid from now on. If they stayed, each would block a new token of its application.
    tokens: Changes = [(state.issued_tokens, key, None) for key, _ in state.issued_tokens.items()]
    return [(state.sites, "site", site), *tokens, *_end_keys_and_orders(state, reset), *_limit_dates(state, now)]


def _limit_key_end(key: KeyRow, reset: ClockResetRecord, overlap_s: int) -> KeyRow:
    """Return a key with the end that it has after the reset.

    A key that had ended by the last time before the reset ends now at the latest. A key whose end is still later was
    replaced while the clock was ahead. It ends as if it were replaced now, since a key of the log has no other end.
    """
    if key.until is None or key.until <= reset.time:
        return key
    latest = reset.time if key.until <= reset.reached else add_seconds(reset.time, overlap_s)
    return key if key.until <= latest else key.model_copy(update={"until": latest})


def _end_keys_and_orders(state: State, reset: ClockResetRecord) -> Changes:
    """Return the changes that limit the dates of keys, and that drop all pending orders.

    All pending orders were issued before the reset.
    """
    now, overlap_s = reset.time, state.parameters.key_overlap_s
    ends = ((key, _limit_key_end(key, reset, overlap_s)) for key in state.keys.values())
    changed = ((key, _limit_time(ended, "enrolled_at", now)) for key, ended in ends)
    changes: Changes = [(state.keys, key.keyid, ended) for key, ended in changed if ended is not key]
    return [*changes, *((state.pending, pending.digest, None) for pending in state.pending.values())]


def _limit_dates(state: State, now: Time) -> Changes:
    """Return the changes that replace each recorded date after `now` by `now`.

    With the later dates, a person who was revoked or whose tokens were revoked would be treated by a future date, a
    cosignature would be valid for too long, a text could not be erased, and a daily count would begin again.
    """
    changes: Changes = []
    for person in state.principals.values():
        changed = _limit_time(_limit_time(person, "revoked_at", now), "tokens_since", now)
        changes += [] if changed is person else [(state.principals, person.name, changed)]
    for key, slot in state.slots.items():
        changes += [] if (loaded := _limit_time(slot, "loaded_at", now)) is slot else [(state.slots, key, loaded)]
    for key, witness in state.witnesses.items():
        changes += [] if (seen := _limit_time(witness, "time", now)) is witness else [(state.witnesses, key, seen)]
    # The count of a future day continues as today's count.
    for counts in (state.answers, state.tries):
        later = ((key, row) for key, row in counts.items() if row.day > now[:10])
        changes += [(counts, key, row.model_copy(update={"day": now[:10]})) for key, row in later]
    changes += [(state.texts, key, text._replace(time=now)) for key, text in state.texts.items() if text.time > now]
    return changes


def _limit_time(row: DatedRow, name: str, now: Time) -> DatedRow:
    """Return the row with the time in its field `name` limited to `now`. None stays None."""
    time = getattr(row, name)
    return row if time is None or time <= now else row.model_copy(update={name: now})


class ClockEntity(Entity):
    """The log's time, which two administrators set back after the host's clock ran ahead."""

    last: Time = Field(description="the time of the log's last entry")


CLOCK_ACTIONS = (
    Action(
        ResetClock,
        title="Reset the log's clock",
        has_form=False,
        authorise=authorise_reset_clock,
        signers=("administrator",),
        meaning="The log's time goes back to the host's clock, which you have looked at and found right. Nothing that "
        "had lapsed by the last entry's time counts again.",
        event=ClockReset,
        apply=apply_clock_reset,
        two_administrators=True,
        recheck_slots=True,
        facts=ActionFacts(ClockEntity, "last"),
        example_values={"signer": "anna", "last": NOW},
    ),
)
"""Definition of the action that resets the clock."""


class RaiseRules(Order):
    """An order to check later entries by version `rules` of the rules."""

    action = "raise-rules"
    rules: int = Field(ge=2, le=1_000_000)

    def subjects(self) -> Subjects:
        return self._self("rules")


class RulesRaised(Countersigned):
    """The event of a later version of the rules."""

    type = "rules.raised"


def authorise_raise_rules(state: State, order: RaiseRules, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reason if the version is not later than the valid one.

    Builds that do not implement the version are no reason: they refuse the log's next entry.
    """
    if order.rules > state.site.rules:
        return []
    return [RULES_NOT_LATER(rules=state.site.rules, named=order.rules)]


def apply_rules_version(case: Case) -> Changes:
    """Apply a later version of the rules."""
    site = case.state.site.model_copy(update={"rules": case.order(RaiseRules).rules})
    return [(case.state.sites, "site", site)]


class RulesEntity(Entity):
    """The version of the rules by which entries are evaluated."""

    current: int
    rules: int = Field(description="the later version")


def _describe_rules(state: State, order: RaiseRules, signer: Principal) -> RulesEntity:
    return RulesEntity(id=str(order.rules), current=state.site.rules, rules=order.rules)


RULES_ACTIONS = (
    Action(
        RaiseRules,
        title="Raise the rules version",
        authorise=authorise_raise_rules,
        signers=("administrator",),
        meaning="From now on new entries are checked by this version of the rules. Earlier entries are still checked "
        "by the version that was valid when they were recorded. This cannot be undone.",
        event=RulesRaised,
        apply=apply_rules_version,
        two_administrators=True,
        recheck_slots=True,
        facts=ActionFacts(RulesEntity, _describe_rules),
        example_values={"signer": "anna", "rules": 2},
    ),
)
"""Definition of the action that raises the rules version."""


class RotateLogKey(Order):
    """An order to sign the log's checkpoints with a new key. The keys that it replaces also sign until `old_until`.

    `log_key` is a C2SP vkey. A key of ML-DSA-65 replaces those of ML-DSA-65, and another key replaces the others.
    """

    action = "rotate-log-key"
    log_key: str = Field(max_length=MOST_VKEY_CHARACTERS)
    old_until: Time

    def subjects(self) -> Subjects:
        return self._self("log-key")


class LogKeyRotated(Countersigned):
    """The event of a new log key, which signs the log's checkpoints from this entry on."""

    type = "log-key.rotated"


def refuse_new_log_key(state: State, vkey: str) -> Reasons:
    """Return the refusal reasons of a new log key.

    It must be a valid vkey with the log's name that this log has not had and that no witness has.
    """
    try:
        name = parse_vkey(vkey).name
    except BadInput:
        return [LOG_KEY_INVALID()]
    reasons = [] if name == state.site.origin else [LOG_KEY_NAME(name=Rejected(name), origin=state.site.origin)]
    if any(key.vkey == vkey for key in state.site.log_keys):
        reasons.append(LOG_KEY_USED())
    return reasons + own_witnesses([vkey], state.parameters)


def authorise_rotate_log_key(state: State, order: RotateLogKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a rotation of the log's key."""
    reasons = refuse_new_log_key(state, order.log_key)
    if not reasons and is_post_quantum(order.log_key) and state.site.post_quantum_log_key is None:
        reasons.append(POST_QUANTUM_KEY_MISSING())
    return reasons + refuse_overlap(state, order.old_until, now)


def apply_log_key_rotation(case: Case) -> Changes:
    """Apply a rotation of the log's key."""
    order, site = case.order(RotateLogKey), case.state.site
    is_new_post_quantum = is_post_quantum(order.log_key)
    old_keys = tuple(
        key.model_copy(update={"until": order.old_until})
        if key.until is None and is_post_quantum(key.vkey) == is_new_post_quantum
        else key
        for key in site.log_keys
    )
    keys = (*old_keys, LogKey(vkey=order.log_key, since=case.entry.index))
    return [(case.state.sites, "site", site.model_copy(update={"log_keys": keys}))]


class LogKeyEntity(Entity):
    """A new key of the log, as a C2SP vkey."""

    log_key: str


_NEW_LOG_KEY = "bank.example/log+800c681e+Adkx6koxFrvJYYfw5XYM3qdc7BJ7NGn31r5iV5CoNYTg"


LOG_KEY_ACTIONS = (
    Action(
        RotateLogKey,
        title="Rotate the log's key",
        has_form=False,
        authorise=authorise_rotate_log_key,
        signers=("administrator",),
        meaning="This key signs the log's checkpoints; earlier keys of its algorithm also sign until the date.",
        event=LogKeyRotated,
        apply=apply_log_key_rotation,
        two_administrators=True,
        facts=ActionFacts(LogKeyEntity, "log_key"),
        example_values={"signer": "anna", "log_key": _NEW_LOG_KEY},
    ),
)
"""Definition of the action that rotates the log's key."""
