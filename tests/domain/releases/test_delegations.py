"""A review function is delegated until a time, and never to a person who makes adapters."""

from __future__ import annotations

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.approval import find_blockers, find_review_status, list_counted_approvals
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.evaluated_release import adapter_of, reasons


def delegated() -> LogBuilder:
    """Rita's review function is decided by dana, who is a reviewer of another."""
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    return site


def against(site: LogBuilder) -> list[str]:
    return find_blockers(site.state, adapter_of(site), "legal", site.now)


def test_a_delegate_approves_in_the_delegator_s_place() -> None:
    site = delegated()
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("raul", "model-risk")
    site.activate()
    site.load()
    assert reasons(site) == []


@pytest.mark.parametrize(("name", "roles"), [("olga", ()), ("ines", ()), ("nora", ("operator", "reviewer:legal-risk"))])
def test_a_field_is_not_delegated_to_a_maker(name: str, roles: tuple[str, ...]) -> None:
    site = stage("sealed")
    if roles:
        site.enrol(name, *roles)
    with pytest.raises(Denied, match=f"{name} has the role operator"):
        site.delegate(name)


@pytest.mark.parametrize("name", ["anna", "audrey", "legal"])
def test_a_field_is_not_delegated_to_who_enrols_audits_or_consumes(name: str) -> None:
    with pytest.raises(
        Denied,
        match=r"has the role .* People who make adapters",
    ):
        stage("sealed").delegate(name)


def test_a_delegate_who_became_a_maker_decides_nothing_of_what_they_made() -> None:
    site = stage("imported")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana", until=add_seconds(site.now, 86_400))
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal="dana", role="operator"))
    run = site.request_run("dana")
    for event in (site.started(run), site.checkpointed(run), site.finished(run)):
        site.add(event)
    site.seal(run)
    with pytest.raises(Denied, match=r"dana ordered the training run\. Nobody reviews what they made\."):
        site.review("dana", "privacy", on_behalf_of="rita")


def test_a_delegate_who_became_an_operator_decides_in_nobody_s_place() -> None:
    site = delegated()
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal="dana", role="operator"))
    with pytest.raises(
        Denied,
        match=r"dana has the role operator\. People who make adapters, enrol people, audit or use adapters do not",
    ):
        site.review("dana", "privacy", on_behalf_of="rita")
    site.review("dana", "legal-risk")


def test_a_maker_who_is_a_reviewer_too_decides_by_no_delegate() -> None:
    site = stage("sealed")
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal="olga", role="reviewer:privacy"))
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana", "olga")
    with pytest.raises(Denied, match=r"olga ordered the training run\. Nobody reviews what they made\."):
        site.review("dana", "privacy", on_behalf_of="olga")


def test_nobody_decides_in_another_s_place_without_a_delegation_that_stands() -> None:
    site = delegated()
    with pytest.raises(Denied, match=r"raul has not delegated the review function model-risk to dana\."):
        site.review("dana", "model-risk", on_behalf_of="raul")
    site.now = add_seconds(site.now, 86_400)
    with pytest.raises(Denied, match=r"The delegation of entry 28 ended at .*\."):
        site.review("dana", "privacy", on_behalf_of="rita")


def test_an_ended_delegation_decides_no_more_and_what_was_decided_stands() -> None:
    site = delegated()
    site.review("dana", "privacy", on_behalf_of="rita")
    site.delegate("dana", until=None)
    site.review("raul", "model-risk")
    assert against(site) == []
    with pytest.raises(Denied, match=r"rita has not delegated the review function privacy to dana\."):
        site.review("dana", "privacy", on_behalf_of="rita")
    with pytest.raises(Denied, match=r"rita has not delegated this review function to this person\."):
        site.delegate("dana", until=None)


def test_what_was_delegated_is_not_delegated_on() -> None:
    site = delegated()
    with pytest.raises(Denied, match=r"dana is reviewer:legal-risk\. This action needs reviewer:privacy\."):
        site.delegate("raul", "dana")


def test_a_delegation_is_no_longer_than_policy_lets_it() -> None:
    site = stage("sealed")
    with pytest.raises(Denied, match=r"Policy lets a delegation end by .*\. The order says .*\."):
        site.delegate("raul", until=add_seconds(site.now, 31 * 86_400))


def test_a_person_counts_once_and_a_person_s_place_counts_once() -> None:
    site = delegated()
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("rita", "privacy")
    site.review("dana", "legal-risk")
    found = list_counted_approvals(site.state, adapter_of(site), "legal", site.now)
    assert [(review.reviewer, review.review_function) for review in found] == [
        ("rita", "privacy"),
        ("dana", "legal-risk"),
    ]
    site = delegated()
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("dana", "legal-risk")
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1." in str(reason) for reason in against(site)
    )


def test_a_delegate_does_not_lift_the_delegator_s_rejection() -> None:
    site = delegated()
    site.review("rita", "privacy", decision="reject")
    site.review("dana", "privacy", on_behalf_of="rita")
    assert any("rita rejected this adapter by entry 29." in str(reason) for reason in against(site))


def test_a_delegate_s_approval_ends_with_the_delegator_or_the_delegation_s_key() -> None:
    for end in (
        lambda site: site.revoke("rita"),
        lambda site: site.revoke_key("rita", since=adapter_of(site).reviews[0].on_behalf_of.index),  # type: ignore[union-attr]
    ):
        site = delegated()
        site.review("dana", "privacy", on_behalf_of="rita")
        end(site)
        adapter = adapter_of(site)
        assert find_review_status(site.state, adapter, adapter.reviews[0], site.now).state == "delegator-gone"


def test_a_word_in_another_s_place_is_withdrawn_by_itself() -> None:
    site = stage("sealed")
    site.delegate("raul")
    site.review("raul", "model-risk")
    site.review("raul", "privacy", on_behalf_of="rita")
    site.review("raul", "privacy", on_behalf_of="rita", decision="withdraw")
    with pytest.raises(Denied, match=r"raul has no valid decision on this adapter that can be withdrawn\."):
        site.review("raul", "privacy", on_behalf_of="rita", decision="withdraw")
    site.review("raul", "model-risk", decision="withdraw")
