"""A release is requested, found against, approved under conditions and delegated, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

from appliance.domain.releases.tiers import current_request
from tests.cli.conftest import Desk, one_line
from tests.kit.judged_release import adapter_of

REQUEST = (
    *("release", "request", "clauses@1", "--unit", "legal", "--exposure", "internal", "--purpose", "assist"),
    *("--intended-use", "Sort clauses for a lawyer.", "--limits", "Not for advice.", "--yes"),
)
ON = ("clauses@1", "--unit", "legal", "--meaning", "I read it.", "--yes")
FINDING = (
    *("finding", "add", "clauses@1", "--field", "privacy", "--kind", "issue", "--severity", "high", "--blocks"),
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
    assert shown.startswith("Asked: to release clauses@1 to legal asked by: olga, entry")
    for words in (
        "intended use: Sort clauses for a lawyer.",
        "not to be used for: Not for advice.",
        "conditions: answers a day 500",
        "tier: low (internal, assist)",
        "missing: quorum: expected 2 standing approvals of clauses@1 for legal, got 0",
        "could decide: raul (model-risk), rita (privacy)",
    ):
        assert words in shown, words
    assert shown.index("could decide") < shown.index("What a signature binds: this manifest")
    told = json.loads(done(desk, "rita", "review", "show", "clauses@1", "--json"))
    (asked,) = told["asked"]
    assert (asked["by"], asked["tier"], asked["reviewers"]) == ("olga", "low", 2)
    assert asked["until"] is not None


def test_an_adapter_s_history_says_what_was_asked_and_found_in_sentences(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "olga", *REQUEST)
    done(desk, "rita", *FINDING)
    shown = one_line(done(desk, "olga", "adapter", "show", "clauses@1"))
    first = adapter_of(desk.site).requests[0]
    said = f"release request {first.index}: for legal by olga (internal, assist)"
    assert f"{said}; tier low; approvals by entry: none; missing: finding" in shown
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
    request = current_request(desk.site.state, row, "legal")
    assert request is not None and row.reviews[-1].request == request.order
    done(desk, "olga", "release", "withdraw-request", "clauses@1", "--unit", "legal", "--yes")
    assert "stale" in done(desk, "rita", "review", "show", "clauses@1")


def test_an_approval_with_options_of_conditions_is_one_with_conditions(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    words = ("--only-task", "labels", "--answers-a-day", "9", "--not-after", "30d", "--reason", "A trial.")
    told = desk.as_("rita", "review", "approve", *ON, *words)
    assert told.code == 0, told.err
    assert "The service enforces them." in one_line(told.err)
    review = adapter_of(desk.site).reviews[-1]
    assert review.decision == "approve-with-conditions" and review.conditions is not None
    assert (review.conditions.tasks, review.conditions.answers_a_day) == (("labels",), 9)
    bad = desk.as_("rita", "review", "approve", *ON, "--only-task", "No Task", "--reason", "A trial.")
    assert bad.code == 2 and "tasks: expected lower-case letters" in bad.err


def test_changes_are_requested_and_a_decision_is_withdrawn(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "rita", "review", "request-changes", *ON, "--reason", "Show the recall.")
    told = desk.as_("rita", "review", "withdraw", *ON, "--reason", "It is shown.")
    assert told.code == 0 and "Your request for changes of clauses@1 for legal already counts" in one_line(told.err)
    assert [review.decision for review in adapter_of(desk.site).reviews] == ["request-changes", "withdraw"]


def test_a_finding_is_added_listed_shown_and_closed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("approved")
    index = json.loads(done(desk, "rita", *FINDING, "--json"))["index"]
    told = desk.as_("otto", "release", "activate", "clauses@1", "--unit", "legal", "--task", "labels", "--yes")
    assert told.code == 3 and f"finding {index} (high issue, privacy)" in one_line(told.err)
    shown = one_line(done(desk, "raul", "review", "show", "clauses@1"))
    assert f"entry {index}: open: high issue, blocks; found by rita (privacy); owner olga" in shown
    assert "found: It answers names. remedy: Train without them. retest: Ask for them." in shown
    answer = json.loads(done(desk, "audrey", "ledger", "could-load", "legal", "--json"))
    assert any(f"finding {index}" in reason for reason in answer["others"][0]["reasons"])
    (listed,) = json.loads(done(desk, "olga", "finding", "list", "--open", "--json"))
    assert (listed["adapter"], listed["index"], listed["open"]) == ("clauses@1", index, True)
    close = ("finding", "close", "clauses@1", str(index), "--evidence", "None in 200.", "--yes")
    refused = desk.as_("raul", *close)
    assert refused.code == 3 and "expected raul to be reviewer:privacy" in refused.err
    done(desk, "rita", *close)
    assert json.loads(done(desk, "olga", "finding", "list", "--open", "--json")) == []
    assert "closed by rita" in done(desk, "olga", "finding", "list", "--wide")
    history = one_line(done(desk, "olga", "adapter", "show", "clauses@1"))
    assert f"finding {index}: closed by rita" in history
    assert "rita success evidence: None in 200." in history
    done(desk, "otto", "release", "activate", "clauses@1", "--unit", "legal", "--task", "labels", "--yes")


def test_a_finding_that_the_service_tells_otherwise_than_its_order_is_refused(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("sealed")
    done(desk, "rita", *FINDING)

    def bend(answer: dict[str, object]) -> dict[str, object]:
        row = answer["adapter"]
        assert isinstance(row, dict)
        return {**answer, "adapter": {**row, "findings": [{**row["findings"][0], "blocks": False}]}}

    desk.service.bend["/v1/adapters/clauses@1/review"] = bend
    told = desk.as_("raul", "review", "show", "clauses@1")
    assert told.code == 6 and "finding" in told.err


def test_a_request_that_the_service_makes_up_is_refused(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    done(desk, "olga", *REQUEST)

    def bend(answer: dict[str, object]) -> dict[str, object]:
        row = answer["adapter"]
        assert isinstance(row, dict)
        asked = row["asked"][0]
        other = {**asked, "request": {**asked["request"], "order": "sha256:" + "1" * 64}}
        return {**answer, "adapter": {**row, "asked": [other]}}

    desk.service.bend["/v1/adapters/clauses@1/review"] = bend
    told = desk.as_("rita", "review", "approve", *ON, "--reason", "It holds.")
    assert told.code == 6 and "request of entry" in told.err


def test_a_field_is_delegated_and_decided_in_the_delegator_s_place(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    desk.site.enroll("dana", "reviewer:legal-risk")
    refused = desk.as_("rita", "delegation", "add", "olga", "--field", "privacy", "--until", "7d", "--yes")
    assert refused.code == 3 and "who is operator" in one_line(refused.err)
    done(desk, "rita", "delegation", "add", "dana", "--field", "privacy", "--until", "7d", "--yes")
    assert "dana" in done(desk, "anna", "delegation", "list")
    done(desk, "dana", "review", "approve", *ON, "--on-behalf-of", "rita")
    review = adapter_of(desk.site).reviews[-1]
    assert (review.reviewer, review.field) == ("dana", "privacy")
    assert review.on_behalf_of is not None and review.on_behalf_of.principal == "rita"
    assert "by dana (privacy) on behalf of rita" in one_line(done(desk, "rita", "review", "show", "clauses@1"))
    done(desk, "rita", "delegation", "end", "dana", "--field", "privacy", "--yes")
    told = desk.as_("dana", "review", "approve", *ON, "--on-behalf-of", "rita")
    assert told.code == 2 and "field: expected --field with one that rita delegated to dana" in one_line(told.err)


def test_an_emergency_waits_for_an_administrator(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    desk.site.review("rita", "privacy", decision="withdraw")
    words = ("release", "break-glass", "clauses@1", "--unit", "legal", "--task", "labels", "--until", "1h")
    told = desk.as_("otto", *words, "--reason", "It answers nothing.", "--yes")
    assert told.code == 0 and "another administrator types: appliance order endorse" in told.err
    done(desk, "ben", "order", "endorse", "--yes")
    release = desk.site.state.releases.get("legal/labels")
    assert release is not None and release.current.kind == "break-glass"
    shown = one_line(done(desk, "rita", "review", "show", "clauses@1"))
    assert "asked by: otto, entry" in shown and "by an emergency emergency: It answers nothing." in shown
    assert "tier: high" in shown
