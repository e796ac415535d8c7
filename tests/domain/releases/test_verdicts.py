"""A failed verdict blocks a release where policy requires it, until a reviewer accepts it for a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds, encode_value, parse_value
from appliance.domain.core.policy import Parameters, Tier
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.evaluation.rules import VERDICT_FILE
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.admission import AdmissionInputs
from appliance.domain.releases.approval import find_blockers, find_review_status
from appliance.domain.releases.exports import ExportedFolder, Proofs
from appliance.errors import Denied, Tampered
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.evaluation.test_rules import ALIKE, BETTER, GATES, gates_file, one_gate
from tests.domain.releases.test_admission import decide, evidence
from tests.domain.releases.test_exports import check, received
from tests.kit.evaluated_release import adapter_of, approve, reasons

DAY_S = 86_400
STOPS = {"failed_verdict": "stops"}
FAILED = "Adapter clauses@1 did not pass these gates: better-than-base."


def evaluated(items: Any = ALIKE, *, gates: Any = GATES, later: Any = None, **parameters: Any) -> LogBuilder:
    """With clauses@1, evaluated on these items; `later`: the parameters of a policy that is adopted after its seal."""
    site = stage("imported", policy_set(**parameters or STOPS)).fork()
    site.seal(site.train(gates=gates), items=encode_items(items))
    if later is not None:
        site.adopt(policy_set(**later))
    return site


def accept(site: LogBuilder, by: str = "rita", **fields: Any) -> int:
    """Record an exception until tomorrow, and return its entry."""
    defaults = {"kind": "exception", "blocks": False, "accepts_verdict": True, "due": add_seconds(site.now, DAY_S)}
    return site.find(by, **defaults | fields).index


def accepted() -> tuple[LogBuilder, int]:
    """Released by two people, on an exception."""
    site = evaluated()
    exception = accept(site)
    approve(site, valid_until=add_seconds(site.now, 30 * DAY_S))
    site.activate()
    return site, exception


def test_a_failed_verdict_refuses_an_approval_and_names_the_gate() -> None:
    site = evaluated()
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")
    with pytest.raises(Denied, match=r"Adapter clauses@1 did not pass these gates: better-than-base\."):
        site.review("rita", "privacy", decision="approve-with-conditions")
    site.review("rita", "privacy", decision="request-changes")
    site.review("raul", "model-risk", decision="reject")


def test_a_gate_with_a_part_that_is_worse_is_named_too() -> None:
    rare = make_items([Group(80, adapter=True, base=False), Group(30, adapter=False, base=True, label="rare")])
    site = evaluated(rare)
    verdict = parse_verdict(site_verdict(site))
    assert (verdict.target_passed, verdict.regression_passed, verdict.results[0].outcome) == (True, False, "passed")
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


def test_where_no_gate_of_the_task_could_be_evaluated_all_are_named() -> None:
    alone = gates_file(gates=[one_gate(comparison="released")])
    site = evaluated(BETTER, gates=alone)
    assert parse_verdict(site_verdict(site)).why.startswith(
        "Not passed: no gate of the target metric could be evaluated"
    )
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


def site_verdict(site: LogBuilder) -> bytes:
    return site.documents[str(adapter_of(site).verdict)]


def test_a_passed_verdict_stops_nothing() -> None:
    site = evaluated(BETTER)
    approve(site)
    site.activate()
    assert reasons(site) == []


def test_a_policy_that_shows_verdicts_stops_nothing() -> None:
    site = evaluated(failed_verdict="shown")
    approve(site)
    site.activate()
    assert reasons(site) == []


def test_without_gates_nothing_is_stopped_unless_policy_requires_some() -> None:
    site = evaluated(gates=None)
    approve(site)
    site.activate()
    assert reasons(site) == []
    required = digest_bytes(encode_value(GATES))
    site.adopt(policy_set(**STOPS, required_gates=(required,)))
    assert any(
        f"gates files {required}. The verdict of adapter clauses@1 is by none" in str(reason)
        for reason in reasons(site)
    )
    with pytest.raises(Denied, match="The verdict of adapter clauses@1 is by none"):
        site.review("rita", "privacy")
    accept(site)
    approve(site)
    assert reasons(site) == []


def test_a_verdict_by_gates_that_policy_does_not_take_is_none() -> None:
    other = digest_bytes(encode_value(gates_file(gates=[one_gate(least_items=21)])))
    site = evaluated(BETTER, later={**STOPS, "required_gates": (other,)})
    with pytest.raises(
        Denied, match=rf"one of the gates files {other}\. The verdict of adapter clauses@1 is by sha256:"
    ):
        site.review("rita", "privacy")
    accept(site)
    approve(site)
    site.activate()


def test_on_an_exception_it_is_approved_released_and_admitted() -> None:
    site, exception = accepted()
    assert reasons(site) == []
    found = whole(site)
    assert exception in found.logged
    assert decide(site, found).reasons == ()


def whole(site: LogBuilder) -> AdmissionInputs:
    """With all files of the sealed folder."""
    found = evidence(site)
    evaluated = {"gates.json": encode_value(GATES), VERDICT_FILE: site_verdict(site), ITEMS_FILE: encode_items(ALIKE)}
    return replace(found, files={**found.files, **evaluated})


def test_admission_finds_another_verdict_in_the_folder_and_a_lost_exception() -> None:
    site, exception = accepted()
    found = whole(site)
    passed = {**found.files, VERDICT_FILE: site_verdict(evaluated(BETTER))}
    told = decide(site, replace(found, files=passed))
    assert told.changed and any(f"{VERDICT_FILE}: expected sha256:" in str(reason) for reason in told.reasons)
    logged = {index: order for index, order in found.logged.items() if index != exception}
    told = decide(site, replace(found, logged=logged))
    assert told.tampered and [one.code for one in told.reasons] == ["evidence-invalid"]


def test_an_export_ends_with_the_exception_and_proves_it_to_its_receiver() -> None:
    site = evaluated()
    due = add_seconds(site.now, 1_800)
    accept(site, due=due)
    approve(site)
    site.activate()
    with pytest.raises(Denied, match=f"The export can be valid until {due}"):
        site.export(valid_until=add_seconds(due, 1))
    exported = site.export(valid_until=due)
    found = received(site, exported.index, files=whole(site).files)
    assert check(site, found).adapter.passed is False
    entry = adapter_of(site).findings[0].index
    with pytest.raises(Tampered, match=f"entry {entry}: expected it in the ledger, got none"):
        check(site, without(found, entry))


def without(found: ExportedFolder, index: int) -> ExportedFolder:
    """With no proof of this entry."""
    proofs = parse_value(Proofs, found.proofs, "proofs")
    kept = tuple(entry for entry in proofs.entries if entry.index != index)
    return replace(found, proofs=encode_value(proofs.model_copy(update={"entries": kept})))


def test_at_its_due_date_the_approvals_go_stale_and_nothing_answers() -> None:
    site, exception = accepted()
    due = adapter_of(site).findings[0].due
    assert reasons(site, add_seconds(due, -1)) == []
    told = reasons(site, due)
    assert any(FAILED in str(reason) for reason in told) and any("has 0" in str(reason) for reason in told)
    assert any(f"Exception {exception}" in str(reason) for reason in told)
    for review in adapter_of(site).reviews:
        found = find_review_status(site.state, adapter_of(site), review, due)
        assert found.state == "stale" and "after a valid exception that" in str(found.refusal)
    site.now = due
    with pytest.raises(Denied, match=FAILED):
        site.add(site.admitted())


def test_once_it_is_closed_nothing_answers_and_another_exception_does_not_revive_approvals() -> None:
    site, exception = accepted()
    site.close(exception)
    assert any(FAILED in str(reason) for reason in reasons(site))
    again = accept(site)
    told = reasons(site)
    assert not any(FAILED in str(reason) for reason in told) and any("has 0" in str(reason) for reason in told)
    stale = find_review_status(site.state, adapter_of(site), adapter_of(site).reviews[0], site.now)
    assert stale.refusal is not None and stale.refusal.code == "review-before-exception" and again
    approve(site)
    assert reasons(site) == []


def test_an_exception_about_something_else_accepts_no_verdict() -> None:
    site = evaluated()
    site.find(kind="exception", blocks=False)
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "issue"}, r"Only an exception that does not block can accept a verdict\."),
        ({"kind": "limitation"}, r"Only an exception that does not block can accept a verdict\."),
        ({"blocks": True}, r"Only an exception that does not block can accept a verdict\."),
        ({"due": "2030-01-01T00:00:00.000Z"}, r"Policy lets an exception accept a verdict until .*\. The order says"),
        ({"by": "raul"}, r"raul is reviewer:model-risk\. This action needs reviewer:privacy\."),
        ({"by": "otto"}, r"otto is release-owner:legal\. This action needs reviewer:privacy\."),
        ({"by": "olga"}, r"olga ordered the training run\. Nobody reviews what they made\."),
        ({"by": "ines"}, r"ines imported the training data\. Nobody reviews what they made\."),
    ],
)
def test_a_verdict_is_not_accepted_by(fields: dict[str, Any], why: str) -> None:
    site = evaluated()
    for name in {"olga", "ines"} & {fields.get("by")}:
        site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role="reviewer:privacy"))
    with pytest.raises(Denied, match=why):
        accept(site, **fields)


def test_there_is_nothing_to_accept_of_a_passed_verdict() -> None:
    with pytest.raises(Denied, match=r"Adapter clauses@1 passed its gates, so that nothing is to be accepted\."):
        accept(evaluated(BETTER))


def test_an_exception_is_of_a_field_that_the_release_requires() -> None:
    site = evaluated(**STOPS, required_functions=("model-risk",))
    accept(site)
    with pytest.raises(Denied, match=r"Adapter clauses@1 did not pass these gates: better-than-base\."):
        site.review("rita", "privacy")
    accept(site, "raul", review_function="model-risk")
    approve(site)
    site.activate()


def test_the_tier_of_the_request_says_which_fields() -> None:
    tier: Tier = Parameters().tiers[0]
    strict = tier.model_copy(update={"required_functions": ("model-risk",)})
    site = evaluated(**STOPS, tiers=(strict,))
    accept(site)
    site.request_release()
    with pytest.raises(Denied, match=r"Adapter clauses@1 did not pass these gates: better-than-base\."):
        site.review("rita", "privacy")
    accept(site, "raul", review_function="model-risk")
    approve(site)


def test_an_exception_counts_only_while_its_finder_is_a_reviewer_and_the_key_counts() -> None:
    site, exception = accepted()
    site.enrol("rolf", "reviewer:privacy")
    site.revoke_key("rita", since=exception)
    assert any(FAILED in str(reason) for reason in reasons(site))
    site, _ = accepted()
    site.revoke("rita")
    assert any(FAILED in str(reason) for reason in reasons(site))


def test_a_closed_exception_does_not_come_back_with_the_revocation_of_the_key_that_closed_it() -> None:
    site, exception = accepted()
    site.enrol("rolf", "reviewer:privacy")
    closing = site.close(exception, "rolf")
    site.revoke_key("rolf", since=closing.index)
    assert any(FAILED in str(reason) for reason in reasons(site))


def test_an_emergency_lifts_no_failed_verdict() -> None:
    site, exception = accepted()
    site.close(exception)
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match=FAILED):
        site.break_glass()


def test_a_policy_that_stops_failed_verdicts_reaches_what_was_released_before() -> None:
    site = evaluated(failed_verdict="shown")
    approve(site)
    site.activate()
    site.adopt(policy_set(**STOPS))
    assert any(FAILED in str(reason) for reason in reasons(site))
    accept(site)
    told = find_blockers(site.state, adapter_of(site), "legal", site.now)
    assert told and all("approval" in str(reason) for reason in told), "who approved did not read the exception"
    approve(site)
    assert reasons(site) == []
