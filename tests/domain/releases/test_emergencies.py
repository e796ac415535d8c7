"""Two people let a version answer for some hours that answered before, and a review of it opens."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.releases.emergencies import BreakGlass, may_break_glass
from appliance.domain.releases.tiers import current_request, tier_of
from appliance.errors import ApplianceError, Denied
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.judged_release import adapter_of, approve, conditions, reasons


def lapsed(**fields: Any) -> LogBuilder:
    """Version 1 answered; its approvals have ended, so that nothing answers."""
    site = stage("sealed")
    approve(site, **fields)
    site.activate()
    site.now = add_seconds(site.now, 90_000)
    return site


def test_a_version_that_was_approved_before_answers_for_some_hours() -> None:
    site = lapsed()
    assert any("quorum" in reason for reason in reasons(site))
    site.break_glass()
    assert reasons(site) == []
    site.load(approvals=())
    site.add(site.request(1))
    site.add(site.answered(1))
    end = site.state.releases.get("legal/labels")
    assert end is not None and end.current.until is not None
    site.now = end.current.until
    with pytest.raises(Denied, match="expected an emergency that lasts, got one that ended"):
        site.add(site.request(2))


def test_a_review_of_the_highest_tier_opens_by_itself() -> None:
    site = lapsed()
    site.break_glass()
    request = current_request(site.state, adapter_of(site), "legal")
    assert request is not None and (request.kind, request.requested_by) == ("break-glass", "otto")
    tier = tier_of(site.state.parameters, request)
    assert tier is not None and tier.name == "high"
    approve(site)
    with pytest.raises(Denied, match="quorum: expected 3 standing approvals"):
        site.activate()
    with pytest.raises(Denied, match="expected one that a person asked for, got that of the emergency"):
        site.withdraw_request("otto")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one person alone": ({"second": "otto"}, "role: expected otto to be administrator"),
    "no release owner": ({"signer": "rita"}, "role: expected rita to be release-owner:legal"),
    "no reason": ({"reason": None}, "reason: expected what the emergency is"),
    "a task that it never answered": ({"task": "advice"}, "one that was approved and answered legal/advice before"),
    "a longer time than policy lets it": (
        {"until": "2026-06-01T00:00:00.000Z"},
        "until: expected a time after .* and not after",
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
    with pytest.raises(Denied, match="got clauses@2"):
        site.break_glass(2)


def test_a_version_that_answered_in_an_emergency_alone_was_not_approved() -> None:
    site = lapsed()
    site.break_glass()
    release = site.state.releases.get("legal/labels")
    assert release is not None
    only = release.model_copy(update={"history": release.history[1:]})
    site.state.releases.put("legal/labels", only)
    with pytest.raises(Denied, match="one that was approved and answered"):
        site.break_glass()


def test_what_may_answer_anyway_is_no_emergency() -> None:
    with pytest.raises(Denied, match="got one to roll back to"):
        stage("released").break_glass()


def test_an_emergency_lifts_no_revocation_rejection_or_open_finding() -> None:
    for end, why in (
        (lambda site: site.review("rita", "privacy", decision="reject"), "got a rejection by rita"),
        (lambda site: site.find(), "got one that blocks and is open"),
        (lambda site: site.revoke_base(), "base smollm2"),
        (lambda site: site.revoke_dataset(), "dataset clauses@1"),
    ):
        site = lapsed()
        end(site)
        with pytest.raises(Denied, match=why):
            site.break_glass()
        site = lapsed()
        site.break_glass()
        end(site)
        assert any(why in reason for reason in reasons(site))


def test_the_conditions_of_what_was_approved_hold_in_an_emergency() -> None:
    site = lapsed(decision="approve-with-conditions", conditions=conditions(answers_a_day=1))
    site.break_glass()
    site.load(approvals=())
    site.add(site.request(1))
    with pytest.raises(Denied, match="expected at most 1"):
        site.add(site.request(2))


def test_an_emergency_ends_with_the_key_of_either_person() -> None:
    for name in ("otto", "ben"):
        site = lapsed()
        entry = site.break_glass()
        site.revoke_key(name, since=entry.index)
        assert any("key that counts" in reason for reason in reasons(site))


def test_an_emergency_is_not_exported() -> None:
    site = lapsed()
    site.break_glass()
    with pytest.raises(Denied, match="got that of an emergency"):
        site.export()


def test_a_site_with_a_single_administrator_has_no_second_person() -> None:
    site = lapsed()
    order = site.release_order(BreakGlass, until=add_seconds(site.now, 600), reason=site.text("It fails."))
    site.state.sites.put("site", site.state.site.model_copy(update={"single_administrator": True}))
    otto = site.state.principals.get("otto")
    assert otto is not None
    expected = "administrators: expected a second person who can endorse it, got a site with a single one"
    assert may_break_glass(site.state, order, otto, site.now) == [expected]


def test_an_emergency_from_before_a_clock_reset_is_over() -> None:
    """Its end is a time of the clock that ran ahead."""
    site = lapsed()
    right = run_ahead(site, 20 * DAY_S)
    site.break_glass()
    assert reasons(site) == []
    reset_clock(site, right)
    assert any("expected an emergency that lasts, got one from before a clock reset" in one for one in reasons(site))


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
        Denied, match="request: expected a standing one to release clauses@1 to legal, as policy requires"
    ):
        site.break_glass()

    site = stage("sealed").fork()
    site.request_release()
    approve(site)
    site.activate()
    tiers = tuple(tier.model_copy(update={"authorise_runs": True}) for tier in Parameters().tiers)
    site.adopt(policy_set(tiers=tiers))
    with pytest.raises(
        Denied, match="expected one that a second person authorised before it began, as the tier low asks"
    ):
        site.break_glass()


def test_its_review_is_replaced_only_where_a_reviewer_sent_it_back() -> None:
    """A lower tier would need fewer of them."""
    site = lapsed()
    opened = site.break_glass()
    with pytest.raises(Denied, match=f"expected reviewers to decide on that of the emergency of entry {opened.index}"):
        site.request_release()
    site.review("rita", "privacy", decision="request-changes")
    site.request_release()


def test_another_emergency_waits_for_a_review_of_the_last() -> None:
    """Two people alone could otherwise have it answer for ever."""
    site = lapsed()
    opened = site.break_glass()
    site.now = add_seconds(site.now, 90_000)
    with pytest.raises(Denied, match=f"expected a review of the emergency of entry {opened.index} first, got none"):
        site.break_glass()
    site.review("rita", "privacy")
    again = site.break_glass()
    site.now = add_seconds(site.now, 90_000)
    with pytest.raises(Denied, match=f"expected a review of the emergency of entry {again.index} first"):
        site.break_glass()
