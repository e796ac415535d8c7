"""Requests, findings, conditions and delegations of a release on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.releases.requests import find_current_request
from tests.cli.conftest import Desk, one_line
from tests.kit.evaluated_release import adapter_of

REQUEST = (
    *("release", "request", "clauses@1", "--unit", "legal", "--exposure", "internal", "--purpose", "assist"),
    *("--intended-use", "Sort clauses for a lawyer.", "--limits", "Not for advice.", "--yes"),
)
ON = ("clauses@1", "--unit", "legal", "--meaning", "I read it.", "--yes")
FINDING = (
    *(
        "finding",
        "add",
        "clauses@1",
        "--review-function",
        "privacy",
        "--kind",
        "issue",
        "--severity",
        "high",
        "--blocks",
    ),
    *("--owner", "olga", "--due", "14d", "--text", "It answers names.", "--remedy", "Train without them."),
    *("--retest", "Ask for them.", "--yes"),
)


def done(desk: Desk, who: str, *words: str) -> str:
    told = desk.as_(who, *words)
    assert told.code == 0, told.err
    return told.out


def test_a_review_shows_first_what_is_asked_by_whom_and_who_is_missing(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    assert "tier:" in done(desk, "olga", *REQUEST, "--answers-a-day", "500")
    shown = one_line(done(desk, "rita", "review", "show", "clauses@1"))
    assert shown.startswith("Release clauses@1 to legal: 0 of 2 approvals (reported) Tier low, 1 of 3.")
    for words in (
        "Intended use: Sort clauses for a lawyer.",
        "Not to be used for: Not for advice.",
        "Conditions limit its use. At most 500 responses a day, by the release request of olga.",
        "Requested by: olga, entry",
        "Only the organisation sees its responses (internal). People decide with its help (assist).",
        "Needs 2 approvals, from different review functions.",
        "These people can give one: raul (model-risk), rita (privacy).",
    ):
        assert words in shown, words
    assert shown.index("These people") < shown.index("A signature binds this manifest")
    (request,) = json.loads(done(desk, "rita", "review", "show", "clauses@1", "--json"))["release_requests"]
    assert (request["order"]["signer"], request["status"]["tier"], request["status"]["reviewers"]) == ("olga", "low", 2)
    assert request["status"]["until"] is not None


def test_an_adapter_s_history_says_what_was_asked_and_found_in_sentences(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "olga", *REQUEST)
    done(desk, "rita", *FINDING)
    shown = one_line(done(desk, "olga", "adapter", "show", "clauses@1"))
    first = adapter_of(desk.site).requests[0]
    said = f"release request {first.index}: for legal by olga (internal, assist)"
    blocked = f"Finding {adapter_of(desk.site).findings[0].index} (high issue, privacy) blocks this release."
    assert f"{said}; tier low; approvals by entry: none; missing: {blocked} Its owner olga must resolve it" in shown
    assert "open: high issue, blocks; found by rita (privacy); owner olga" in shown
    assert "{'" not in shown and "[{" not in shown, "no value of Python is printed"
    done(desk, "olga", *REQUEST)
    assert f"{said}; replaced by a later one" in one_line(done(desk, "olga", "adapter", "show", "clauses@1"))
    done(desk, "olga", "release", "withdraw-request", "clauses@1", "--unit", "legal", "--yes")
    assert "; withdrawn by entry" in one_line(done(desk, "olga", "adapter", "show", "clauses@1"))


def test_a_decision_on_a_request_needs_a_reason_and_is_made_on_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "olga", *REQUEST)
    told = desk.as_("rita", "review", "approve", *ON)
    assert told.code == 2 and "reason: expected --reason TEXT with why you decide so, got none" in told.err
    done(desk, "rita", "review", "approve", *ON, "--reason", "It holds.")
    row = adapter_of(desk.site)
    request = find_current_request(desk.site.state, row, "legal")
    assert request is not None and row.reviews[-1].request == request.order
    done(desk, "olga", "release", "withdraw-request", "clauses@1", "--unit", "legal", "--yes")
    assert "stale" in done(desk, "rita", "review", "show", "clauses@1")


def test_an_approval_with_options_of_conditions_is_one_with_conditions(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    words = ("--only-served-model", "labels", "--answers-a-day", "9", "--not-after", "30d", "--reason", "A trial.")
    told = desk.as_("rita", "review", "approve", *ON, *words)
    assert told.code == 0, told.err
    assert "The service enforces them." in one_line(told.err)
    review = adapter_of(desk.site).reviews[-1]
    assert review.decision == "approve-with-conditions" and review.conditions is not None
    assert (review.conditions.served_models, review.conditions.answers_a_day) == (("labels",), 9)
    bad = desk.as_("rita", "review", "approve", *ON, "--only-served-model", "No Served model", "--reason", "A trial.")
    assert bad.code == 2 and "served_models: expected lower-case letters" in bad.err


def test_changes_are_requested_and_a_decision_is_withdrawn(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "rita", "review", "request-changes", *ON, "--reason", "Show the recall.")
    told = desk.as_("rita", "review", "withdraw", *ON, "--reason", "It is shown.")
    assert told.code == 0 and "Your request for changes of clauses@1 for legal is already valid" in one_line(told.err)
    assert [review.decision for review in adapter_of(desk.site).reviews] == ["request-changes", "withdraw"]


@pytest.mark.thorough
def test_a_finding_is_added_listed_shown_and_closed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("approved")
    index = json.loads(done(desk, "rita", *FINDING, "--json"))["index"]
    told = desk.as_("otto", "release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")
    assert told.code == 3 and f"Finding {index} (high issue, privacy)" in one_line(told.err)
    shown = one_line(done(desk, "raul", "review", "show", "clauses@1"))
    assert f"Finding {index}: high issue: open, blocks" in shown and "Found by: rita (privacy), entry" in shown
    assert (
        "Remediation: Train without them. Closed when: Ask for them." in shown and "Found: It answers names." in shown
    )
    answer = json.loads(done(desk, "audrey", "ledger", "effective-access", "legal", "--json"))
    assert f"finding:{index}" in [one["subject"] for one in answer["others"][0]["reasons"]]
    (listed,) = json.loads(done(desk, "olga", "finding", "list", "--open", "--json"))
    assert (listed["adapter"], listed["index"], listed["open"]) == ("clauses@1", index, True)
    close = ("finding", "close", "clauses@1", str(index), "--evidence", "None in 200.", "--yes")
    refused = desk.as_("raul", *close)
    assert refused.code == 3 and "raul is reviewer:model-risk. This action needs reviewer:privacy." in refused.err
    done(desk, "rita", *close)
    assert json.loads(done(desk, "olga", "finding", "list", "--open", "--json")) == []
    assert "closed by rita" in done(desk, "olga", "finding", "list", "--wide")
    history = one_line(done(desk, "olga", "adapter", "show", "clauses@1"))
    assert f"finding {index}: closed by rita" in history
    assert "rita success evidence: None in 200." in history
    done(desk, "otto", "release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")


def test_a_request_that_the_service_makes_up_is_refused(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "olga", *REQUEST)

    def bend(answer: dict[str, Any]) -> dict[str, Any]:
        ((_, status),) = answer["release_requests"]
        return {**answer, "release_requests": [[answer["run_entry"], status]]}

    desk.service.bend["/v1/adapters/clauses@1/review"] = bend
    told = desk.as_("rita", "review", "approve", *ON, "--reason", "It holds.")
    assert told.code == 6 and "request of entry" in one_line(told.err)


@pytest.mark.thorough
def test_a_field_is_delegated_and_decided_in_the_delegator_s_place(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.site.enrol("dana", "reviewer:legal-risk")
    refused = desk.as_("rita", "delegation", "add", "olga", "--review-function", "privacy", "--until", "7d", "--yes")
    assert refused.code == 3 and "olga has the role operator." in one_line(refused.err)
    done(desk, "rita", "delegation", "add", "dana", "--review-function", "privacy", "--until", "7d", "--yes")
    assert "dana" in done(desk, "anna", "delegation", "list")
    done(desk, "dana", "review", "approve", *ON, "--on-behalf-of", "rita")
    review = adapter_of(desk.site).reviews[-1]
    assert (review.reviewer, review.review_function) == ("dana", "privacy")
    assert review.on_behalf_of is not None and review.on_behalf_of.principal == "rita"
    assert "by dana (privacy) on behalf of rita" in one_line(done(desk, "rita", "review", "show", "clauses@1"))
    done(desk, "rita", "delegation", "end", "dana", "--review-function", "privacy", "--yes")
    told = desk.as_("dana", "review", "approve", *ON, "--on-behalf-of", "rita")
    assert (
        told.code == 2
        and "review function: expected --review-function with one that rita delegated to dana" in one_line(told.err)
    )


def test_an_emergency_waits_for_an_administrator(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    desk.site.review("rita", "privacy", decision="withdraw")
    words = ("release", "break-glass", "clauses@1", "--unit", "legal", "--served-model", "labels", "--until", "1h")
    told = desk.as_("otto", *words, "--reason", "It answers nothing.", "--yes")
    assert told.code == 0 and "another administrator types: appliance order countersign" in told.err
    done(desk, "ben", "order", "countersign", "--yes")
    release = desk.site.state.releases.get("legal/labels")
    assert release is not None and release.current.kind == "break-glass"
    shown = one_line(done(desk, "rita", "review", "show", "clauses@1"))
    assert "Emergency release of clauses@1 for legal" in shown and "Requested by: otto, entry" in shown
    assert "Reason of the emergency: It answers nothing." in shown
    assert "Tier high, 3 of 3." in shown
