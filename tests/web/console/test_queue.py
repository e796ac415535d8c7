"""What waits for a reviewer, and what does not any more."""

from __future__ import annotations

from appliance.domain.core.names import add_seconds
from appliance.web.console.core.page import Viewer
from appliance.web.console.reviewers.queue import QueueQuery, Waiting, waiting_for
from scripts.kit.log_builder import LogBuilder, stage

DAY_S = 86_400


def _waiting(site: LogBuilder, name: str, *, everyone: bool = False, now: str | None = None) -> list[Waiting]:
    person = site.state.principals.get(name)
    assert person is not None
    viewer = Viewer(name, person.roles, "", "")
    return list(waiting_for(site.state, now or site.now, viewer, QueueQuery(everyone=everyone)))


def test_an_adapter_waits_for_each_reviewer_until_they_have_decided() -> None:
    site = stage("sealed")
    assert [one.adapter for one in _waiting(site, "rita")] == ["clauses@1"]
    site.review("rita", "privacy")
    assert _waiting(site, "rita") == []
    (one,) = _waiting(site, "raul")
    assert (one.unit, one.approvals, one.needed, one.mine) == ("legal", 1, 2, True)
    (one,) = _waiting(site, "rita", everyone=True)
    assert not one.mine
    site.review("raul", "model-risk")
    assert _waiting(site, "raul", everyone=True) == []


def test_an_adapter_whose_approvals_have_lapsed_waits_again() -> None:
    """What was settled is asked again once an approval's date has come, and after a key that signed one is gone."""
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
