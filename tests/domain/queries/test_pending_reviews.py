"""The pending reviews of a reviewer, and when they end."""

from __future__ import annotations

from appliance.domain.core.names import add_seconds
from appliance.domain.queries.pending import PendingReview, list_pending_reviews
from scripts.kit.log_builder import LogBuilder, stage

DAY_S = 86_400


def _waiting(site: LogBuilder, name: str, *, everyone: bool = False, now: str | None = None) -> list[PendingReview]:
    return list(list_pending_reviews(site.state, now or site.now, name, everyone=everyone))


def test_an_adapter_waits_for_each_reviewer_until_they_have_decided() -> None:
    site = stage("sealed")
    assert [one.adapter for one in _waiting(site, "rita")] == ["clauses@1"]
    site.review("rita", "privacy")
    assert _waiting(site, "rita") == []
    (one,) = _waiting(site, "raul")
    assert (one.unit, one.approvals, one.required, one.mine) == ("legal", 1, 2, True)
    (one,) = _waiting(site, "rita", everyone=True)
    assert not one.mine
    site.review("raul", "model-risk")
    assert _waiting(site, "raul", everyone=True) == []


def test_an_adapter_whose_approvals_have_lapsed_waits_again() -> None:
    """A cached result is computed again once an approval has expired, and after a key that signed one was revoked."""
    site = stage("approved")
    assert _waiting(site, "rita", everyone=True) == []
    later = add_seconds(site.now, 2 * DAY_S)
    assert [one.approvals for one in _waiting(site, "rita", now=later)] == [0]
    assert _waiting(site, "rita", everyone=True) == []
    site.revoke("raul")
    (one,) = _waiting(site, "rita", everyone=True)
    assert one.approvals == 1 and not one.mine


def test_what_was_rejected_or_revoked_waits_for_nobody() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", decision="reject")
    assert _waiting(site, "raul", everyone=True) == []


def test_a_request_for_changes_waits_for_no_reviewer_until_the_release_is_requested_again_or_it_is_stale() -> None:
    site = stage("sealed")
    site.request_release()
    site.review("rita", "privacy", decision="request-changes")
    assert _waiting(site, "raul", everyone=True) == []
    assert [one.adapter for one in _waiting(site, "raul", now=add_seconds(site.now, 1_000 * DAY_S))] == ["clauses@1"]
    site.request_release()
    assert [one.mine for one in _waiting(site, "rita")] == [True]


def test_who_made_an_adapter_is_not_asked_to_review_it() -> None:
    site = stage("sealed")
    (one,) = _waiting(site, "olga", everyone=True)
    assert not one.mine


def test_a_request_waits_for_its_unit_with_its_tier_and_date() -> None:
    site = stage("sealed")
    site.request_release()
    (one,) = _waiting(site, "rita")
    assert (one.unit, one.tier, one.asked_by) == ("legal", "low", "olga")
    assert one.until == add_seconds(one.asked or "", 30 * DAY_S)


def test_an_adapter_waits_for_who_decides_in_a_reviewers_place_until_the_reviewer_decided() -> None:
    site = stage("sealed")
    site.enrol("dana", "release-owner:legal")
    assert _waiting(site, "dana") == []
    site.delegate("dana")
    (one,) = _waiting(site, "dana")
    assert (one.mine, one.in_place_of) == (True, ("rita",))
    assert _waiting(site, "dana", now=add_seconds(site.now, 400 * DAY_S)) == []
    site.review("rita", "privacy")
    assert _waiting(site, "dana") == []
