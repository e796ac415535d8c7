"""Invariants on states that no log makes by itself: each refusal reason alone.

A log revokes a reviewer and the key together, so the checks on each are tried here on a state set by hand, as an
attacker could write it into the database.
"""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import ACTIONS, list_refusal_reasons
from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import next_version
from appliance.domain.releases.approval import explain_invalid_review
from appliance.domain.runs.control import Cancel
from scripts.kit.log_builder import LogBuilder, stage


def first_review(site: LogBuilder) -> tuple[Adapter, ReviewRecord]:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return adapter, adapter.reviews[0]


def test_a_standing_review_has_not_lapsed() -> None:
    site = stage("approved")
    assert explain_invalid_review(site.state, *first_review(site), site.now) is None


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("principals", {"revoked": 1}, "rita, who decided in entry 26, is no longer a reviewer of privacy."),
        (
            "principals",
            {"roles": ("reviewer:safety",)},
            "rita, who decided in entry 26, is no longer a reviewer of privacy.",
        ),
        ("principals", None, "rita, who decided in entry 26, is no longer a reviewer of privacy."),
        ("keys", {"distrusted": 1}, ", which was revoked from an earlier entry on."),
        ("keys", {"principal": "raul"}, ", which was revoked from an earlier entry on."),
        ("keys", {"enrolled": 10_000}, ", which was revoked from an earlier entry on."),
        ("keys", None, ", which was revoked from an earlier entry on."),
    ],
)
def test_a_review_lapses_with_its_reviewer_or_key(table: str, change: dict[str, Any] | None, words: str) -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    rows = getattr(site.state, table)
    key = "rita" if table == "principals" else review.keyid
    rows.put(key, None if change is None else rows.get(key).model_copy(update=change))
    reason = explain_invalid_review(site.state, adapter, review, site.now)
    assert words in str(reason)


def test_a_key_enrolled_by_the_reviews_own_entry_is_not_enrolled_before_it() -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    key = site.state.keys.get(review.keyid)
    assert key is not None
    site.state.keys.put(review.keyid, key.model_copy(update={"enrolled": review.index}))
    assert explain_invalid_review(site.state, adapter, review, site.now) is not None
    site.state.keys.put(review.keyid, key.model_copy(update={"enrolled": review.index - 1}))
    assert explain_invalid_review(site.state, adapter, review, site.now) is None


@pytest.mark.parametrize("maker", ["ordered_by", "dataset_by"])
def test_a_review_by_a_maker_lapses(maker: str) -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    reason = explain_invalid_review(site.state, adapter.model_copy(update={maker: "rita"}), review, site.now)
    assert "The decision of entry 26 involves rita, who ordered the run or imported the" in str(reason)


def test_a_review_lapses_at_its_last_moment() -> None:
    site = stage("approved")
    adapter, review = first_review(site)
    reason = explain_invalid_review(site.state, adapter, review, review.valid_until)
    assert "The approval of entry 26 expired at" in str(reason)


@pytest.mark.parametrize("revoked", [None, 1])
def test_nobody_and_whoever_was_revoked_may_nothing(revoked: int | None) -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    row = site.state.principals.get("rita")
    assert row is not None
    site.state.principals.put("rita", None if revoked is None else row.model_copy(update={"revoked": revoked}))
    assert [one.code for one in list_refusal_reasons(site.state, order, site.now)] == [
        "not-enrolled" if revoked is None else "principal-revoked"
    ]


def test_derived_fields_are_filled_by_the_action() -> None:
    derived = {
        name: {field for field, part in action.order.model_json_schema()["properties"].items() if part.get("derived")}
        for name, action in ACTIONS.items()
    }
    assert {name for name, fields in derived.items() if fields} - {"train"} <= {
        name for name, action in ACTIONS.items() if action.complete is not None
    }
    assert derived["review"] == {"version", "manifest", "request", "opened"}
    assert derived["train"] == {"base_digest", "dataset_digest", "sets", "local_sets"}


def test_every_action_has_an_invariant() -> None:
    site = stage("serving")
    for action, model in ((name, row.order) for name, row in ACTIONS.items()):
        assert model.action == action
    assert list_refusal_reasons(site.state, site.order(Cancel, "olga", run="r-000009"), site.now)


def test_versions_count_by_whole_name_and_as_numbers() -> None:
    site = stage("sealed")
    adapter, dataset = site.state.adapters.get("clauses@1"), site.state.datasets.get("clauses@1")
    assert adapter is not None and dataset is not None
    for version in (9, 10):
        site.state.adapters.put(f"clauses@{version}", adapter.model_copy(update={"version": version}))
        site.state.datasets.put(f"clauses@{version}", dataset.model_copy(update={"version": version}))
    assert (next_version(site.state.adapters, "clauses"), next_version(site.state.adapters, "clause")) == (11, 1)
    assert (next_version(site.state.datasets, "clauses"), next_version(site.state.datasets, "s")) == (11, 1)
