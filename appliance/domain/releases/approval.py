"""Rules for approvals: the valid reviews, the quorum, and the blockers of a release."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from appliance.domain.core.decisions import Delegator, ReviewRecord
from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Release, Slot, release_key
from appliance.domain.core.roles import Reasons, require_unit
from appliance.domain.core.state import Clearance, State
from appliance.domain.data.validity import refuse_invalid_inputs
from appliance.domain.releases.adapters import refuse_quarantined, refuse_revoked, refuse_suspended
from appliance.domain.releases.requests import (
    REQUEST_MISSING,
    binding_conditions,
    daily_limit,
    ends,
    explain_stale_approval,
    explain_unauthorised_run,
    find_current_request,
    find_reattestation_deadline,
    find_requirement,
    find_tier,
    is_key_valid,
    refuse_by_binding,
)
from appliance.domain.releases.verdicts import (
    exceptions_end,
    explain_early_approval,
    refuse_open_findings,
    refuse_unaccepted_verdict,
)
from appliance.errors import Refusal, RefusalCode

ORDERED_THE_RUN = RefusalCode(
    "reviewer-ordered-the-run",
    "rule",
    "{id} ordered the training run. Nobody reviews what they made.",
    "Ask another reviewer.",
)
IMPORTED_THE_DATASET = RefusalCode(
    "reviewer-imported-the-dataset",
    "rule",
    "{id} imported the training data. Nobody reviews what they made.",
    "Ask another reviewer.",
)
REJECTED = RefusalCode(
    "review-rejected",
    "state",
    "{reviewer} rejected this adapter by entry {id}.",
    "{reviewer} must approve it or withdraw the rejection.",
)
CHANGES_REQUESTED = RefusalCode(
    "review-requested-changes",
    "state",
    "{reviewer} requested changes by entry {id}.",
    "{reviewer} must approve the adapter, or the release must be requested again.",
)
TOO_FEW_APPROVALS = RefusalCode(
    "approvals-missing",
    "policy",
    "Adapter {id} needs {needed} valid approvals for {unit} and has {valid}.",
    "More reviewers must approve it.",
)
TOO_FEW_FUNCTIONS = RefusalCode(
    "review-functions-too-few",
    "policy",
    "Adapter {id} needs approvals of {needed} different review functions and has {valid}.",
    "Reviewers of other review functions must approve it.",
)
FUNCTION_MISSING = RefusalCode(
    "review-function-missing",
    "policy",
    "Adapter {id} has no valid approval of {missing}.",
    "A reviewer of each of these review functions must approve it.",
)
REVIEW_SUPERSEDED = RefusalCode(
    "review-superseded",
    "state",
    "The decision of entry {id} was replaced by {reviewer}'s decision of entry {entry}.",
    "The later decision is valid.",
)
REVIEWER_GONE = RefusalCode(
    "reviewer-gone",
    "state",
    "{reviewer}, who decided in entry {id}, is no longer a reviewer of {function}.",
    "A reviewer of {function} must approve the adapter.",
)
DELEGATOR_GONE = RefusalCode(
    "delegator-gone",
    "state",
    "The decision of entry {id} was made on behalf of {delegator}, whose delegation of {function} is not valid.",
    "A reviewer of {function} must approve the adapter.",
)
REVIEW_KEY_INVALID = RefusalCode(
    "review-key-invalid",
    "state",
    "The decision of entry {id} was signed with the key {keyid}, which was revoked from an earlier entry on.",
    "{reviewer} must decide again with a valid key.",
)
REVIEW_EXPIRED = RefusalCode(
    "review-expired",
    "state",
    "The approval of entry {id} expired at {valid_until}. It is {now}.",
    "{reviewer} must approve the adapter again.",
)
REVIEWER_IS_MAKER = RefusalCode(
    "reviewer-is-maker",
    "rule",
    "The decision of entry {id} involves {person}, who ordered the run or imported the training data.",
    "Another reviewer must approve the adapter.",
)
REVIEW_ENDED = RefusalCode(
    "review-ended",
    "state",
    "The adapter was admitted under the approval of entry {id}, which is no longer valid.",
    "The reviewer must approve it again. It is then admitted again.",
)
EMERGENCY_ENDED = RefusalCode(
    "emergency-ended",
    "state",
    "The emergency release of entry {id} ended at {until}.",
    "The release owner must activate an approved adapter.",
)
EMERGENCY_BEFORE_RESET = RefusalCode(
    "emergency-before-clock-reset",
    "state",
    "The emergency release of entry {id} was made before the clock was set back.",
    "The release owner must activate an approved adapter.",
)
EMERGENCY_ADMINISTRATOR_GONE = RefusalCode(
    "emergency-administrator-gone",
    "state",
    "The emergency release of entry {id} was countersigned by {person}, whose key or role as an administrator is "
    "no longer valid.",
    "The release owner must activate an approved adapter.",
)
APPROVED_BY_ACTIVATOR = RefusalCode(
    "activator-approved",
    "policy",
    "{activator} is behind the approval of entry {id}. Policy (approver_may_activate) does not let one person "
    "approve and activate an adapter.",
    "Ask another release owner to activate it, or another reviewer to approve it.",
)
ACTIVATED_BY_APPROVER = RefusalCode(
    "approver-activated",
    "policy",
    "{activator} activated this adapter by entry {entry}. Policy (approver_may_activate) does not let one person "
    "activate and approve an adapter.",
    "Ask another reviewer.",
)
RELEASE_REPLACED = RefusalCode(
    "release-replaced",
    "state",
    "The adapter was admitted under the release of entry {id}, which entry {entry} replaced.",
    "It is admitted again under the current release.",
)
OWNER_GONE = RefusalCode(
    "release-owner-gone",
    "state",
    "{owner}, who signed the release of entry {id}, is no longer a release owner of {unit}.",
    "A release owner of {unit} must activate it again.",
)
RELEASE_KEY_INVALID = RefusalCode(
    "release-key-invalid",
    "state",
    "The release of entry {id} was signed with the key {keyid}, which was revoked from an earlier entry on.",
    "A release owner must activate it again.",
)


def refuse_makers(adapter: Adapter, name: str) -> Reasons:
    """Return the refusal reasons if the person made the adapter.

    A person who ordered the run or imported the dataset cannot review the adapter.
    """
    reasons = []
    if name == adapter.ordered_by:
        reasons.append(ORDERED_THE_RUN(f"principal:{name}"))
    if name == adapter.dataset_by:
        reasons.append(IMPORTED_THE_DATASET(f"principal:{name}"))
    return reasons


def find_blockers(state: State, adapter: Adapter, unit: str, now: Time, served_model: str | None = None) -> Reasons:
    """Return the blockers and the missing approvals that prevent the adapter from serving the unit now.

    With `served_model`, the blockers include the suspensions for this served model alone.
    """
    return find_absolute_blockers(state, adapter, unit, now, served_model) + refuse_missing_approvals(
        state, adapter, unit, now
    )


def find_absolute_blockers(
    state: State, adapter: Adapter, unit: str, now: Time, served_model: str | None = None
) -> Reasons:
    """Return the blockers that no approval overrides. Emergency releases are subject to them, too.

    With `served_model`, they include the suspensions for this served model alone.
    """
    reasons = (
        refuse_revoked(adapter) + refuse_quarantined(adapter) + refuse_suspended(state, adapter, unit, served_model)
    )
    reasons += require_unit(state, unit)
    reasons += (
        refuse_invalid_inputs(state, adapter)
        + refuse_open_findings(state, adapter, now)
        + _check_request(state, adapter, unit)
    )
    reasons += refuse_unaccepted_verdict(state, adapter, find_requirement(state, adapter, unit).required_functions, now)
    for review in list_refusals(state, adapter, unit, now):
        code = REJECTED if review.decision == "reject" else CHANGES_REQUESTED
        reasons.append(code(f"review:{review.index}", reviewer=review.reviewer))
    return reasons


def list_refusals(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """Return the valid rejections and requests for changes.

    A rejection never expires, even if its reviewer was revoked: only that reviewer replaces it, with a valid key.
    """
    return [
        one
        for one in list_latest_reviews(state, adapter, unit)
        if one.decision == "reject"
        or (one.decision == "request-changes" and not explain_stale_approval(state, adapter, one, now))
    ]


def _check_request(state: State, adapter: Adapter, unit: str) -> Reasons:
    """Return the refusal reasons because of a missing release request, or of a run without the required authorisation.

    Policy can require a current request. The tier of the unit's last request by a person can require that a second
    person authorised the run.
    """
    reasons = []
    if find_current_request(state, adapter, unit) is None and state.parameters.requests_required:
        reasons.append(REQUEST_MISSING(f"adapter:{versioned(adapter.name, adapter.version)}"))
    requests = [request for request in adapter.requests if request.unit == unit and request.kind == "request"]
    tier = find_tier(state.parameters, requests[-1]) if requests else None
    missing = explain_unauthorised_run(state, adapter, tier)
    return reasons if missing is None else [*reasons, missing]


def refuse_missing_approvals(state: State, adapter: Adapter, unit: str, now: Time) -> Reasons:
    """Return the refusal reasons because of missing approvals.

    The unit's current request determines the approvals that are needed, or policy if there is no request.
    """
    subject = f"adapter:{versioned(adapter.name, adapter.version)}"
    request = find_current_request(state, adapter, unit)
    rules = find_requirement(state, adapter, unit)
    approved = list_counted_approvals(state, adapter, unit, now)
    functions = {review.review_function for review in approved}
    reasons = []
    if request is not None and request.kind == "break-glass":
        # For all other requests this is a blocker (`_check_request`), which emergencies do not override.
        unauthorised_reason = explain_unauthorised_run(state, adapter, find_tier(state.parameters, request))
        reasons += [] if unauthorised_reason is None else [unauthorised_reason]
    if len(approved) < rules.reviewers:
        reasons.append(TOO_FEW_APPROVALS(subject, needed=rules.reviewers, unit=unit, valid=len(approved)))
    if len(functions) < rules.distinct_functions:
        valid = tuple(sorted(functions)) or "none"
        reasons.append(TOO_FEW_FUNCTIONS(subject, needed=rules.distinct_functions, valid=valid))
    missing = sorted(set(rules.required_functions) - functions)
    if missing:
        reasons.append(FUNCTION_MISSING(subject, missing=tuple(missing)))
    return reasons


def list_eligible_reviewers(state: State, adapter: Adapter, unit: str, now: Time) -> tuple[tuple[str, str], ...]:
    """Return (review function, name) of each reviewer who may still approve, in order.

    Reviewers whose approval is counted already are left out.
    """
    counts = {review.reviewer for review in list_counted_approvals(state, adapter, unit, now)}
    return tuple(
        sorted(
            (role.partition(":")[2], person.name)
            for person in state.principals.values()
            if person.revoked is None
            and person.name not in counts
            and not refuse_makers(adapter, person.name)
            and not refuse_approving_activator(state, adapter, unit, (person.name,))
            for role in person.roles
            if role.startswith("reviewer:")
        )
    )


def list_counted_approvals(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """Return the valid approvals that a quorum counts: one of each person, and one on each person's behalf.

    A person's own approval precedes one that a delegate made on their behalf.
    """
    valid = [review for review in list_valid_reviews(state, adapter, unit, now) if review.approves]
    found: list[ReviewRecord] = []
    people: set[str] = set()
    for review in sorted(valid, key=lambda review: review.on_behalf_of is not None):
        principal = review.reviewer if review.on_behalf_of is None else review.on_behalf_of.principal
        if not {review.reviewer, principal} & people:
            found.append(review)
            people |= {review.reviewer, principal}
    return found


def list_valid_reviews(state: State, adapter: Adapter, unit: str, now: Time) -> list[ReviewRecord]:
    """Return each reviewer's valid decision for the unit. A reviewer who withdrew has none.

    A decision is valid while its reviewer, key, role, separation of duties, date and request are valid.
    """
    latest = [review for review in list_latest_reviews(state, adapter, unit) if review.decision != "withdraw"]
    return [review for review in latest if not explain_invalid_review(state, adapter, review, now)]


def list_latest_reviews(state: State, adapter: Adapter, unit: str) -> list[ReviewRecord]:
    """Return each reviewer's latest decision on the adapter for the unit.

    A reviewer can have one of their own, and one on behalf of each delegator.
    """
    latest: dict[tuple[str, str], ReviewRecord] = {}
    for review in adapter.reviews:
        if review.unit == unit and _replaces(state, review, latest.get(reviewer_key(review))):
            latest[reviewer_key(review)] = review
    return list(latest.values())


def reviewer_key(review: ReviewRecord) -> tuple[str, str]:
    """Return (reviewer, delegator) of a review, with "" for no delegator.

    A decision replaces those of the same pair only.
    """
    return review.reviewer, "" if review.on_behalf_of is None else review.on_behalf_of.principal


def _is_effective(state: State, review: ReviewRecord) -> bool:
    """Return True if the review is an effective decision: it is a refusal, or was signed with a valid key.

    A refusal is effective under an invalid key, too, because a stolen key must not override a rejection.
    """
    return review.decision in ("reject", "request-changes") or is_key_valid(state, review.reviewer, review)


def _replaces(state: State, review: ReviewRecord, earlier: ReviewRecord | None) -> bool:
    """Return True if the review replaces the earlier decision `earlier`.

    A withdrawal or a narrower approval ends an approval even if it was signed with an invalid key. Revoking that key
    does not restore what the key's owner took away. A request for changes ends with the release request, so under an
    invalid key it does not replace a rejection.
    """
    if _is_effective(state, review):
        is_kept = review.decision == "request-changes" and earlier is not None and earlier.decision == "reject"
        return not is_kept or is_key_valid(state, review.reviewer, review)
    if earlier is None or not earlier.approves:
        return False
    narrower = review.conditions not in (None, earlier.conditions) or (review.valid_until or "") < (
        earlier.valid_until or ""
    )
    return review.decision == "withdraw" or narrower


ReviewState = Literal[
    "valid",
    "superseded",
    "lapsed",
    "key-distrusted",
    "reviewer-gone",
    "reviewer-is-maker",
    "delegator-gone",
    "stale",
]
"""States of a recorded review. Only a review that is `valid` counts."""


def describe_state(state: ReviewState, superseded_by: int | None, valid_until: str | None) -> str:
    """Return the state of a review, such as `superseded by entry 14` or `key distrusted`."""
    if superseded_by is not None:
        return f"superseded by entry {superseded_by}"
    if state == "lapsed":
        return f"lapsed at {valid_until}"
    return "valid" if state == "valid" else state.replace("-", " ")


@dataclass(frozen=True, slots=True)
class ReviewStatus:
    """The state of a recorded review.

    `superseded_by`: the entry of the reviewer's next decision. `refusal`: why it is not valid, None if it is.
    """

    state: ReviewState
    superseded_by: int | None = None
    refusal: Refusal | None = None


def find_review_status(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> ReviewStatus:
    """Return the state of a review as admission counts it.

    A rejection is valid until its own reviewer replaces it. An approval is valid until something ends it.
    """
    if _is_effective(state, review):
        after = bisect_right(adapter.reviews, review.index, key=attrgetter("index"))
        for later in (adapter.reviews[place] for place in range(after, len(adapter.reviews))):
            is_same = later.unit == review.unit and reviewer_key(later) == reviewer_key(review)
            if is_same and _replaces(state, later, review):
                reason = REVIEW_SUPERSEDED(f"review:{review.index}", reviewer=review.reviewer, entry=later.index)
                return ReviewStatus("superseded", later.index, reason)
    lapse = None if review.decision == "reject" else _find_lapse(state, adapter, review, now)
    return ReviewStatus("valid") if lapse is None else ReviewStatus(lapse[0], None, lapse[1])


def explain_invalid_review(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> Refusal | None:
    """Return why a recorded review is not valid, None if it is."""
    lapse = _find_lapse(state, adapter, review, now)
    return None if lapse is None else lapse[1]


def _find_lapse(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> tuple[ReviewState, Refusal] | None:
    """Return the state of a review that is not valid and the reason, None if it is valid."""
    subject, reviewer = f"review:{review.index}", state.principals.get(review.reviewer)
    delegated = review.on_behalf_of
    if reviewer is None or not (
        reviewer.revoked is None if delegated else reviewer.has(f"reviewer:{review.review_function}")
    ):
        return "reviewer-gone", REVIEWER_GONE(subject, reviewer=review.reviewer, function=review.review_function)
    if delegated is not None and not _is_delegation_valid(state, delegated, review.review_function):
        return "delegator-gone", DELEGATOR_GONE(subject, delegator=delegated.principal, function=review.review_function)
    if not is_key_valid(state, review.reviewer, review):
        return "key-distrusted", REVIEW_KEY_INVALID(subject, keyid=review.keyid, reviewer=review.reviewer)
    now = state.site.time_for(review.index, now)
    if review.valid_until is not None and review.valid_until <= now:
        reason = REVIEW_EXPIRED(subject, valid_until=review.valid_until, now=now, reviewer=review.reviewer)
        return "lapsed", reason
    for name in (review.reviewer, *(() if delegated is None else (delegated.principal,))):
        if refuse_makers(adapter, name):
            return "reviewer-is-maker", REVIEWER_IS_MAKER(subject, person=name)
    found = explain_stale_approval(state, adapter, review, now)
    if found is None and review.approves:
        functions = find_requirement(state, adapter, review.unit).required_functions
        found = explain_early_approval(state, adapter, review.index, functions, now)
    return None if found is None else ("stale", found)


def _is_delegation_valid(state: State, delegated: Delegator, function: str) -> bool:
    """Return True if the delegator is a reviewer of this function and signed the delegation with a valid key."""
    person, key = state.principals.get(delegated.principal), state.keys.get(delegated.keyid)
    signed = key is not None and key.principal == delegated.principal and key.counts(delegated.index)
    return signed and person is not None and person.has(f"reviewer:{function}")


def compute_clearance(state: State, release: Release, adapter: Adapter, now: Time) -> Clearance:
    """Return the clearance of a release: the refusal reasons against it and against its adapter now.

    The service calls this for every request, so results are cached. A clearance without refusal reasons is reused
    until a row that it rests on changes, or until its first approval or condition ends. Rows are replaced and never
    changed, so identical rows are equal.
    """
    known = state.clearances.get(release_key(release.unit, release.served_model))
    if known is not None and known.counts(release, adapter, state.revision, now):
        return known
    emergency, unit = release.current.kind == "break-glass", release.unit
    find_reasons = find_absolute_blockers if emergency else find_blockers
    latest = {reviewer_key(r): r for r in list_latest_reviews(state, adapter, unit) if r.approves}
    approvals_of_unit = [r for r in adapter.reviews if r.unit == unit and r.approves and reviewer_key(r) in latest]
    # Includes approvals that were renewed later, so that a slot admitted by the earlier one stays valid.
    valid = [review for review in approvals_of_unit if not explain_invalid_review(state, adapter, review, now)]
    binding_reviews = (
        list_last_approvals(adapter, unit) if emergency else [review for review in latest.values() if review in valid]
    )
    binding = binding_conditions(state, adapter, unit, binding_reviews)
    reasons = find_reasons(state, adapter, unit, now, release.served_model) + refuse_invalid_release(state, release)
    reasons += approved_by_activator(state, adapter, unit, release.current.signer, now)
    reasons += refuse_ended_emergency(state, release, now) + refuse_by_binding(
        state, binding, release.served_model, now
    )
    dates = [
        date
        for r in valid
        for date in (r.valid_until, find_reattestation_deadline(state, adapter, r))
        if date is not None
    ]
    dates += [*ends(binding), *exceptions_end(state, adapter), *filter(None, [release.current.until])]
    until = now if reasons or not dates else min(dates)
    approvals = frozenset(review.index for review in valid)
    return Clearance(tuple(reasons), release, adapter, state.revision, until, approvals, daily_limit(binding))


def refuse_ended_emergency(state: State, release: Release, now: Time) -> Reasons:
    """Return the refusal reasons if an emergency has ended, or if its second person's key or role is not valid."""
    activation = release.current
    if activation.until is None:
        return []
    if activation.until <= now or any(activation.index < reset.index for reset in state.site.resets):
        if activation.until <= now:
            return [EMERGENCY_ENDED(f"release:{activation.index}", until=activation.until)]
        return [EMERGENCY_BEFORE_RESET(f"release:{activation.index}")]
    key = state.keys.get(activation.countersigned_keyid or "")
    person = None if key is None else state.principals.get(key.principal)
    if key is None or person is None or not key.counts(activation.index) or not person.has("administrator"):
        name = "nobody" if key is None else key.principal
        return [EMERGENCY_ADMINISTRATOR_GONE(f"release:{activation.index}", person=name)]
    return []


