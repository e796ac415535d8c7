"""Orders about the log itself: reset of its clock, version of its rules, and rotation of its key.

Two administrators set the log's time back after its clock ran ahead, by an order that is valid for one entry of one
log. Everything that had expired by then stays expired. The rule of the reset's entry corrects the dates that the log
itself recorded (`clock_reset`). Dates that people and witnesses signed stay, and are compared with `Site.time_for`.
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
from appliance.domain.governance.keys import check_overlap
from appliance.errors import BadInput, RefusalCode, Rejected
from appliance.formats.log.note import is_post_quantum, parse_vkey

K = TypeVar("K", Key, LogKey)
R = TypeVar("R", Key, Principal, Restoration, Slot, WitnessRecord)


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
    """Return the refusal reasons of a reset. The rule of the entry checks the new time, which only the entry has."""
    if order.last == state.last_time:
        return []
    return [LAST_ENTRY_DIFFERS(last=order.last, time=state.last_time)]


def apply_clock_reset(case: Case) -> Changes:
    """Apply a reset of the clock.

    Both orders are valid at the new time; the countersignature has been checked at it already.
    """
    state, order, now = case.state, case.order(ResetClock), case.entry.time
    reached, skew_s = state.last_time, state.parameters.clock_skew_s
    behind = add_seconds(now, skew_s) < reached
    case.require(behind, "clock", f"a time more than {skew_s} s before the last entry's, {reached}", now)
    check_lifetime(
        "order reset-clock", order.issued_at, order.expires_at, now, state, state.parameters.order_lifetime_s
    )
    reset = ClockResetRecord(index=case.entry.index, reached=reached, time=now)
    log_keys = tuple(_limit_key(key, reset, state.parameters.key_overlap_s) for key in state.site.log_keys)
    # Otherwise everything signed before the date of an earlier restoration would be refused until that date.
    restorations = tuple(_limit_time(row, "time", now) for row in state.site.restorations)
    resets = (*state.site.resets, reset)
    site = state.site.model_copy(update={"resets": resets, "log_keys": log_keys, "restorations": restorations})
    # They are invalid from now on, and each would block a new token of its application until its date.
    tokens: Changes = [(state.issued_tokens, key, None) for key, _ in state.issued_tokens.items()]
    return [(state.sites, "site", site), *tokens, *_end_keys_and_orders(state, reset), *_redate(state, now)]


def _limit_key(key: K, reset: ClockResetRecord, overlap_s: int) -> K:
    """Return a key with the end that it has after the reset.

    A key that had ended by the time that was reached ends now at the latest. A key that was replaced while the clock
    was ahead ends as if it were replaced now, since a key of the log cannot be ended in another way.
    """
    if key.until is None or key.until <= reset.time:
        return key
    latest = reset.time if key.until <= reset.reached else add_seconds(reset.time, overlap_s)
    return key if key.until <= latest else key.model_copy(update={"until": latest})


def _end_keys_and_orders(state: State, reset: ClockResetRecord) -> Changes:
    """Return the changes of keys that had ended, and the removal of every pending order.

    Pending orders were issued before the reset.
    """
    now, overlap_s = reset.time, state.parameters.key_overlap_s
    ends = ((key, _limit_key(key, reset, overlap_s)) for key in state.keys.values())
    changed = ((key, _limit_time(ended, "enrolled_at", now)) for key, ended in ends)
    changes: Changes = [(state.keys, key.keyid, ended) for key, ended in changed if ended is not key]
    return [*changes, *((state.pending, pending.digest, None) for pending in state.pending.values())]


def _redate(state: State, now: Time) -> Changes:
    """Return the changes that date everything before the reset at the present time, if its date is later.

    Otherwise a person enrolled meanwhile could not sign before that date, a unit whose tokens were revoked could send
    no requests, a cosignature would be valid for too long, a text could not be erased, and a daily count would begin
    anew.
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


def _limit_time(row: R, name: str, now: Time) -> R:
    """Return the row with the time in this field limited to now."""
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
"""Registry rows of the reset of the clock."""


class RaiseRules(Order):
    """An order to evaluate entries by this version of the rules from its own entry on."""

    action = "raise-rules"
    rules: int = Field(ge=2, le=1_000_000)

    def subjects(self) -> Subjects:
        return self._self("rules")


class RulesRaised(Countersigned):
    """The event of a later version of the rules."""

    type = "rules.raised"


def authorise_raise_rules(state: State, order: RaiseRules, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a later rules version.

    A build that does not implement the version refuses the log's next entry, so it is not checked here.
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
        meaning="From now on entries are checked by this version of the rules. This cannot be taken back. Earlier "
        "entries keep their verdict.",
        event=RulesRaised,
        apply=apply_rules_version,
        two_administrators=True,
        recheck_slots=True,
        facts=ActionFacts(RulesEntity, _describe_rules),
        example_values={"signer": "anna", "rules": 2},
    ),
)
"""Registry rows of the rules version."""


class RotateLogKey(Order):
    """An order to sign the log's checkpoints with a new key. The old keys also sign them until a time.

    A key of ML-DSA-65 replaces those of ML-DSA-65, and another key replaces the others.
    """

    action = "rotate-log-key"
    log_key: str = Field(max_length=MOST_VKEY_CHARACTERS)
    old_until: Time

    def subjects(self) -> Subjects:
        return self._self("log-key")


class LogKeyRotated(Countersigned):
    """The event of a new log key, which signs the log's checkpoints from this entry on."""

    type = "log-key.rotated"


def refuse_log_key(state: State, vkey: str) -> Reasons:
    """Return the refusal reasons of a log key: it must have the log's name, be new, and belong to no witness."""
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
    reasons = refuse_log_key(state, order.log_key)
    if not reasons and is_post_quantum(order.log_key) and state.site.post_quantum_log_key is None:
        reasons.append(POST_QUANTUM_KEY_MISSING())
    return reasons + check_overlap(state, order.old_until, now)


def apply_log_key_rotation(case: Case) -> Changes:
    """Apply a rotation of the log's key."""
    order, site = case.order(RotateLogKey), case.state.site
    kind = is_post_quantum(order.log_key)
    old = tuple(
        key.model_copy(update={"until": order.old_until})
        if key.until is None and is_post_quantum(key.vkey) == kind
        else key
        for key in site.log_keys
    )
    keys = (*old, LogKey(vkey=order.log_key, since=case.entry.index))
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
"""Registry rows of the rotation of the log's key."""
