"""A release request is ordered by who ordered the run; approvals are made on it and end with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.releases.approval import inadmissible, review_standing
from appliance.domain.releases.tiers import current_request, tier_for
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.judged_release import adapter_of, approve, reasons

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
    found = tier_for(Parameters(), exposure, purpose)
    assert found is not None and found.name == tier


def test_a_word_that_policy_does_not_know_has_no_tier() -> None:
    assert tier_for(Parameters(), "abroad", "draft") is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another operator": ({"by": "ines"}, "expected olga, who ordered the run, got ines"),
    "a reviewer": ({"by": "rita"}, "role: expected rita to be operator"),
    "a lower tier than policy makes of it": (
        {"exposure": "public", "purpose": "decide", "tier": "low"},
        "tier: expected high for public and decide, got low",
    ),
    "an unknown exposure": ({"exposure": "abroad"}, "exposure: expected one of internal, customers, public"),
    "another verdict": ({"verdict": "sha256:" + "1" * 64}, "verdict: expected none, got sha256:1"),
    "no unit": ({"unit": "olga"}, "unit: expected an enrolled one, got olga"),
    "other bytes": ({"manifest": "sha256:" + "1" * 64}, "expected the manifest"),
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
    with pytest.raises(Denied, match=r"request: expected sha256:.*, got none"):
        site.review("rita", "privacy", request=None)
    old = adapter_of(site).requests[-1].order
    site.request_release(purpose="draft")
    with pytest.raises(Denied, match="request: expected sha256:"):
        site.review("rita", "privacy", request=old)


def test_a_decision_on_a_request_has_a_reason() -> None:
    with pytest.raises(Denied, match="reason: expected one for the decision approve, got none"):
        requested().review("rita", "privacy", reason=None)


def test_the_tier_decides_how_many_reviewers() -> None:
    site = requested(exposure="public", purpose="decide", tier="high")
    approve(site)
    with pytest.raises(Denied, match="quorum: expected 3 standing approvals"):
        site.activate()
    site.enroll("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.activate()


def test_a_policy_that_requires_requests_counts_no_approval_without_one() -> None:
    site = stage("sealed", policy_set(requests_required=True))
    with pytest.raises(Denied, match="request: expected a standing one for legal, as policy requires"):
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
    standing = review_standing(site.state, adapter, adapter.reviews[0], site.now)
    assert (standing.state, "expected one on the release request of entry" in str(standing.against)) == ("stale", True)
    with pytest.raises(Denied, match=r"quorum: expected 2 standing approvals .* got 0"):
        site.activate()


def test_an_earlier_request_does_not_stand_again_when_a_later_one_is_withdrawn() -> None:
    site = requested()
    approve(site)
    site.request_release(purpose="draft")
    site.withdraw_request()
    assert any("got none that does" in str(review_standing(site.state, adapter_of(site), r, site.now).against)
               for r in adapter_of(site).reviews)  # fmt: skip
    assert any("quorum" in reason for reason in inadmissible(site.state, adapter_of(site), "legal", site.now))


def test_an_approval_ends_at_the_time_of_its_reattestation_and_not_before() -> None:
    tier = Parameters().tiers[0].model_copy(update={"reattest_s": 3_600})
    site = stage("sealed", policy_set(tiers=(tier,)))
    site.request_release()
    approve(site)
    site.activate()
    first = adapter_of(site).reviews[0]
    assert reasons(site) == []
    assert reasons(site, add_seconds(first.time, 3_599)) == []
    assert any("quorum" in reason for reason in reasons(site, add_seconds(first.time, 3_600)))


def test_after_the_time_for_a_review_only_who_approved_before_approves_again() -> None:
    site = requested()
    site.review("rita", "privacy")
    site.now = add_seconds(site.now, 31 * DAY_S)
    site.review("rita", "privacy")
    with pytest.raises(Denied, match="it has to be requested again"):
        site.review("raul", "model-risk")
    assert any("quorum" in reason for reason in inadmissible(site.state, adapter_of(site), "legal", site.now))


def test_a_request_for_changes_ends_with_the_request_that_it_was_made_on() -> None:
    site = requested()
    site.review("rita", "privacy", decision="request-changes")
    assert any("request for changes" in r for r in inadmissible(site.state, adapter_of(site), "legal", site.now))
    site.request_release()
    approve(site)
    site.activate()


def test_a_request_is_withdrawn_by_who_asked_or_an_administrator_alone() -> None:
    for who in ("ines", "rita"):
        with pytest.raises(Denied, match="role: expected"):
            requested().withdraw_request(who)
    requested().withdraw_request("anna")


def test_a_withdrawal_under_a_distrusted_key_lifts_no_rejection() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", decision="reject")
    entry = site.review("rita", "privacy", decision="withdraw")
    assert not any("rejection" in r for r in inadmissible(site.state, adapter_of(site), "legal", site.now))
    site.revoke_key("rita", since=entry.index)
    assert any("rejection" in r for r in inadmissible(site.state, adapter_of(site), "legal", site.now))


def test_a_withdrawn_approval_does_not_come_back_with_the_revocation_of_the_key_that_withdrew_it() -> None:
    """One administrator alone would give an approval otherwise."""
    site = stage("approved")
    withdrawal = site.review("rita", "privacy", decision="withdraw")
    before = inadmissible(site.state, adapter_of(site), "legal", site.now)
    assert any("quorum" in reason for reason in before)
    site.revoke_key("rita", since=withdrawal.index)
    assert inadmissible(site.state, adapter_of(site), "legal", site.now) == before
    approval = next(one for one in adapter_of(site).reviews if one.reviewer == "rita")
    found = review_standing(site.state, adapter_of(site), approval, site.now)
    assert (found.state, found.superseded_by) == ("superseded", withdrawal.index)


def test_nothing_is_withdrawn_twice() -> None:
    site = stage("approved")
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match="to withdraw, got none that stands"):
        site.review("rita", "privacy", decision="withdraw")


def test_a_slot_that_a_withdrawn_approval_admitted_is_emptied_though_others_approve() -> None:
    site = stage("approved")
    site.enroll("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.activate()
    site.load()
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match="got one that has lapsed"):
        site.add(site.request(1))


def test_an_approval_is_stale_where_another_verdict_was_sealed_than_the_request_binds() -> None:
    site = requested()
    approve(site)
    adapter = adapter_of(site).model_copy(update={"verdict": "sha256:" + "2" * 64})
    standing = review_standing(site.state, adapter, adapter.reviews[0], site.now)
    assert standing.state == "stale" and "of the verdict sha256:2" in str(standing.against)


def test_a_request_that_was_replaced_does_not_stand_again_with_the_key_of_the_one_after_it() -> None:
    """Otherwise who asked could revoke their own key and have back what was withdrawn or sent back since."""
    site = requested()
    approve(site)
    site.activate()
    second = site.request_release()
    site.withdraw_request("anna")
    assert reasons(site)
    site.revoke_key("olga", since=second.index)
    assert current_request(site.state, adapter_of(site), "legal") is None
    assert reasons(site)