def list_last_approvals(adapter: Adapter, unit: str) -> list[ReviewRecord]:
    """Return each reviewer's last approval, even if it was replaced.

    Its conditions also apply to an emergency release.
    """
    approved = [review for review in adapter.reviews if review.unit == unit and review.approves]
    return list({reviewer_key(review): review for review in approved}.values())


def approved_by_activator(state: State, adapter: Adapter, unit: str, activator: str, now: Time) -> Reasons:
    """Return the refusal reasons if this person approved what they activate and policy forbids to do both.

    A person approved if they signed a valid approval, also on behalf of another, or if a delegate signed one on
    theirs. Approvals that were withdrawn or have expired do not count.
    """
    if state.parameters.approver_may_activate:
        return []
    reasons = []
    for review in list_valid_reviews(state, adapter, unit, now):
        place = None if review.on_behalf_of is None else review.on_behalf_of.principal
        if not review.approves or activator not in (review.reviewer, place):
            continue
        reasons.append(APPROVED_BY_ACTIVATOR(f"review:{review.index}", activator=activator))
    return reasons


def refuse_approving_activator(state: State, adapter: Adapter, unit: str, approvers: Collection[str | None]) -> Reasons:
    """Return the refusal reasons if one of these approvers activated the adapter and policy forbids to do both."""
    if state.parameters.approver_may_activate:
        return []
    name = versioned(adapter.name, adapter.version)
    return [
        ACTIVATED_BY_APPROVER(f"adapter:{name}", activator=current.signer, entry=current.index)
        for release in state.releases.values()
        if release.unit == unit and (current := release.current).adapter == name and current.signer in approvers
    ]


