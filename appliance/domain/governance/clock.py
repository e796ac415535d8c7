"""A clock that ran ahead: two administrators set the log's time back, once, by an order that fits one place of one log.

Nothing that had lapsed by then revives. What the log itself dated is put right at the reset's entry (`clock_reset`);
what people and witnesses signed keeps its date, and is held against `Site.time_for`.
"""

from __future__ import annotations

from typing import TypeVar

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.records.serving import Slot
from appliance.domain.core.records.site import ClockReset as Reset
from appliance.domain.core.records.site import LogKey, Witness
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.signatures import check_lifetime
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb

K = TypeVar("K", Key, LogKey)
R = TypeVar("R", Key, Principal, Slot, Witness)


class ResetClock(Order):
    """The log's time goes back to the host's clock. `last`: the time of the log's last entry."""

    verb = "reset-clock"
    sets_time = True
    last: Time

    def subjects(self) -> Subjects:
        return self._self("clock")


class ClockReset(Endorsed):
    type = "clock.reset"
    sets_time = True


def may_reset_clock(state: State, order: ResetClock, signer: Principal, now: Time) -> Reasons:
    """How far the clock is behind is for the rule of the entry, which alone has the new time."""
    reasons = needs(signer, "administrator")
    if order.last != state.last_time:
        reasons.append(f"clock: expected the time of the last entry, {state.last_time}, got {order.last}")
    return reasons


def clock_reset(case: Case) -> Changes:
    """Both orders stand at the new time. The endorsement has been judged by it already."""
    state, order, now = case.state, case.order(ResetClock), case.entry.time
    reached, skew_s = state.last_time, state.parameters.clock_skew_s
    behind = add_seconds(now, skew_s) < reached
    case.require(behind, "clock", f"a time more than {skew_s} s before the last entry's, {reached}", now)
    check_lifetime(
        "order reset-clock", order.issued_at, order.expires_at, now, state, state.parameters.order_lifetime_s
    )
    reset = Reset(index=case.entry.index, reached=reached, time=now)
    log_keys = tuple(_end(key, reset, state.parameters.key_overlap_s) for key in state.site.log_keys)
    site = state.site.model_copy(update={"resets": (*state.site.resets, reset), "log_keys": log_keys})
    # None of them counts any more, and each would stand in its application's way until its date.
    tokens: Changes = [(state.issued_tokens, key, None) for key, _ in state.issued_tokens.items()]
    return [(state.sites, "site", site), *tokens, *_ended(state, reset), *_redate(state, now)]


def _end(key: K, reset: Reset, overlap_s: int) -> K:
    """A key that had ended by the time that was reached ends now at the latest. One that was replaced under the time
    ahead ends as if that were now: a key of the log could not be ended otherwise."""
    if key.until is None or key.until <= reset.time:
        return key
    latest = reset.time if key.until <= reset.reached else add_seconds(reset.time, overlap_s)
    return key if key.until <= latest else key.model_copy(update={"until": latest})


def _ended(state: State, reset: Reset) -> Changes:
    """Keys that had ended; and every order that waits, since it was issued before the reset."""
    now, overlap_s = reset.time, state.parameters.key_overlap_s
    ends = ((key, _end(key, reset, overlap_s)) for key in state.keys.values())
    changed = ((key, _at_latest(ended, "enrolled_at", now)) for key, ended in ends)
    changes: Changes = [(state.keys, key.keyid, ended) for key, ended in changed if ended is not key]
    return [*changes, *((state.pending, pending.digest, None) for pending in state.pending.values())]


def _redate(state: State, now: Time) -> Changes:
    """What happened before the reset happened by now, whatever its entry says: otherwise who was enrolled meanwhile
    could sign nothing before that day, a unit whose tokens were revoked could ask nothing, a witness's word would count
    too long, a text could not be erased, and a day's count would begin anew."""
    changes: Changes = []
    for person in state.principals.values():
        changed = _at_latest(_at_latest(person, "revoked_at", now), "tokens_since", now)
        changes += [] if changed is person else [(state.principals, person.name, changed)]
    for key, slot in state.slots.items():
        changes += [] if (loaded := _at_latest(slot, "loaded_at", now)) is slot else [(state.slots, key, loaded)]
    for key, witness in state.witnesses.items():
        changes += [] if (seen := _at_latest(witness, "time", now)) is witness else [(state.witnesses, key, seen)]
    # A count of a day that is still to come goes on today, and ends with it.
    for counts in (state.answers, state.tries):
        later = ((key, row) for key, row in counts.items() if row.day > now[:10])
        changes += [(counts, key, row.model_copy(update={"day": now[:10]})) for key, row in later]
    changes += [(state.texts, key, text._replace(time=now)) for key, text in state.texts.items() if text.time > now]
    return changes


def _at_latest(row: R, name: str, now: Time) -> R:
    time = getattr(row, name)
    return row if time is None or time <= now else row.model_copy(update={name: now})


VERBS = (
    Verb(
        ResetClock,
        may=may_reset_clock,
        signers=("administrator",),
        meaning="The log's time goes back to the host's clock, which you have looked at and found right. Nothing that "
        "had lapsed by the last entry's time counts again.",
        event=ClockReset,
        apply=clock_reset,
        two_administrators=True,
        changes_answers=True,
    ),
)
