"""Pending items: each kind begins, is shown to the right people, and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State
from appliance.domain.queries import pending
from appliance.domain.queries.pending import PendingItem, list_pending, list_unreleased
from appliance.domain.runs.training import RunFailed
from scripts.kit.log_builder import PEOPLE, LogBuilder, stage
from tests.domain.runs.test_sweeps import VALIDATING

DAY_S = 86_400
WEEKS_S = 30 * DAY_S


def found(site: LogBuilder, name: str, now: str | None = None) -> list[PendingItem]:
    """Return the items of a person, which are the same if they are found by subject."""
    items = list(list_pending(site.state, now or site.now, name))
    for subject in {"adapter:clauses@1", *(one.subject for one in items)}:
        about = list(list_pending(site.state, now or site.now, name, subjects=(subject,)))
        assert about == [one for one in items if one.subject == subject]
    return items


def who_has(site: LogBuilder, kind: str, now: str | None = None) -> set[str]:
    return {name for name in ("anna", "ben", *PEOPLE) for one in found(site, name, now) if one.kind == kind}


def test_an_open_finding_waits_for_its_owner_until_it_is_closed() -> None:
    site = stage("sealed")
    entry = site.find(owner="olga").index
    assert who_has(site, pending.FINDING) == {"olga"}
    (one,) = [one for one in found(site, "olga") if one.kind == pending.FINDING]
    assert (one.subject, one.urgent) == ("adapter:clauses@1", True)
    due = add_seconds(site.now, DAY_S)[:10]
    assert one.text == f"clauses@1, entry {entry}: high issue, privacy; due {due}, blocks releases"
    (late,) = [one for one in found(site, "olga", add_seconds(site.now, 2 * DAY_S)) if one.kind == pending.FINDING]
    assert "was due" in late.text
    site.close(entry)
    assert who_has(site, pending.FINDING) == set()


def test_a_finding_that_blocks_nothing_is_urgent_only_when_it_is_due() -> None:
    site = stage("sealed")
    site.find(owner="olga", kind="limitation", severity="low", blocks=False)
    assert [one.urgent for one in found(site, "olga") if one.kind == pending.FINDING] == [False]
    later = add_seconds(site.now, 2 * DAY_S)
    assert [one.urgent for one in found(site, "olga", later) if one.kind == pending.FINDING] == [True]


def test_a_rejection_and_a_request_for_changes_wait_for_who_requested_the_release() -> None:
    site = stage("sealed")
    site.request_release()
    assert who_has(site, pending.DECISION) == set()
    site.review("rita", "privacy", decision="reject")
    site.review("raul", "model-risk", decision="request-changes")
    assert who_has(site, pending.DECISION) == {"olga"}
    assert [one.text for one in found(site, "olga") if one.kind == pending.DECISION] == [
        "clauses@1 for legal: rita (privacy) rejected it",
        "clauses@1 for legal: raul (model-risk) requested changes",
    ]
    site.request_release()
    assert [one.text for one in found(site, "olga") if one.kind == pending.DECISION] == [
        "clauses@1 for legal: rita (privacy) rejected it"
    ], "a new request answers a request for changes, and no rejection"
    site.withdraw_request()
    assert who_has(site, pending.DECISION) == set()


def test_an_approved_adapter_waits_for_its_units_owner_until_it_is_released() -> None:
    site = stage("sealed")
    site.review("rita", "privacy")
    assert who_has(site, pending.READY) == set()
    site.review("raul", "model-risk")
    assert who_has(site, pending.READY) == {"otto"}
    (one,) = [one for one in found(site, "otto") if one.kind == pending.READY]
    assert (one.subject, one.unit, one.text) == ("adapter:clauses@1", "legal", "clauses@1 for legal")
    site.activate()
    assert who_has(site, pending.READY) == set()


def test_an_approved_adapter_is_not_ready_once_its_approvals_have_ended() -> None:
    site = stage("approved")
    assert who_has(site, pending.READY) == {"otto"}
    assert who_has(site, pending.READY, add_seconds(site.now, 2 * DAY_S)) == set()


def test_an_adapter_that_lacked_approvals_is_looked_at_again_when_it_has_them() -> None:
    site = stage("sealed")
    site.review("rita", "privacy")
    assert list(list_unreleased(site.state, site.now)) == []
    site.review("raul", "model-risk")
    assert [unit for _, unit in list_unreleased(site.state, site.now)] == ["legal"]
    assert list(list_unreleased(site.state, site.now, ("claims",))) == []
    site.revoke("raul")
    assert list(list_unreleased(site.state, site.now)) == []


def test_an_approval_that_ends_soon_waits_for_its_reviewer_and_its_release_for_the_owner() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", valid_until=add_seconds(site.now, WEEKS_S))
    site.review("raul", "model-risk", valid_until=add_seconds(site.now, DAY_S))
    assert who_has(site, pending.RENEW) == set(), "nothing is released that would end"
    site.activate()
    assert who_has(site, pending.RENEW) == {"raul"} and who_has(site, pending.ENDING) == {"otto"}
    end = add_seconds(site.now, DAY_S)[:10]
    assert [one.text for one in found(site, "raul") if one.kind == pending.RENEW] == [
        f"clauses@1 for legal, model-risk: until {end}"
    ]
    assert [one.text for one in found(site, "otto") if one.kind == pending.ENDING] == [
        f"legal/labels, clauses@1: until {end}"
    ]
    site.review("raul", "model-risk", valid_until=add_seconds(site.now, WEEKS_S))
    assert who_has(site, pending.RENEW) == who_has(site, pending.ENDING) == set()
    later = add_seconds(site.now, WEEKS_S - DAY_S)
    assert who_has(site, pending.RENEW, later) == {"raul", "rita"}
    over = add_seconds(site.now, WEEKS_S + DAY_S)
    assert who_has(site, pending.RENEW, over) == set() and who_has(site, pending.RELEASE, over) == {"otto", "legal"}


def test_a_key_that_was_rotated_waits_for_its_owner_until_it_ends() -> None:
    site = stage("staffed")
    site.rotate("rita", add_seconds(site.now, 20 * DAY_S))
    assert who_has(site, pending.KEY) == set()
    assert who_has(site, pending.KEY, add_seconds(site.now, 10 * DAY_S)) == {"rita"}
    assert who_has(site, pending.KEY, add_seconds(site.now, 21 * DAY_S)) == set()


def test_a_failed_run_waits_for_who_ordered_it_until_they_order_another() -> None:
    site = stage("imported")
    run = site.request_run()
    site.add(site.started(run))
    site.add(RunFailed(run=run, code="worker-ended", message=site.text("It was killed.")))
    assert who_has(site, pending.FAILED) == {"olga"}
    assert [one.subject for one in found(site, "olga")] == [f"run:{run}"]
    site.request_run()
    assert who_has(site, pending.FAILED) == set()


def test_another_run_of_the_same_sweep_does_not_stand_for_a_failed_one() -> None:
    site = stage("imported")
    run = site.request_run(recipe=VALIDATING, sweep="clauses-1")
    site.add(site.started(run))
    site.add(RunFailed(run=run, code="worker-ended", message=site.text("It was killed.")))
    site.request_run(recipe=VALIDATING, sweep="clauses-1")
    assert who_has(site, pending.FAILED) == {"olga"}


def test_a_delegate_has_the_reviews_of_the_delegator() -> None:
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    assert [one.kind for one in found(site, "dana")] == [pending.REVIEW]
    site = stage("sealed")
    site.enrol("dora", "release-owner:legal")
    assert found(site, "dora") == []
    site.delegate("dora")
    (one,) = found(site, "dora")
    assert one.kind == pending.REVIEW and one.text.endswith(", in the place of rita")


def test_at_most_as_many_of_each_kind_as_are_asked_for() -> None:
    site = stage("sealed")
    for _ in range(3):
        site.find(owner="olga")
    assert len([one for one in found(site, "olga") if one.kind == pending.FINDING]) == 3
    assert [one.kind for one in list_pending(site.state, site.now, "olga", 2)] == [pending.FINDING] * 2


def test_nothing_waits_for_a_revoked_or_unknown_person() -> None:
    site = stage("approved")
    site.revoke("otto")
    assert found(site, "otto") == found(site, "nobody") == []


def test_items_about_a_subject_need_no_rules_of_other_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page after a signature finds them for every person."""
    site, evaluated = stage("approved"), set[int]()
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    for version in (2, 3):
        site.state.adapters.put(f"clauses@{version}", adapter.model_copy(update={"version": version}))

    def recording(rule: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(state: State, adapter: Adapter, *rest: Any) -> Any:
            evaluated.add(adapter.version)
            return rule(state, adapter, *rest)

        return evaluate

    for name in ("find_blockers", "refuse_missing_approvals"):
        monkeypatch.setattr(pending, name, recording(getattr(pending, name)))
    for person in site.state.principals.values():
        list(list_pending(site.state, site.now, person.name, subjects=("adapter:clauses@2",)))
    assert evaluated == {2}
