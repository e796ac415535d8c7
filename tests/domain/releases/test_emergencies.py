"""An emergency release by two people makes an earlier version active for some hours and opens a review."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.releases.activations import BreakGlass, authorise_break_glass
from appliance.domain.releases.requests import find_current_request, find_tier
from appliance.errors import ApplianceError, Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.evaluated_release import adapter_of, approve, conditions, reasons


def lapsed(**fields: Any) -> LogBuilder:
    """Version 1 answered; its approvals have ended, so that nothing answers."""
    site = stage("sealed")
    approve(site, **fields)
    site.activate()
    site.now = add_seconds(site.now, 90_000)
    return site


def test_a_version_that_was_approved_before_answers_for_some_hours() -> None:
    site = lapsed()
    assert any("approval" in str(reason) for reason in reasons(site))
    site.break_glass()
    assert reasons(site) == []
    site.load(approvals=())
    site.add(site.request(1))
    site.add(site.answered(1))
    end = site.state.releases.get("legal/labels")
    assert end is not None and end.current.until is not None
    site.now = end.current.until
    with pytest.raises(Denied, match=r"The emergency release of entry 30 ended at .*\."):
        site.add(site.request(2))


def test_a_review_of_the_highest_tier_opens_by_itself() -> None:
    site = lapsed()
    site.break_glass()
    request = find_current_request(site.state, adapter_of(site), "legal")
    assert request is not None and (request.kind, request.requested_by) == ("break-glass", "otto")
    tier = find_tier(site.state.parameters, request)
    assert tier is not None and tier.name == "high"
    approve(site)
    with pytest.raises(Denied, match=r"Adapter clauses@1 needs 3 valid approvals for legal and has 2\."):
        site.activate()
    with pytest.raises(
        Denied, match=r"The release request of entry 30 was opened by an emergency release and cannot be withdrawn\."
    ):
        site.withdraw_request("anna")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one person alone": (
        {"second": "otto"},
        r"otto is release-owner:legal\. This action needs administrator or recovery\.",
    ),
    "no release owner": ({"signer": "rita"}, r"rita is reviewer:privacy\. This action needs release-owner:legal\."),
    "no reason": ({"reason": None}, r"An emergency release needs a reason\."),
    "a served model that it never answered": (
        {"served_model": "advice"},
        r"Adapter clauses@1 was never approved and active under this name\. An emergency cannot release it\.",
    ),
    "a longer time than policy lets it": (
        {"until": "2026-06-01T00:00:00.000Z"},
        r"Policy lets an emergency release end by .*\. The order says",
    ),
}


@pytest.mark.parametrize(("fields", "why"), WRONG.values(), ids=WRONG)
def test_an_emergency_is_refused_with(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ApplianceError, match=why):
        lapsed().break_glass(**fields)


def test_a_version_that_never_answered_is_not_let_in() -> None:
    site = lapsed()
    run = site.train()
    site.seal(run, 2)
    with pytest.raises(
        Denied,
        match=r"Adapter clauses@2 was never approved and active under this name\. An emergency cannot release it\.",
    ):
        site.break_glass(2)


def test_a_version_that_answered_in_an_emergency_alone_was_not_approved() -> None:
    site = lapsed()
    site.break_glass()
    release = site.state.releases.get("legal/labels")
    assert release is not None
    only = release.model_copy(update={"history": release.history[1:]})
    site.state.releases.put("legal/labels", only)
    with pytest.raises(
        Denied,
        match=r"Adapter clauses@1 was never approved and active under this name\. An emergency cannot release it\.",
    ):
        site.break_glass()


def test_what_may_answer_anyway_is_no_emergency() -> None:
    with pytest.raises(Denied, match=r"All approvals of adapter clauses@1 are valid\."):
        stage("released").break_glass()


def test_an_emergency_lifts_no_revocation_rejection_or_open_finding() -> None:
    for end, why in (
        (lambda site: site.review("rita", "privacy", decision="reject"), "rita rejected this adapter"),
        (lambda site: site.find(), "blocks this release"),
        (lambda site: site.revoke_base(), "Base model smollm2"),
        (lambda site: site.revoke_dataset(), "Dataset clauses@1"),
    ):
        site = lapsed()
        end(site)
        with pytest.raises(Denied, match=why):
            site.break_glass()
        site = lapsed()
        site.break_glass()
        end(site)
        assert any(why in str(reason) for reason in reasons(site))


def test_the_conditions_of_what_was_approved_hold_in_an_emergency() -> None:
    site = lapsed(decision="approve-with-conditions", conditions=conditions(answers_a_day=1))
    site.break_glass()
    site.load(approvals=())
    site.add(site.request(1))
    with pytest.raises(Denied, match="expected at most 1"):
        site.add(site.request(2))


def test_an_emergency_ends_with_the_key_of_either_person() -> None:
    for name, why in (("otto", "revoked from an earlier entry on"), ("ben", "countersigned by ben, whose key or role")):
        site = lapsed()
        entry = site.break_glass()
        site.revoke_key(name, since=entry.index)
        assert any(why in str(reason) for reason in reasons(site))


def test_an_emergency_ends_with_the_administrator_who_countersigned_it() -> None:
    site = lapsed()
    site.break_glass()
    site.revoke("ben")
    assert any("countersigned by ben, whose key or role" in str(reason) for reason in reasons(site))


def test_an_emergency_is_not_exported() -> None:
    site = lapsed()
    site.break_glass()
    with pytest.raises(
        Denied, match=r"Adapter clauses@1 is active because of an emergency release, which cannot be exported\."
    ):
        site.export()


def test_a_site_with_a_single_administrator_has_no_second_person() -> None:
    site = lapsed()
    order = site.release_order(BreakGlass, until=add_seconds(site.now, 600), reason=site.text("It fails."))
    site.state.sites.put("site", site.state.site.model_copy(update={"single_administrator": True}))
    otto = site.state.principals.get("otto")
    assert otto is not None
    assert [one.code for one in authorise_break_glass(site.state, order, otto, site.now)] == ["single-administrator"]


def test_an_emergency_from_before_a_clock_reset_is_over() -> None:
    """Its end is a time of the clock that ran ahead."""
    site = lapsed()
    right = run_ahead(site, 20 * DAY_S)
    site.break_glass()
    assert reasons(site) == []
    reset_clock(site, right)
    assert any("was made before the clock was set back" in one for one in reasons(site))


def test_a_reviewer_who_withdraws_leaves_the_conditions_in_an_emergency() -> None:
    site = lapsed(decision="approve-with-conditions", conditions=conditions(answers_a_day=1))
    for name, field in (("rita", "privacy"), ("raul", "model-risk")):
        site.review(name, field, decision="withdraw")
    site.break_glass()
    site.load(approvals=())
    site.add(site.request(1))
    with pytest.raises(Denied, match="expected at most 1"):
        site.add(site.request(2))


def test_an_emergency_lifts_no_missing_request_or_authorisation() -> None:
    site = stage("sealed", policy_set(requests_required=True)).fork()
    site.request_release()
    approve(site)
    site.activate()
    site.withdraw_request()
    with pytest.raises(
        Denied,
        match=r"Policy requires a release request\. There is no valid request to release adapter clauses@1 to this",
    ):
        site.break_glass()

    site = stage("sealed").fork()
    site.request_release()
    approve(site)
    site.activate()
    tiers = tuple(tier.model_copy(update={"authorise_runs": True}) for tier in Parameters().tiers)
    site.adopt(policy_set(tiers=tiers))
    with pytest.raises(
        Denied,
        match=r"Releases of the tier low need a run that a second person authorised before it began\. Run r-000001",
    ):
        site.break_glass()


def test_its_review_is_replaced_only_where_a_reviewer_sent_it_back() -> None:
    """A lower tier would need fewer of them."""
    site = lapsed()
    opened = site.break_glass()
    with pytest.raises(Denied, match=f"The emergency release of entry {opened.index} waits for"):
        site.request_release()
    site.review("rita", "privacy", decision="request-changes")
    site.request_release()


def test_another_emergency_waits_for_a_review_of_the_last() -> None:
    """Two people alone could otherwise have it answer for ever."""
    site = lapsed()
    opened = site.break_glass()
    site.now = add_seconds(site.now, 90_000)
    with pytest.raises(Denied, match=f"No reviewer has decided on .* by entry {opened.index}"):
        site.break_glass()
    site.review("rita", "privacy")
    again = site.break_glass()
    site.now = add_seconds(site.now, 90_000)
    with pytest.raises(Denied, match=f"No reviewer has decided on .* by entry {again.index}"):
        site.break_glass()


def test_a_decision_under_a_distrusted_key_lets_no_request_replace_that_of_an_emergency() -> None:
    """A stolen reviewer's key would otherwise open the way to a lower tier."""
    site = lapsed()
    opened = site.break_glass()
    entry = site.review("rita", "privacy", decision="request-changes")
    site.revoke_key("rita", since=entry.index)
    with pytest.raises(Denied, match=f"The emergency release of entry {opened.index} waits for"):
        site.request_release()
    site.review("raul", "model-risk", decision="request-changes")
    site.request_release()


def test_a_decision_under_a_distrusted_key_permits_no_further_emergency() -> None:
    site = lapsed()
    opened = site.break_glass()
    entry = site.review("rita", "privacy")
    site.revoke_key("rita", since=entry.index)
    site.now = add_seconds(site.now, 90_000)
    with pytest.raises(Denied, match=f"No reviewer has decided on .* by entry {opened.index}"):
        site.break_glass()
    site.review("raul", "model-risk")
    site.break_glass()
