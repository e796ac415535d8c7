"""What the invariants say about states that no log makes by itself: each reason stands alone.

A log revokes a reviewer and the key together, so the checks on each are tried here on a state set by hand, as a
database in wrong hands might hold it.
"""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.data.datasets import next_dataset_version
from appliance.domain.releases.adapters import next_version
from appliance.domain.releases.approval import review_lapsed
from appliance.domain.rulebook.registry import VERBS, reasons_against
from appliance.domain.runs.cancellation import Cancel
from scripts.kit.log_builder import LogBuilder, stage


def first_review(site: LogBuilder) -> tuple[Adapter, ReviewRecord]:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return adapter, adapter.reviews[0]


def test_a_standing_review_has_not_lapsed() -> None:
    site = stage("approved")
    assert review_lapsed(site.state, *first_review(site), site.now) is None


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("principals", {"revoked": 1}, "expected rita to be a standing reviewer of privacy"),
        ("principals", {"roles": ("reviewer:safety",)}, "expected rita to be a standing reviewer of privacy"),
        ("principals", None, "expected rita to be a standing reviewer of privacy"),
        ("keys", {"distrusted": 1}, "expected a key that counts at that entry"),
        ("keys", {"principal": "raul"}, "expected a key that counts at that entry"),
        ("keys", {"enrolled": 10_000}, "expected a key that counts at that entry"),
        ("keys", None, "expected a key that counts at that entry"),
    ],
)
def test_a_review_lapses_with_its_reviewer_or_key(table: str, change: dict[str, Any] | None, words: str) -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    rows = getattr(site.state, table)
    key = "rita" if table == "principals" else review.keyid
    rows.put(key, None if change is None else rows.get(key).model_copy(update=change))
    reason = review_lapsed(site.state, adapter, review, site.now)
    assert reason is not None and words in reason


def test_a_key_enrolled_by_the_reviews_own_entry_is_not_enrolled_before_it() -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    key = site.state.keys.get(review.keyid)
    assert key is not None
    site.state.keys.put(review.keyid, key.model_copy(update={"enrolled": review.index}))
    assert review_lapsed(site.state, adapter, review, site.now) is not None
    site.state.keys.put(review.keyid, key.model_copy(update={"enrolled": review.index - 1}))
    assert review_lapsed(site.state, adapter, review, site.now) is None


@pytest.mark.parametrize("maker", ["ordered_by", "dataset_by"])
def test_a_review_by_a_maker_lapses(maker: str) -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    reason = review_lapsed(site.state, adapter.model_copy(update={maker: "rita"}), review, site.now)
    assert reason is not None and "expected a reviewer apart from the makers, got rita" in reason


def test_a_review_lapses_at_its_last_moment() -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    reason = review_lapsed(site.state, adapter, review, review.valid_until)
    assert reason is not None and "got one that expired at" in reason


@pytest.mark.parametrize("revoked", [None, 1])
def test_nobody_and_whoever_was_revoked_may_nothing(revoked: int | None) -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    row = site.state.principals.get("rita")
    assert row is not None
    site.state.principals.put("rita", None if revoked is None else row.model_copy(update={"revoked": revoked}))
    assert reasons_against(site.state, order, site.now) == ["signer: expected a standing principal, got rita"]


def test_every_verb_has_an_invariant() -> None:
    site = stage("serving")
    for verb, model in ((name, row.order) for name, row in VERBS.items()):
        assert model.verb == verb
    assert reasons_against(site.state, site.order(Cancel, "olga", run="r-000009"), site.now)


def test_versions_count_by_whole_name_and_as_numbers() -> None:
    site = stage("sealed")
    adapter, dataset = site.state.adapters.get("clauses@1"), site.state.datasets.get("clauses@1")
    assert adapter is not None and dataset is not None
    for version in (9, 10):
        site.state.adapters.put(f"clauses@{version}", adapter.model_copy(update={"version": version}))
        site.state.datasets.put(f"clauses@{version}", dataset.model_copy(update={"version": version}))
    assert (next_version(site.state, "clauses"), next_version(site.state, "clause")) == (11, 1)
    assert (next_dataset_version(site.state, "clauses"), next_dataset_version(site.state, "s")) == (11, 1)
