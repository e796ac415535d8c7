"""What approves an adapter: which reviews stand, which release counts, and everything that keeps it from answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.domain.core.names import Time
from appliance.domain.core.records import Adapter, Release, ReviewRecord, Slot, release_key
from appliance.domain.core.roles import Reasons, is_unit
from appliance.domain.core.state import Clearance, State
from appliance.domain.data.standing import inputs_stand


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
    name = f"{adapter.name}@{adapter.version}"
    reasons = []
    if adapter.revoked is not None:
        reasons.append(f"adapter {name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    if adapter.quarantined is not None:
        reasons.append(f"adapter {name}: expected its bytes whole, got quarantine by entry {adapter.quarantined}")
    if not is_unit(state, unit):
        reasons.append(f"unit: expected an enrolled one, got {unit}")
    reasons += inputs_stand(state, adapter)
    # A rejection has no date and needs no standing reviewer: only its own reviewer lifts it, by a key that counts.
    latest = latest_reviews(state, adapter, unit)
    rejected = [r for r in latest if r.decision == "reject"]
    approved = [r for r in latest if r.decision == "approve" and not review_lapsed(state, adapter, r, now)]
    reasons += [f"review {r.index}: expected an approval, got a rejection by {r.reviewer}" for r in rejected]
    return reasons + _quorum(state, name, unit, approved)


def _quorum(state: State, name: str, unit: str, approved: list[ReviewRecord]) -> Reasons:
    rules = state.parameters
    fields = {review.field for review in approved}
    reasons = []
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


def standing_reviews(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """Each reviewer's latest decision for the unit, where reviewer, key, role, duties and date still hold."""
    latest = latest_reviews(state, adapter, unit)
    return [review for review in latest if not review_lapsed(state, adapter, review, now)]


def latest_reviews(state: State, adapter: Adapter, unit: str) -> list[ReviewRecord]:
    """Each reviewer's last word on the adapter for the unit."""
    words = [review for review in adapter.reviews if review.unit == unit and _is_word(state, review)]
    return list({review.reviewer: review for review in words}.values())


def _is_word(state: State, review: ReviewRecord) -> bool:
    """An approval under a key that does not count at its entry is not: a stolen key cannot replace a rejection."""
    return review.decision == "reject" or _is_own(state, review)


def _is_own(state: State, review: ReviewRecord) -> bool:
    key = state.keys.get(review.keyid)
    return key is not None and key.principal == review.reviewer and key.counts(review.index)


ReviewState = Literal["standing", "superseded", "lapsed", "key-distrusted", "reviewer-gone", "reviewer-is-maker"]
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
            same = (later.reviewer, later.unit) == (review.reviewer, review.unit)
            if same and later.index > review.index and _is_word(state, later):
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
    if reviewer is None or not reviewer.has(f"reviewer:{review.field}"):
        return "reviewer-gone", f"{what}: expected {review.reviewer} to be a standing reviewer of {review.field}"
    if not _is_own(state, review):
        return "key-distrusted", f"{what}: expected a key that counts at that entry, got {review.keyid}"
    now = state.site.time_for(review.index, now)
    if review.valid_until is not None and review.valid_until <= now:
        return "lapsed", f"{what}: expected one that stands at {now}, got one that expired at {review.valid_until}"
    if duties(adapter, review.reviewer):
        return "reviewer-is-maker", f"{what}: expected a reviewer apart from the makers, got {review.reviewer}"
    return None


def clear(state: State, release: Release, adapter: Adapter, now: Time) -> Clearance:
    """What stands against the release now: against its adapter, and against itself.

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
    reasons = tuple(inadmissible(state, adapter, release.unit, now) + release_lapsed(state, release))
    own = [r for r in adapter.reviews if r.unit == release.unit and r.decision == "approve"]
    # Those that their reviewers have renewed among them: what was admitted by one is not emptied for that.
    standing = [review for review in own if not review_lapsed(state, adapter, review, now)]
    until = now if reasons else min(review.valid_until for review in standing if review.valid_until is not None)
    approvals = frozenset(review.index for review in standing)
    return Clearance(reasons, release, adapter, state.revision, until, approvals)


def barred(state: State, release: Release, adapter: Adapter, now: Time) -> Reasons:
    """Everything that keeps a release from answering now."""
    return list(clear(state, release, adapter, now).reasons)


def superseded(clearance: Clearance, slot: Slot) -> Reasons:
    """What a slot was admitted by, and what no longer stands of it, though other approvals do: its answers would go on
    naming that."""
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
