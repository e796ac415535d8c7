"""Conditions of an approval: dates and served models at admission, a day's count at each request."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.apply import apply
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.core.state import State
from appliance.errors import Denied, QuotaExceeded
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.evaluated_release import adapter_of, approve, conditions, reasons

WITH = "approve-with-conditions"


def approved(**fields: Any) -> LogBuilder:
    """One reviewer sets conditions, the other does not."""
    site = stage("sealed")
    if "not_after_s" in fields:
        fields["not_after"] = add_seconds(site.now, fields.pop("not_after_s"))
    if "not_before_s" in fields:
        fields["not_before"] = add_seconds(site.now, fields.pop("not_before_s"))
    site.review("rita", "privacy", decision=WITH, conditions=conditions(**fields))
    site.review("raul", "model-risk")
    return site


def answering(**fields: Any) -> LogBuilder:
    site = approved(**fields)
    site.activate()
    site.load()
    return site


def ask(site: LogBuilder, number: int, **fields: Any) -> None:
    site.add(site.request(number, **fields))
    site.add(site.answered(number, **fields))


def test_a_task_outside_the_conditions_is_not_released() -> None:
    site = approved(served_models=("labels", "routes"))
    site.activate()
    with pytest.raises(Denied, match=r"A condition of review 26 allows only these served models: labels, routes\."):
        site.activate(served_model="advice")


def test_nothing_answers_before_the_first_date_or_from_the_last_on() -> None:
    with pytest.raises(Denied, match=r"A condition of review 26 allows requests from .* on\. It is"):
        approved(not_before_s=600).activate()
    site = answering(not_after_s=600)
    end = adapter_of(site).reviews[0].conditions
    assert end is not None and end.not_after is not None
    assert reasons(site, add_seconds(end.not_after, -1)) == []
    site.now = end.not_after
    with pytest.raises(Denied, match=r"A condition of review 26 allowed requests until .*\. It is"):
        site.add(site.request(1))


def test_a_day_s_answers_are_counted_and_the_next_day_begins_anew() -> None:
    site = answering(answers_a_day=2)
    ask(site, 1)
    ask(site, 2)
    with pytest.raises(Denied, match="expected at most 2, by a condition") as caught:
        site.add(site.request(3))
    assert (caught.value.code, caught.value.status) == ("answers-a-day", 429)
    assert isinstance(caught.value, QuotaExceeded)
    assert add_seconds(f"{site.now[:19]}.000Z", caught.value.retry_after_s) == "2026-01-16T00:00:00.000Z"
    site.now = "2026-01-16T00:00:00.000Z"
    ask(site, 3)


def test_a_request_that_was_not_answered_well_is_counted_too() -> None:
    site = answering(answers_a_day=1)
    site.add(site.request(1))
    site.add(site.answered(1, finish_reason="failure"), outcome="failure")
    with pytest.raises(Denied, match="expected at most 1"):
        site.add(site.request(2))


def test_two_tasks_of_a_unit_have_one_count() -> None:
    site = answering(answers_a_day=2)
    site.activate(served_model="routes")
    admitted = site.add(site.admitted(served_model="routes"))
    site.add(site.loaded(admitted.index, served_model="routes"))
    ask(site, 1)
    ask(site, 2, served_model="routes")
    for served_model in ("labels", "routes"):
        with pytest.raises(Denied, match="expected at most 2"):
            site.add(site.request(3, served_model=served_model))


def test_of_two_daily_counts_the_least_holds() -> None:
    site = stage("sealed")
    site.request_release(conditions=conditions(answers_a_day=5))
    for name, field, most in (("rita", "privacy", 1), ("raul", "model-risk", 3)):
        site.review(name, field, decision=WITH, conditions=conditions(answers_a_day=most))
    site.activate()
    site.load()
    ask(site, 1)
    with pytest.raises(Denied, match="expected at most 1"):
        site.add(site.request(2))


def test_the_conditions_of_the_request_hold_where_approvals_have_none() -> None:
    site = stage("sealed")
    site.request_release(conditions=conditions(served_models=("routes",)))
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    with pytest.raises(Denied, match=r"A condition of request 26 allows only these served models: routes\."):
        site.activate()


def test_a_reviewer_s_later_approval_replaces_the_conditions_of_the_earlier() -> None:
    site = answering(answers_a_day=1)
    ask(site, 1)
    site.review("rita", "privacy")
    ask(site, 2)


def test_an_approval_again_in_the_same_day_does_not_reset_the_count() -> None:
    site = answering(answers_a_day=2)
    ask(site, 1)
    site.review("rita", "privacy", decision=WITH, conditions=conditions(answers_a_day=2))
    ask(site, 2)
    with pytest.raises(Denied, match="expected at most 2"):
        site.add(site.request(3))


def test_without_a_daily_count_nothing_is_remembered_of_a_request() -> None:
    site = stage("serving")
    assert len(site.state.answers) == 0


def test_whoever_folds_the_log_counts_the_same() -> None:
    site = answering(answers_a_day=2)
    ask(site, 1)
    state = State()
    for data in site.entries:
        entry = parse_entry(data)
        apply(state, entry, {role: site.documents[digest] for role, digest in entry.documents.items()})
    (row,) = state.answers.values()
    assert (row.unit, row.adapter, row.day, row.count) == ("legal", "clauses@1", "2026-01-15", 1)
    assert state.answers.values() == site.state.answers.values()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "conditions of a plain approval": (
        {"decision": "approve", "conditions": conditions(answers_a_day=1)},
        r"The decision approve has no conditions\.",
    ),
    "no conditions": ({"decision": WITH}, r"The decision approve-with-conditions needs a condition\."),
    "conditions that say nothing": (
        {"decision": WITH, "conditions": conditions()},
        r"The decision approve-with-conditions needs a condition\.",
    ),
    "no reason": (
        {"decision": WITH, "conditions": conditions(answers_a_day=1), "reason": None},
        r"The decision approve-with-conditions needs a reason\.",
    ),
    "no date": (
        {"decision": WITH, "conditions": conditions(answers_a_day=1), "valid_until": None},
        r"An approval needs a date until which it is valid\.",
    ),
}


@pytest.mark.parametrize(("fields", "why"), WRONG.values(), ids=WRONG)
def test_a_decision_is_refused_with(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Denied, match=why):
        stage("sealed").review("rita", "privacy", **fields)


def test_a_count_of_nothing_is_no_condition() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Conditions(not_before=None, not_after=None, served_models=(), answers_a_day=0)


def test_what_is_counted_a_day_is_not_exported() -> None:
    site = answering(answers_a_day=2)
    with pytest.raises(
        Denied, match=r"A condition of the approval limits the requests of a day, which only the service can count\."
    ):
        site.export()


def test_a_day_s_answers_are_not_counted_anew_where_the_clock_is_set_back() -> None:
    site = stage("sealed")
    approve(site, decision="approve-with-conditions", conditions=conditions(answers_a_day=2))
    site.activate()
    site.load()
    site.add(site.request(1))
    right = run_ahead(site, DAY_S - 3_600)
    site.add(site.request(2))
    site.add(site.request(3))
    reset_clock(site, right)
    for number in (1, 2, 3):
        site.add(site.answered(number))
    approve(site, decision="approve-with-conditions", conditions=conditions(answers_a_day=2))
    site.load(approvals=tuple(review.index for review in adapter_of(site).reviews[-2:]))
    with pytest.raises(QuotaExceeded, match="expected at most 2"):
        site.add(site.request(4))
    site.now = add_seconds(site.now, DAY_S)
    approve(site, decision="approve-with-conditions", conditions=conditions(answers_a_day=2))
    site.load(approvals=tuple(review.index for review in adapter_of(site).reviews[-2:]))
    site.add(site.request(4))
