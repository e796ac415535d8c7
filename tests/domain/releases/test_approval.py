"""The cache of blockers: computed again after every change that they depend on, and at expiry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.releases import approval
from appliance.domain.releases.approval import find_release_blockers, find_review_status, list_valid_reviews
from scripts.kit.log_builder import LogBuilder, policy_set, stage


def reasons(site: LogBuilder, now: str | None = None) -> list[str]:
    release, adapter = site.state.releases.get("legal/labels"), site.state.adapters.get("clauses@1")
    assert release is not None and adapter is not None
    return [str(one) for one in find_release_blockers(site.state, release, adapter, now or site.now)]


def first_review(site: LogBuilder) -> int:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return adapter.reviews[0].index


CHANGES: dict[str, Callable[[LogBuilder], object]] = {
    "a reviewer leaves": lambda site: site.revoke("rita"),
    "a release owner leaves": lambda site: site.revoke("otto"),
    "a unit leaves": lambda site: site.revoke("legal"),
    "a key is distrusted": lambda site: site.revoke_key("rita", since=first_review(site)),
    "a rejection": lambda site: site.review("rita", "privacy", decision="reject"),
    "a stricter policy": lambda site: site.adopt(policy_set(reviewers=3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_it_rests_on_bars_a_release_that_was_clear(change: Callable[[LogBuilder], object]) -> None:
    site = stage("serving")
    assert reasons(site) == [] and reasons(site) == []
    change(site)
    assert reasons(site) != []


def test_a_release_that_was_clear_is_barred_when_the_first_of_its_approvals_ends() -> None:
    site = stage("serving")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    end = min(review.valid_until for review in adapter.reviews)
    assert reasons(site) == []
    assert reasons(site, add_seconds(end, -1)) == []
    assert any("approval" in str(reason) for reason in reasons(site, end))


def test_what_is_taken_back_is_asked_again() -> None:
    site = stage("serving")
    mark = site.state.mark()
    site.state.principals.put("rita", None)
    assert reasons(site) != []
    site.state.take_back(mark)
    assert reasons(site) == []
    site.state.principals.put("rita", None)
    assert reasons(site) != []


def test_a_clear_release_is_not_evaluated_again_for_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    site = stage("serving")
    assert reasons(site) == []
    monkeypatch.setattr(approval, "find_blockers", lambda *_: pytest.fail("evaluated again"))
    site.add(site.request(7))
    site.add(site.answered(7))
    assert reasons(site) == []


def list_statuses(site: LogBuilder, name: str, now: str | None = None) -> list[tuple[str, int | None]]:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    found = [find_review_status(site.state, adapter, r, now or site.now) for r in adapter.reviews if r.reviewer == name]
    return [(one.state, one.superseded_by) for one in found]


STATES: dict[str, tuple[Callable[[LogBuilder], object], str]] = {
    "a reviewer leaves": (lambda site: site.revoke("rita"), "reviewer-gone"),
    "a key is distrusted": (lambda site: site.revoke_key("rita", since=first_review(site)), "key-distrusted"),
    "nothing": (lambda site: None, "valid"),
    "a rejection": (lambda site: site.review("rita", "privacy", decision="reject"), "superseded"),
}


@pytest.mark.parametrize(("act", "state"), STATES.values(), ids=STATES)
def test_a_review_has_one_state_and_counts_only_while_it_stands(
    act: Callable[[LogBuilder], object], state: str
) -> None:
    site = stage("approved")
    act(site)
    assert list_statuses(site, "rita")[0][0] == state
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    counted = [
        review for review in list_valid_reviews(site.state, adapter, "legal", site.now) if review.reviewer == "rita"
    ]
    stands = [review for review in counted if review.decision == "approve"]
    assert bool(stands) == (state == "valid")


def test_an_approval_lapses_and_a_rejection_does_not() -> None:
    site = stage("approved")
    later = add_seconds(site.now, 200 * 86_400)
    assert list_statuses(site, "rita", later) == [("lapsed", None)]
    entry = site.review("rita", "privacy", decision="reject")
    assert list_statuses(site, "rita", later) == [("superseded", entry.index), ("valid", None)]


def test_a_rejection_that_a_distrusted_key_lifted_stands_again() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", decision="reject")
    entry = site.review("rita", "privacy")
    assert [state for state, _ in list_statuses(site, "rita")] == ["superseded", "valid"]
    site.revoke_key("rita", since=entry.index)
    assert [state for state, _ in list_statuses(site, "rita")] == ["valid", "key-distrusted"]
