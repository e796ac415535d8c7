"""A run for a tier with `authorise_runs` begins after a second person has authorised it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.core.records.runs import Run
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.runs.conditions import find_next_run
from appliance.domain.runs.control import Cancel, RefuseRun, RunCancelled, list_authorisers
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.domain.releases.test_admission import decide, evidence
from tests.domain.releases.test_exports import check, received
from tests.kit.evaluated_release import adapter_of, approve, reasons


def asking(*names: str) -> PolicySet:
    """Return a policy whose tiers of these names ask for a second person."""
    tiers = Parameters().tiers
    return policy_set(tiers=tuple(tier.model_copy(update={"authorise_runs": tier.name in names}) for tier in tiers))


def waiting(tier: str | None = "high", *, policy: PolicySet | None = None) -> tuple[LogBuilder, str]:
    site = stage("imported", policy or asking("high")).fork()
    return site, site.request_run(tier=tier)


def row(site: LogBuilder, run: str) -> Run:
    found = site.state.runs.get(run)
    assert found is not None
    return found


def grant(site: LogBuilder, name: str, role: str) -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


def test_a_run_for_such_a_tier_waits_and_does_not_begin() -> None:
    site, run = waiting()
    assert (row(site, run).status, row(site, run).tier, find_next_run(site.state)) == ("waiting", "high", None)
    with pytest.raises(Denied, match="expected one that is queued or running, got waiting"):
        site.add(site.started(run))


@pytest.mark.parametrize("tier", [None, "low"])
def test_another_run_waits_for_nobody(tier: str | None) -> None:
    site, run = waiting(tier)
    assert row(site, run).status == "queued"
    with pytest.raises(Denied, match=r"Run r-000001 is queued and does not wait for authorisation\."):
        site.authorise(run)


def test_a_tier_that_policy_does_not_have_is_refused() -> None:
    with pytest.raises(Denied, match=r"Policy has no tier with the name highest\."):
        waiting("highest")


@pytest.mark.parametrize("who", ["rita", "anna"])
def test_a_reviewer_or_an_administrator_lets_it_begin(who: str) -> None:
    site, run = waiting()
    entry = site.authorise(run, who)
    found = row(site, run)
    assert found.authorised is not None and (found.authorised.by, found.authorised.index) == (who, entry.index)
    assert find_next_run(site.state) == found
    site.add(site.started(run))


def test_it_takes_its_turn_from_when_it_was_authorised() -> None:
    site, run = waiting()
    later = site.request_run()
    site.authorise(run)
    assert getattr(find_next_run(site.state), "id", None) == later


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("olga", r"olga ordered the run\. A second person must authorise it\."),
        ("ines", r"ines imported the dataset of the run\. A second person must authorise it\."),
        ("otto", r"otto is release-owner:legal\. This action needs administrator or reviewer\."),
        ("audrey", r"audrey is auditor\. This action needs administrator or reviewer\."),
        ("legal", r"legal is unit\. This action needs administrator or reviewer\."),
    ],
)
def test_it_is_neither_authorised_nor_refused_by(who: str, why: str) -> None:
    site, run = waiting()
    if who in ("olga", "ines"):
        grant(site, who, "reviewer:privacy")
    with pytest.raises(Denied, match=why):
        site.authorise(run, who)
    with pytest.raises(Denied, match=why):
        site.refuse_run(run, who)
    assert row(site, run).status == "waiting"


def test_the_status_names_who_could_let_it_begin() -> None:
    site, run = waiting()
    grant(site, "olga", "reviewer:privacy")
    assert list_authorisers(site.state, row(site, run)) == ("anna", "ben", "raul", "rita")


def test_a_refused_run_ends_with_a_reason() -> None:
    site, run = waiting()
    with pytest.raises(Denied, match=r"The refusal of a run needs a reason\."):
        site.refuse_run(run, reason=None)
    site.refuse_run(run)
    assert row(site, run).status == "refused"
    for again in (site.authorise, site.refuse_run):
        with pytest.raises(Denied, match=r"Run r-000001 is refused and does not wait for authorisation\."):
            again(run)


def test_who_ordered_it_can_cancel_it_while_it_waits() -> None:
    site, run = waiting()
    site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=run))
    with pytest.raises(Denied, match=r"Run r-000001 is cancelled and does not wait for authorisation\."):
        site.authorise(run)


def test_an_authorisation_names_the_order_to_train_that_its_signer_read() -> None:
    site, run = waiting()
    with pytest.raises(Denied, match=r"The order names another order of run .* than .*\."):
        site.authorise(run, order=digest_bytes(b"another recipe"))


def test_a_run_on_data_that_was_withdrawn_is_not_authorised_but_refused() -> None:
    site, run = waiting()
    site.revoke_dataset()
    with pytest.raises(Denied, match=r"Dataset clauses@1 was revoked by entry 22\."):
        site.authorise(run)
    site.refuse_run(run)


def test_a_policy_that_is_adopted_later_does_not_begin_a_run_that_waits() -> None:
    site, run = waiting()
    site.adopt(policy_set())
    with pytest.raises(Denied, match="expected one that is queued or running, got waiting"):
        site.add(site.started(run))
    site.authorise(run)


# The release.


WIDE: dict[str, Any] = {"exposure": "public", "purpose": "decide", "tier": "high"}


def sealed(tier: str | None) -> LogBuilder:
    site = stage("imported", asking("high")).fork()
    site.seal(site.train(tier=tier))
    return site


def test_a_release_in_that_tier_needs_a_run_that_was_authorised() -> None:
    site = sealed(None)
    with pytest.raises(Denied, match="Releases of the tier high need a run that a second person authorised before"):
        site.request_release(**WIDE)
    site.request_release()
    sealed("high").request_release(**WIDE)


def released(policy: PolicySet) -> LogBuilder:
    """Of an authorised run, in the tier high, by three people."""
    site = stage("imported", policy).fork()
    site.seal(site.train(tier="high"))
    site.enrol("rolf", "reviewer:safety")
    site.request_release(**WIDE)
    approve(site)
    site.review("rolf", "safety")
    site.activate()
    return site


def test_admission_proves_the_authorisation_by_its_own_signature() -> None:
    site = released(asking("high"))
    made = adapter_of(site).authorised
    assert made is not None and reasons(site) == [] and decide(site, evidence(site)).reasons == ()
    found = evidence(site)
    assert made.index in found.logged
    exported = site.export()
    assert check(site, received(site, exported.index)).adapter.authorised == made
    row = adapter_of(site).model_copy(update={"authorised": made.model_copy(update={"by": "raul"})})
    site.state.adapters.put("clauses@1", row)
    told = decide(site, found)
    assert told.tampered and any(f"entry {made.index}, authorisation: expected" in str(one) for one in told.reasons)


def test_an_authorisation_by_a_key_that_does_not_count_is_none() -> None:
    site = released(asking("high"))
    made = adapter_of(site).authorised
    assert made is not None
    site.revoke_key("rita", since=made.index)
    assert any("has no valid authorisation" in str(reason) for reason in reasons(site))


def test_a_tier_that_asks_for_it_later_stops_a_release_whose_run_began_without() -> None:
    site = released(asking())
    assert adapter_of(site).authorised is None and reasons(site) == []
    site.adopt(asking("high"))
    assert any("has no valid authorisation" in str(reason) for reason in reasons(site))


def test_a_refusal_is_another_order_than_an_authorisation() -> None:
    site, run = waiting()
    order = site.authorisation_order(run, model=RefuseRun)
    assert order.subjects() == ((f"run:{run}", row(site, run).order),) and order.action == "refuse-run"
