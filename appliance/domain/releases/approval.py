"""What approves an adapter: which reviews stand, which release counts, and everything that keeps it from answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.domain.core.decisions import Delegated, ReviewRecord
from appliance.domain.core.names import Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.serving import Release, Slot, release_key
from appliance.domain.core.roles import Reasons, is_unit
from appliance.domain.core.state import Clearance, State
from appliance.domain.data.standing import inputs_stand
from appliance.domain.releases.blocking import blocked, exceptions_end
from appliance.domain.releases.conditions import against, binding_conditions, daily_limit, ends
from appliance.domain.releases.tiers import current_request, needed_for, reattested_by, stale, tier_of, unauthorised
from appliance.domain.releases.verdicts import accepted_later, unaccepted


def duties(adapter: Adapter, name: str) -> Reasons:
    """The people who made an adapter do not review it."""
    reasons = []
    if name == adapter.ordered_by:
        reasons.append(f"separation of duties: expected a reviewer who did not order the run, got {name}")
    if name == adapter.dataset_by:
        reasons.append(f"separation of duties: expected a reviewer who did not import the dataset, got {name}")
    return reasons


def inadmissible(state: State, adapter: Adapter, unit: str, now: Time) -> Reasons:
    """Everything that keeps the adapter from answering for the unit now."""
    return objections(state, adapter, unit, now) + quorum(state, adapter, unit, now)


def objections(state: State, adapter: Adapter, unit: str, now: Time) -> Reasons:
    """What keeps it from answering in spite of every approval; an emergency does not lift it either."""
    name = f"{adapter.name}@{adapter.version}"
    reasons = []
    if adapter.revoked is not None:
        reasons.append(f"adapter {name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    if adapter.quarantined is not None:
        reasons.append(f"adapter {name}: expected its bytes whole, got quarantine by entry {adapter.quarantined}")
    if not is_unit(state, unit):
        reasons.append(f"unit: expected an enrolled one, got {unit}")
    reasons += inputs_stand(state, adapter) + blocked(state, adapter, now) + _unasked(state, adapter, unit)
    reasons += unaccepted(state, adapter, needed_for(state, adapter, unit).required_fields, now)
    # A rejection has no date and needs no standing reviewer: only its own reviewer lifts it, by a key that counts.
    for review in latest_reviews(state, adapter, unit):
        if review.decision == "reject":
            reasons.append(f"review {review.index}: expected an approval, got a rejection by {review.reviewer}")
        elif review.decision == "request-changes" and not stale(state, adapter, review, now):
            by = review.reviewer
            reasons.append(f"review {review.index}: expected an approval, got a request for changes by {by}")
    return reasons


def _unasked(state: State, adapter: Adapter, unit: str) -> Reasons:
    """What is missing where policy requires a standing request, or the tier of what a person asked for last that a
    second person let the run begin."""
    reasons = []
    if current_request(state, adapter, unit) is None and state.parameters.requests_required:
        name = f"{adapter.name}@{adapter.version}"
        reasons.append(f"request: expected a standing one to release {name} to {unit}, as policy requires, got none")
    asked = [one for one in adapter.requests if one.unit == unit and one.kind == "request"]
    tier = tier_of(state.parameters, asked[-1]) if asked else None
    unheard = unauthorised(state, adapter, tier)
    return reasons if unheard is None else [*reasons, unheard]


def quorum(state: State, adapter: Adapter, unit: str, now: Time) -> Reasons:
    """What is missing of the approvals that the unit's request needs, or policy where there is none."""
    name, request = f"{adapter.name}@{adapter.version}", current_request(state, adapter, unit)
    rules = needed_for(state, adapter, unit)
    approved = counted(state, adapter, unit, now)
    fields = {review.field for review in approved}
    reasons = []
    if request is not None and request.kind == "break-glass":
        # Of any other request an emergency does not lift it.
        unheard = unauthorised(state, adapter, tier_of(state.parameters, request))
        reasons += [] if unheard is None else [unheard]
    if len(approved) < rules.reviewers:
        reasons.append(
            f"quorum: expected {rules.reviewers} standing approvals of {name} for {unit}, got {len(approved)}"
        )
    if len(fields) < rules.distinct_fields:
        got = ", ".join(sorted(fields)) or "none"
        reasons.append(f"quorum: expected {rules.distinct_fields} different fields for {name}, got {got}")
    missing = sorted(set(rules.required_fields) - fields)
    if missing:
        reasons.append(f"quorum: expected an approval of {', '.join(missing)} for {name}, got none")
    return reasons


def could_decide(state: State, adapter: Adapter, unit: str, now: Time) -> tuple[tuple[str, str], ...]:
    """(field, name) of every reviewer who made nothing of the adapter and is counted for no approval yet, in order."""
    counts = {review.reviewer for review in counted(state, adapter, unit, now)}
    return tuple(
        sorted(
            (role.partition(":")[2], person.name)
            for person in state.principals.values()
            if person.revoked is None and person.name not in counts and not duties(adapter, person.name)
            for role in person.roles
            if role.startswith("reviewer:")
        )
    )


