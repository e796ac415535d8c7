"""A verdict that was not passed stops a release where policy says so, until a reviewer accepts it for a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds, encode_value, parse_value
from appliance.domain.core.policy import Parameters, Tier
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.evaluation.judging import VERDICT_FILE
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.admission import AdmissionInputs
from appliance.domain.releases.approval import inadmissible, review_standing
from appliance.domain.releases.exports import ExportedAdapter, Proofs
from appliance.errors import Denied, Tampered
from appliance.formats.core.digest import digest_bytes
from scripts.kit.judged import Group, make_items
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.evaluation.test_judging import ALIKE, BETTER, GATES, gate_set, one_gate
from tests.domain.releases.test_admission import decide, evidence
from tests.domain.releases.test_exports import check, received
from tests.kit.judged_release import adapter_of, approve, reasons

DAY_S = 86_400
STOPS = {"failed_verdict": "stops"}
FAILED = "expected one that passed, got one that did not: gate better-than-base"


def judged(items: Any = ALIKE, *, gates: Any = GATES, later: Any = None, **parameters: Any) -> LogBuilder:
    """With clauses@1, judged on these items; `later`: the parameters of a policy that is adopted after its seal."""
    site = stage("imported", policy_set(**parameters or STOPS)).fork()
    site.seal(site.train(gates=gates), items=encode_items(items))
    if later is not None:
        site.adopt(policy_set(**later))
    return site


def accept(site: LogBuilder, by: str = "rita", **fields: Any) -> int:
    """An exception until tomorrow."""
    standing = {"kind": "exception", "blocks": False, "accepts_verdict": True, "due": add_seconds(site.now, DAY_S)}
    return site.find(by, **standing | fields).index


def accepted() -> tuple[LogBuilder, int]:
    """Released by two people, on an exception."""
    site = judged()
    exception = accept(site)
    approve(site, valid_until=add_seconds(site.now, 30 * DAY_S))
    site.activate()
    return site, exception


def test_a_failed_verdict_refuses_an_approval_and_names_the_gate() -> None:
    site = judged()
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")
    with pytest.raises(Denied, match="a reviewer of any field can accept it until a date, as an exception"):
        site.review("rita", "privacy", decision="approve-with-conditions")
    site.review("rita", "privacy", decision="request-changes")
    site.review("raul", "model-risk", decision="reject")


def test_a_gate_with_a_part_that_is_worse_is_named_too() -> None:
    rare = make_items([Group(80, adapter=True, base=False), Group(30, adapter=False, base=True, label="rare")])
    site = judged(rare)
    verdict = parse_verdict(site_verdict(site))
    assert (verdict.task, verdict.rest, verdict.results[0].outcome) == (True, False, "passed")
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


def test_where_no_gate_of_the_task_could_be_judged_all_are_named() -> None:
    alone = gate_set(gates=[one_gate(comparison="released")])
    site = judged(BETTER, gates=alone)
    assert parse_verdict(site_verdict(site)).why.startswith("Not passed: no gate of leg task could be judged")
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


def site_verdict(site: LogBuilder) -> bytes:
    return site.documents[str(adapter_of(site).verdict)]


def test_a_passed_verdict_stops_nothing() -> None:
    site = judged(BETTER)
    approve(site)
    site.activate()
    assert reasons(site) == []


def test_a_policy_that_shows_verdicts_stops_nothing() -> None:
    site = judged(failed_verdict="shown")
    approve(site)
    site.activate()
    assert reasons(site) == []


def test_without_gates_nothing_is_stopped_unless_policy_requires_some() -> None:
    site = judged(gates=None)
    approve(site)
    site.activate()
    assert reasons(site) == []
    required = digest_bytes(encode_value(GATES))
    site.adopt(policy_set(**STOPS, required_gates=(required,)))
    assert any(f"({required}), got a run that bound no gates" in reason for reason in reasons(site))
    with pytest.raises(Denied, match="got a run that bound no gates"):
        site.review("rita", "privacy")
    accept(site)
    approve(site)
    assert reasons(site) == []


def test_a_verdict_by_gates_that_policy_does_not_take_is_none() -> None:
    other = digest_bytes(encode_value(gate_set(gates=[one_gate(least_items=21)])))
    site = judged(BETTER, later={**STOPS, "required_gates": (other,)})
    with pytest.raises(Denied, match=rf"gates that policy requires \({other}\), got one by sha256:"):
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
    judged = {"gates.json": encode_value(GATES), VERDICT_FILE: site_verdict(site), ITEMS_FILE: encode_items(ALIKE)}
    return replace(found, files={**found.files, **judged})


def test_admission_finds_another_verdict_in_the_folder_and_a_lost_exception() -> None:
    site, exception = accepted()
    found = whole(site)
    passed = {**found.files, VERDICT_FILE: site_verdict(judged(BETTER))}
    told = decide(site, replace(found, files=passed))
    assert told.changed and any(f"{VERDICT_FILE}: expected sha256:" in reason for reason in told.reasons)
    logged = {index: order for index, order in found.logged.items() if index != exception}
    told = decide(site, replace(found, logged=logged))
    assert told.tampered and told.reasons == (f"entry {exception}: expected it in the ledger, got none",)


def test_an_export_ends_with_the_exception_and_proves_it_to_its_receiver() -> None:
    site = judged()
    due = add_seconds(site.now, 1_800)
    accept(site, due=due)
    approve(site)
    site.activate()
    with pytest.raises(Denied, match=f"valid until: expected a time after .* and not after {due}"):
        site.export(valid_until=add_seconds(due, 1))
    exported = site.export(valid_until=due)
    found = received(site, exported.index, files=whole(site).files)
    assert check(site, found).adapter.passed is False
    entry = adapter_of(site).findings[0].index
    with pytest.raises(Tampered, match=f"entry {entry}: expected it in the ledger, got none"):
        check(site, without(found, entry))


def without(found: ExportedAdapter, index: int) -> ExportedAdapter:
    """With no proof of this entry."""
    proofs = parse_value(Proofs, found.proofs, "proofs")
    kept = tuple(entry for entry in proofs.entries if entry.index != index)
    return replace(found, proofs=encode_value(proofs.model_copy(update={"entries": kept})))


def test_at_its_due_date_the_approvals_go_stale_and_nothing_answers() -> None:
    site, exception = accepted()
    due = adapter_of(site).findings[0].due
    assert reasons(site, add_seconds(due, -1)) == []
    told = reasons(site, due)
    assert any(FAILED in reason for reason in told) and any("got 0" in reason for reason in told)
    assert any(f"finding {exception}" in reason for reason in told)
    for review in adapter_of(site).reviews:
        found = review_standing(site.state, adapter_of(site), review, due)
        assert found.state == "stale" and "on an exception that accepts the verdict" in str(found.against)
    site.now = due
    with pytest.raises(Denied, match=FAILED):
        site.add(site.admitted())


def test_once_it_is_closed_nothing_answers_and_another_exception_does_not_revive_approvals() -> None:
    site, exception = accepted()
    site.close(exception)
    assert any(FAILED in reason for reason in reasons(site))
    again = accept(site)
    told = reasons(site)
    assert not any(FAILED in reason for reason in told) and any("got 0" in reason for reason in told)
    stale = review_standing(site.state, adapter_of(site), adapter_of(site).reviews[0], site.now)
    assert str(stale.against).endswith(f"got {again}")
    approve(site)
    assert reasons(site) == []


def test_an_exception_about_something_else_accepts_no_verdict() -> None:
    site = judged()
    site.find(kind="exception", blocks=False)
    with pytest.raises(Denied, match=FAILED):
        site.review("rita", "privacy")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "issue"}, "expected an exception that does not block, got a finding of kind issue"),
        ({"kind": "limitation"}, "got a finding of kind limitation"),
        ({"blocks": True}, "got a finding of kind exception that blocks"),
        ({"due": "2030-01-01T00:00:00.000Z"}, "due: expected at most 2027-01-15T.*, since it accepts a verdict"),
        ({"by": "raul"}, "role: expected raul to be reviewer:privacy"),
        ({"by": "otto"}, "role: expected otto"),
        ({"by": "olga"}, "did not order the run, got olga"),
        ({"by": "ines"}, "did not import the dataset, got ines"),
    ],
)
def test_a_verdict_is_not_accepted_by(fields: dict[str, Any], why: str) -> None:
    site = judged()
    for name in {"olga", "ines"} & {fields.get("by")}:
        site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role="reviewer:privacy"))
    with pytest.raises(Denied, match=why):
        accept(site, **fields)


def test_there_is_nothing_to_accept_of_a_passed_verdict() -> None:
    with pytest.raises(Denied, match="expected an adapter whose verdict was not passed, got clauses@1"):
        accept(judged(BETTER))


def test_an_exception_is_of_a_field_that_the_release_requires() -> None:
    site = judged(**STOPS, required_fields=("model-risk",))
    accept(site)
    with pytest.raises(Denied, match=r"a reviewer of model-risk can accept it"):
        site.review("rita", "privacy")
    accept(site, "raul", field="model-risk")
    approve(site)
    site.activate()


def test_the_tier_of_the_request_says_which_fields() -> None:
    tier: Tier = Parameters().tiers[0]
    strict = tier.model_copy(update={"required_fields": ("model-risk",)})
    site = judged(**STOPS, tiers=(strict,))
    accept(site)
    site.request_release()
    with pytest.raises(Denied, match="a reviewer of model-risk can accept it"):
        site.review("rita", "privacy")
    accept(site, "raul", field="model-risk")
    approve(site)


def test_an_exception_counts_only_while_its_finder_is_a_reviewer_and_the_key_counts() -> None:
    site, exception = accepted()
    site.enroll("rolf", "reviewer:privacy")
    site.revoke_key("rita", since=exception)
    assert any(FAILED in reason for reason in reasons(site))
    site, _ = accepted()
    site.revoke("rita")
    assert any(FAILED in reason for reason in reasons(site))


def test_a_closed_exception_does_not_come_back_with_the_revocation_of_the_key_that_closed_it() -> None:
    site, exception = accepted()
    site.enroll("rolf", "reviewer:privacy")
    closing = site.close(exception, "rolf")
    site.revoke_key("rolf", since=closing.index)
    assert any(FAILED in reason for reason in reasons(site))


def test_an_emergency_lifts_no_failed_verdict() -> None:
    site, exception = accepted()
    site.close(exception)
    site.review("rita", "privacy", decision="withdraw")
    with pytest.raises(Denied, match=FAILED):
        site.break_glass()


def test_a_policy_that_stops_failed_verdicts_reaches_what_was_released_before() -> None:
    site = judged(failed_verdict="shown")
    approve(site)
    site.activate()
    site.adopt(policy_set(**STOPS))
    assert any(FAILED in reason for reason in reasons(site))
    accept(site)
    told = inadmissible(site.state, adapter_of(site), "legal", site.now)
    assert told and all("quorum" in reason for reason in told), "who approved did not read the exception"
    approve(site)
    assert reasons(site) == []
