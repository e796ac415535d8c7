"""A release request is made by the person who ordered the run; approvals belong to it and end with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core import decisions
from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.releases.approval import find_blockers, find_review_status
from appliance.domain.releases.requests import choose_tier, find_current_request
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.evaluated_release import adapter_of, approve, reasons
from tests.kit.refusals import refuses

DAY_S = 86_400


def requested(**fields: Any) -> LogBuilder:
    site = stage("sealed")
    site.request_release(**fields)
    return site


def released_on_request(**fields: Any) -> LogBuilder:
    site = requested(**fields)
    approve(site)
    site.activate()
    return site


@pytest.mark.parametrize(
    ("exposure", "purpose", "tier"),
    [
        ("internal", "draft", "low"),
        ("internal", "assist", "low"),
        ("internal", "decide", "medium"),
        ("customers", "assist", "medium"),
        ("customers", "decide", "high"),
        ("public", "decide", "high"),
        ("public", "draft", "medium"),
    ],
)
def test_the_tier_is_exposure_times_purpose(exposure: str, purpose: str, tier: str) -> None:
    found = choose_tier(Parameters(), exposure, purpose)
    assert found is not None and found.name == tier


def test_a_word_that_policy_does_not_know_has_no_tier() -> None:
    assert choose_tier(Parameters(), "abroad", "draft") is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another operator": ({"by": "ines"}, r"olga ordered the training run and must sign this action\. ines cannot\."),
    "a reviewer": ({"by": "rita"}, r"rita is reviewer:privacy\. This action needs operator\."),
    "a lower tier than policy makes of it": (
        {"exposure": "public", "purpose": "decide", "tier": "low"},
        r"Policy gives the tier high to the exposure public and the purpose decide\. The order names another",
    ),
    "an unknown exposure": ({"exposure": "abroad"}, r"Policy does not list the exposure abroad\."),
    "another verdict": (
        {"verdict": "sha256:" + "1" * 64},
        r"The release request names another verdict than that of adapter clauses@1, which is none\.",
    ),
    "no unit": ({"unit": "olga"}, r"olga is not an enrolled unit\."),
    "other bytes": (
        {"manifest": "sha256:" + "1" * 64},
        r"The order is for an adapter .* with the manifest .*\. The sealed adapter has the manifest .*\.",
    ),
}


@pytest.mark.parametrize(("fields", "why"), WRONG.values(), ids=WRONG)
def test_a_request_is_refused_to(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Denied, match=why):
        stage("sealed").request_release(**fields)


def test_another_operator_asks_where_the_orderer_has_left() -> None:
    site = stage("sealed")
    site.revoke("olga")
    site.request_release("ines")
    assert adapter_of(site).requests[-1].requested_by == "ines"


def test_an_approval_on_another_request_than_the_one_that_stands_is_refused() -> None:
    site = requested()
    with pytest.raises(
        Denied, match=r"The order does not name the current release request\. The entry of the current request: 26\."
    ):
        site.review("rita", "privacy", request=None)
    old = adapter_of(site).requests[-1].order
    site.request_release(purpose="draft")
    with pytest.raises(
        Denied, match=r"The order does not name the current release request\. The entry of the current request: 27\."
    ):
        site.review("rita", "privacy", request=old)


def test_a_decision_on_a_request_has_a_reason() -> None:
    with pytest.raises(Denied, match=r"The decision approve needs a reason\."):
        requested().review("rita", "privacy", reason=None)


@pytest.mark.parametrize("left", [{"exposures": ("inside",)}, {"purposes": ("draft",)}])
def test_a_request_that_the_current_policy_has_no_tier_for_is_not_approved(left: dict[str, Any]) -> None:
    site = requested()
    site.adopt(policy_set(**left))
    order = site.review_order("rita", "privacy")
    assert "request-not-in-policy" in [reason.code for reason in list_refusal_reasons(site.state, order, site.now)]
    with pytest.raises(Denied, match="does not list the exposure or the purpose of the release request of entry"):
        site.review("rita", "privacy")
    site.review("rita", "privacy", decision="reject")


def test_the_tier_decides_how_many_reviewers() -> None:
    site = requested(exposure="public", purpose="decide", tier="high")
    approve(site)
    with pytest.raises(Denied, match=r"Adapter clauses@1 needs 3 valid approvals for legal and has 2\."):
        site.activate()
    site.enrol("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.activate()


def test_a_policy_that_requires_requests_counts_no_approval_without_one() -> None:
    site = stage("sealed", policy_set(requests_required=True))
    with pytest.raises(
        Denied,
        match=r"Policy requires a release request\. There is no valid request to release adapter clauses@1 to this",
    ):
        site.review("rita", "privacy")
    site.request_release()
    approve(site)
    site.activate()


STALE: dict[str, Callable[[LogBuilder], object]] = {
    "another request": lambda site: site.request_release(purpose="draft"),
    "the same request again": lambda site: site.request_release(),
    "a withdrawn request": lambda site: site.withdraw_request(),
    "a distrusted key of who asked": lambda site: site.revoke_key("olga", since=adapter_of(site).requests[-1].index),
    "a policy without the exposure": lambda site: site.adopt(policy_set(exposures=("inside",))),
    "a stricter tier": lambda site: site.adopt(policy_set(purposes=("x", "y", "z", "w", "v", "assist"))),
    "a revoked base": lambda site: site.revoke_base(),
    "a revoked dataset": lambda site: site.revoke_dataset(),
    "a withdrawn approval": lambda site: site.review("rita", "privacy", decision="withdraw"),
    "a request for changes": lambda site: site.review("rita", "privacy", decision="request-changes"),
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_release_answers_no_more_after(change: Callable[[LogBuilder], object]) -> None:
    site = released_on_request()
    assert reasons(site) == []
    change(site)
    assert reasons(site) != []


def test_an_unrelated_change_of_policy_stops_nobody() -> None:
    site = released_on_request()
    site.adopt(policy_set(session_lifetime_s=600, exposures=("internal", "customers", "public", "abroad")))
    assert reasons(site) == []


def test_an_approval_that_went_stale_is_said_to_be_and_is_of_no_use() -> None:
    site = requested()
    approve(site)
    site.request_release(purpose="draft")
    adapter = adapter_of(site)
    status = find_review_status(site.state, adapter, adapter.reviews[0], site.now)
    assert (
        status.state,
        "The decision of entry 27 is not on the current release request, which is that of entry 29."
        in str(status.refusal),
    ) == ("stale", True)
    with pytest.raises(Denied, match=r"Adapter clauses@1 needs 2 valid approvals for legal and has 0\."):
        site.activate()


def test_an_earlier_request_does_not_stand_again_when_a_later_one_is_withdrawn() -> None:
    site = requested()
    approve(site)
    site.request_release(purpose="draft")
    site.withdraw_request()
    statuses = [find_review_status(site.state, adapter_of(site), one, site.now) for one in adapter_of(site).reviews]
    assert "review-without-request" in {one.refusal.code for one in statuses if one.refusal is not None}
    assert any("approval" in str(reason) for reason in find_blockers(site.state, adapter_of(site), "legal", site.now))


def test_an_approval_ends_at_the_time_of_its_reattestation_and_not_before() -> None:
    tier = Parameters().tiers[0].model_copy(update={"reattest_s": 3_600})
    site = stage("sealed", policy_set(tiers=(tier,)))
    site.request_release()
    approve(site)
    site.activate()
    first = adapter_of(site).reviews[0]
    assert reasons(site) == []
    assert reasons(site, add_seconds(first.time, 3_599)) == []
    assert any("approval" in str(reason) for reason in reasons(site, add_seconds(first.time, 3_600)))


def test_after_the_time_for_a_review_only_who_approved_before_approves_again() -> None:
    site = requested()
    site.review("rita", "privacy")
    site.now = add_seconds(site.now, 31 * DAY_S)
    site.review("rita", "privacy")
    with pytest.raises(Denied, match=r"The release request of entry 26 could be approved until .*\. It is"):
        site.review("raul", "model-risk")
    assert any("approval" in str(reason) for reason in find_blockers(site.state, adapter_of(site), "legal", site.now))


def codes(site: LogBuilder) -> set[str]:
    """Return the codes of the refusals of a release to legal."""
    return {one.code for one in find_blockers(site.state, adapter_of(site), "legal", site.now)}


def test_a_request_for_changes_ends_with_the_request_that_it_was_made_on() -> None:
    site = requested()
    site.review("rita", "privacy", decision="request-changes")
    assert "review-requested-changes" in codes(site)
    site.request_release()
    approve(site)
    site.activate()


def test_a_request_is_withdrawn_by_who_asked_or_an_administrator_alone() -> None:
    for who in ("ines", "rita"):
        with pytest.raises(Denied, match=r".* is .*\. This action needs .*\."):
            requested().withdraw_request(who)
    requested().withdraw_request("anna")


def test_a_withdrawal_under_a_distrusted_key_lifts_no_rejection() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", decision="reject")
    entry = site.review("rita", "privacy", decision="withdraw")
    assert "review-rejected" not in codes(site)
    site.revoke_key("rita", since=entry.index)
    assert "review-rejected" in codes(site)


def test_a_request_for_changes_under_a_distrusted_key_lifts_no_rejection() -> None:
    """It would end with the next request, and the rejection with it."""
    site = requested()
    site.review("rita", "privacy", decision="reject")
    entry = site.review("rita", "privacy", decision="request-changes")
    site.request_release()
    assert "review-rejected" not in codes(site)
    site.revoke_key("rita", since=entry.index)
    assert "review-rejected" in codes(site)
    rejection, changes = adapter_of(site).reviews
    assert find_review_status(site.state, adapter_of(site), rejection, site.now).state == "valid"
    assert find_review_status(site.state, adapter_of(site), changes, site.now).state != "valid"


def test_a_withdrawn_approval_does_not_come_back_with_the_revocation_of_the_key_that_withdrew_it() -> None:
    """One administrator alone would give an approval otherwise."""
    site = stage("approved")
    withdrawal = site.review("rita", "privacy", decision="withdraw")
    before = find_blockers(site.state, adapter_of(site), "legal", site.now)
    assert any("approval" in str(reason) for reason in before)
    site.revoke_key("rita", since=withdrawal.index)
    assert find_blockers(site.state, adapter_of(site), "legal", site.now) == before
    approval = next(one for one in adapter_of(site).reviews if one.reviewer == "rita")
    found = find_review_status(site.state, adapter_of(site), approval, site.now)
    assert (found.state, found.superseded_by) == ("superseded", withdrawal.index)


def test_nothing_is_withdrawn_twice() -> None:
    site = stage("approved")
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match=r"rita has no valid decision on this adapter that can be withdrawn\."):
        site.review("rita", "privacy", decision="withdraw")


def test_a_slot_that_a_withdrawn_approval_admitted_is_emptied_though_others_approve() -> None:
    site = stage("approved")
    site.enrol("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.activate()
    site.load()
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(
        Denied, match=r"The adapter was admitted under the approval of entry 26, which is no longer valid\."
    ):
        site.add(site.request(1))


def test_an_approval_is_stale_where_another_verdict_was_sealed_than_the_request_binds() -> None:
    site = requested()
    approve(site)
    adapter = adapter_of(site).model_copy(update={"verdict": "sha256:" + "2" * 64})
    status = find_review_status(site.state, adapter, adapter.reviews[0], site.now)
    assert (
        status.state == "stale"
        and "The release request behind the decision of entry 27 names another verdict than the adapter's."
        in str(status.refusal)
    )


def test_a_request_that_was_replaced_does_not_stand_again_with_the_key_of_the_one_after_it() -> None:
    """Otherwise the requester could revoke their own key and so restore a request that was withdrawn or returned."""
    site = requested()
    approve(site)
    site.activate()
    second = site.request_release()
    site.withdraw_request("anna")
    assert reasons(site)
    site.revoke_key("olga", since=second.index)
    assert find_current_request(site.state, adapter_of(site), "legal") is None
    assert reasons(site)


# Numbers of decisions.

DECISIONS: dict[str, tuple[str, Callable[[LogBuilder], Any]]] = {
    "findings": ("sealed", lambda site: site.find(blocks=False)),
    "release requests to legal": ("sealed", lambda site: site.request_release()),
    "reviews for legal": ("sealed", lambda site: site.review("rita", "privacy")),
    "activations for legal/labels": ("approved", lambda site: site.activate()),
}


@pytest.mark.parametrize("what", DECISIONS)
def test_a_person_signs_a_bounded_number_of_decisions_about_an_adapter(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them copies the row of the adapter or the release, so the rows on the disk would grow quadratically."""
    monkeypatch.setattr(decisions, "MOST_DECISIONS", 3)
    name, decide = DECISIONS[what]
    site = stage(name)
    for _ in range(3):
        decide(site)
    with refuses(site, Denied, f"has signed 3 {what} of clauses@1, the most that one person can sign"):
        decide(site)


def test_a_person_who_has_signed_the_most_reviews_can_still_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MOST_DECISIONS", 3)
    site = stage("sealed")
    for _ in range(3):
        site.review("rita", "privacy")
    site.review("rita", "privacy", decision="reject")
    for decision in ("reject", "approve"):
        with refuses(site, Denied, "rita has signed 4 reviews for legal of clauses@1"):
            site.review("rita", "privacy", decision=decision)
    site.review("raul", "model-risk")