def counted(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """The standing approvals that a quorum counts: one of each person, and one in each person's place, their own
    first."""
    standing = [review for review in standing_reviews(state, adapter, unit, now) if review.approves]
    found: list[ReviewRecord] = []
    people: set[str] = set()
    for review in sorted(standing, key=lambda review: review.on_behalf_of is not None):
        place = review.reviewer if review.on_behalf_of is None else review.on_behalf_of.principal
        if not {review.reviewer, place} & people:
            found.append(review)
            people |= {review.reviewer, place}
    return found


def standing_reviews(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """Each reviewer's latest decision for the unit, where reviewer, key, role, duties, date and request still hold. One
    who has withdrawn has none."""
    latest = [review for review in latest_reviews(state, adapter, unit) if review.decision != "withdraw"]
    return [review for review in latest if not review_lapsed(state, adapter, review, now)]


def latest_reviews(state: State, adapter: Adapter, unit: str) -> list[ReviewRecord]:
    """Each reviewer's last word on the adapter for the unit: their own, and one in each person's place."""
    latest: dict[tuple[str, str], ReviewRecord] = {}
    for review in adapter.reviews:
        if review.unit == unit and _replaces(state, review, latest.get(voice(review))):
            latest[voice(review)] = review
    return list(latest.values())


def voice(review: ReviewRecord) -> tuple[str, str]:
    """A delegate's word replaces none of the delegator's, nor the other way round: each lifts only what it said."""
    return review.reviewer, "" if review.on_behalf_of is None else review.on_behalf_of.principal


def _is_word(state: State, review: ReviewRecord) -> bool:
    """Nothing but a refusal is one under a key that does not count at its entry: a stolen key cannot lift a
    rejection."""
    return review.decision in ("reject", "request-changes") or _is_own(state, review)


def _replaces(state: State, review: ReviewRecord, word: ReviewRecord | None) -> bool:
    """A withdrawal under such a key, or a narrower approval, still ends an approval. Revoking the key gives back
    nothing that its owner took away."""
    if _is_word(state, review) or word is None or not word.approves:
        return _is_word(state, review)
    narrower = review.conditions not in (None, word.conditions) or (review.valid_until or "") < (word.valid_until or "")
    return review.decision == "withdraw" or narrower


def _is_own(state: State, review: ReviewRecord) -> bool:
    key = state.keys.get(review.keyid)
    return key is not None and key.principal == review.reviewer and key.counts(review.index)


ReviewState = Literal[
    "standing",
    "superseded",
    "lapsed",
    "key-distrusted",
    "reviewer-gone",
    "reviewer-is-maker",
    "delegator-gone",
    "stale",
]
"""What a recorded review counts for now; only one that is `standing` counts."""


@dataclass(frozen=True, slots=True)
class ReviewStanding:
    """`superseded_by`: the entry of the reviewer's next word; `against`: why it counts no more, None while it does."""

    state: ReviewState
    superseded_by: int | None = None
    against: str | None = None


def review_standing(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> ReviewStanding:
    """As admission counts it: a rejection until its own reviewer replaces it, an approval while nothing ends it."""
    if _is_word(state, review):
        for later in adapter.reviews:
            same = (voice(later), later.unit) == (voice(review), review.unit)
            if same and later.index > review.index and _replaces(state, later, review):
                words = f"review {review.index}: expected the latest of {review.reviewer}, got an earlier one"
                return ReviewStanding("superseded", later.index, f"{words}, superseded by entry {later.index}")
    lapse = None if review.decision == "reject" else _lapse(state, adapter, review, now)
    return ReviewStanding("standing") if lapse is None else ReviewStanding(lapse[0], None, lapse[1])


def review_lapsed(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> str | None:
    """Why a recorded review no longer counts, or None while it does."""
    lapse = _lapse(state, adapter, review, now)
    return None if lapse is None else lapse[1]


def _lapse(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> tuple[ReviewState, str] | None:
    what, reviewer = f"review {review.index}", state.principals.get(review.reviewer)
    delegated = review.on_behalf_of
    if reviewer is None or not (reviewer.revoked is None if delegated else reviewer.has(f"reviewer:{review.field}")):
        return "reviewer-gone", f"{what}: expected {review.reviewer} to be a standing reviewer of {review.field}"
    if delegated is not None and not _delegator_stands(state, delegated, review.field):
        who = delegated.principal
        return "delegator-gone", f"{what}: expected {who} to be a standing reviewer of {review.field} who delegated it"
    if not _is_own(state, review):
        return "key-distrusted", f"{what}: expected a key that counts at that entry, got {review.keyid}"
    now = state.site.time_for(review.index, now)
    if review.valid_until is not None and review.valid_until <= now:
        return "lapsed", f"{what}: expected one that stands at {now}, got one that expired at {review.valid_until}"
    for name in (review.reviewer, *(() if delegated is None else (delegated.principal,))):
        if duties(adapter, name):
            return "reviewer-is-maker", f"{what}: expected a reviewer apart from the makers, got {name}"
    reason = stale(state, adapter, review, now)
    if reason is None and review.approves:
        fields = needed_for(state, adapter, review.unit).required_fields
        reason = accepted_later(state, adapter, review.index, fields, now)
    return None if reason is None else ("stale", reason)


def _delegator_stands(state: State, delegated: Delegated, field: str) -> bool:
    """Still a reviewer of the field, and the delegation was under a key of their own that counts at its entry."""
    person, key = state.principals.get(delegated.principal), state.keys.get(delegated.keyid)
    signed = key is not None and key.principal == delegated.principal and key.counts(delegated.index)
    return signed and person is not None and person.has(f"reviewer:{field}")


def clear(state: State, release: Release, adapter: Adapter, now: Time) -> Clearance:
    """The reasons against the release now: against its adapter, and against itself.

    Asked for every request. Where nothing was found and a rule has kept that, nothing is until a row changes that it
    rests on, or the first of its approvals ends: time does nothing else to it. Rows are replaced, never changed: the
    same are equal.
    """
    known = state.clearances.get(release_key(release.unit, release.task))
    if (
        known is not None
        and known.release is release
        and known.adapter is adapter
        and known.revision == state.revision
        and now < known.until
    ):
        return known
    emergency, unit = release.current.kind == "break-glass", release.unit
    judge = objections if emergency else inadmissible
    latest = {voice(r): r for r in latest_reviews(state, adapter, unit) if r.approves}
    own = [r for r in adapter.reviews if r.unit == unit and r.approves and voice(r) in latest]
    # Those that their reviewers have renewed among them: what was admitted by one is not emptied for that.
    standing = [review for review in own if not review_lapsed(state, adapter, review, now)]
    words = approved_last(adapter, unit) if emergency else [review for review in latest.values() if review in standing]
    binding = binding_conditions(state, adapter, unit, words)
    reasons = judge(state, adapter, unit, now) + release_lapsed(state, release)
    reasons += emergency_over(state, release, now) + against(state, binding, release.task, now)
    dates = [date for r in standing for date in (r.valid_until, reattested_by(state, adapter, r)) if date is not None]
    dates += [*ends(binding), *exceptions_end(state, adapter), *filter(None, [release.current.until])]
    until = now if reasons or not dates else min(dates)
    approvals = frozenset(review.index for review in standing)
    return Clearance(tuple(reasons), release, adapter, state.revision, until, approvals, daily_limit(binding))


def emergency_over(state: State, release: Release, now: Time) -> Reasons:
    """Why an emergency no longer lets the version answer: its hours have passed, or its second person's key does not
    count."""
    activation = release.current
    if activation.until is None:
        return []
    if activation.until <= now or any(activation.index < reset.index for reset in state.site.resets):
        ended = f"one that ended {activation.until}" if activation.until <= now else "one from before a clock reset"
        return [f"release {activation.index}: expected an emergency that lasts, got {ended}"]
    key = state.keys.get(activation.endorsed_keyid or "")
    if key is None or not key.counts(activation.index):
        who = f"a second person's key that counts at that entry, got {activation.endorsed_keyid}"
        return [f"release {activation.index}: expected {who}"]
    return []


def approved_last(adapter: Adapter, unit: str) -> list[ReviewRecord]:
    """Each reviewer's last approval, whatever came after it: its conditions bind what an emergency lets answer."""
    approved = [review for review in adapter.reviews if review.unit == unit and review.approves]
    return list({voice(review): review for review in approved}.values())


def conditions_against(
    state: State, adapter: Adapter, unit: str, task: str, now: Time, *, emergency: bool = False
) -> Reasons:
    """What the dates and tasks refuse to which it would be released."""
    standing = [review for review in standing_reviews(state, adapter, unit, now) if review.approves]
    words = approved_last(adapter, unit) if emergency else standing
    return against(state, binding_conditions(state, adapter, unit, words), task, now)


def barred(state: State, release: Release, adapter: Adapter, now: Time) -> Reasons:
    """Everything that keeps a release from answering now."""
    return list(clear(state, release, adapter, now).reasons)


def superseded(clearance: Clearance, slot: Slot) -> Reasons:
    """What a slot was admitted by, and which of it no longer counts, although other approvals do: its answers would
    still name it."""
    current = clearance.release.current.index
    if slot.release != current:
        return [f"release: expected that of entry {slot.release}, got that of entry {current}"]
    gone = [index for index in slot.approvals if index not in clearance.approvals]
    return [f"review {index}: expected one that stands, got one that has lapsed" for index in gone]


def release_lapsed(state: State, release: Release) -> Reasons:
    """Why today's release no longer counts: its signer was revoked or lost the role, or the key does not count."""
    activation = release.current
    owner, key = state.principals.get(activation.signer), state.keys.get(activation.keyid)
    if owner is None or not owner.has(f"release-owner:{release.unit}"):
        return [f"release {activation.index}: expected {activation.signer} to be a standing release owner"]
    if key is None or not key.counts(activation.index):
        return [f"release {activation.index}: expected a key that counts at that entry, got {activation.keyid}"]
    return []


def released(state: State, unit: str, task: str) -> Adapter | None:
    """The adapter that today's release names for the unit's task, admissible or not."""
    release = state.releases.get(release_key(unit, task))
    return None if release is None else state.adapters.get(release.current.adapter)