def refuse_by_conditions(
    state: State, adapter: Adapter, unit: str, served_model: str, now: Time, *, emergency: bool = False
) -> Reasons:
    """Return the refusal reasons that the conditions of the release would have, by their dates and served models."""
    valid = [review for review in list_valid_reviews(state, adapter, unit, now) if review.approves]
    approvals = list_last_approvals(adapter, unit) if emergency else valid
    return refuse_by_binding(state, binding_conditions(state, adapter, unit, approvals), served_model, now)


def find_release_blockers(state: State, release: Release, adapter: Adapter, now: Time) -> Reasons:
    """Return all refusal reasons against a release now."""
    return list(compute_clearance(state, release, adapter, now).reasons)


def find_superseded_evidence(clearance: Clearance, slot: Slot) -> Reasons:
    """Return the reasons for which a slot's admission is no longer valid.

    A slot rests on one release entry and on certain approvals, which its response records name. The release can have
    other valid approvals.
    """
    current = clearance.release.current.index
    if slot.release != current:
        return [RELEASE_REPLACED(f"release:{slot.release}", entry=current)]
    gone = [index for index in slot.approvals if index not in clearance.approvals]
    return [REVIEW_ENDED(f"review:{index}") for index in gone]


def refuse_invalid_release(state: State, release: Release) -> Reasons:
    """Return the refusal reason if the current release is not valid.

    It is not valid if its signer was revoked or lost the role, or if the key is not valid at that entry.
    """
    activation = release.current
    owner, key = state.principals.get(activation.signer), state.keys.get(activation.keyid)
    if owner is None or not owner.has(f"release-owner:{release.unit}"):
        return [OWNER_GONE(f"release:{activation.index}", owner=activation.signer, unit=release.unit)]
    if key is None or not key.counts(activation.index):
        return [RELEASE_KEY_INVALID(f"release:{activation.index}", keyid=activation.keyid)]
    return []


def find_released_adapter(state: State, unit: str, served_model: str) -> Adapter | None:
    """Return the adapter that the current release names for the unit's served model, admissible or not."""
    release = state.releases.get(release_key(unit, served_model))
    return None if release is None else state.adapters.get(release.current.adapter)
