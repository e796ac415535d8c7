"""The page to sign names the releases that an order stops: exactly those that its entry would block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.actions.apply import try_order
from appliance.domain.actions.example import make_example_state
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import Order
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import RemoveRole, RevokePrincipal
from appliance.errors import ApplianceError
from appliance.reports.impact import describe_stop
from scripts.kit.log_builder import LogBuilder, policy_set, stage
from tests.kit.ahead import DAY_S, pend_reset, run_ahead
from tests.kit.evaluated_release import approve, conditions, reasons

SERVES = "labels for legal, where clauses@1 serves now. "
CONDITIONAL = "approve-with-conditions"


def emergency() -> LogBuilder:
    """Return a site whose release is an emergency release that otto made and ben countersigned."""
    site = stage("sealed")
    approve(site)
    site.activate()
    site.now = add_seconds(site.now, 90_000)
    site.break_glass()
    assert reasons(site) == []
    return site


def texts(site: LogBuilder, order: Order) -> list[str]:
    facts = describe_stop(site.state, order, site.now)
    assert {label for label, _ in facts} <= {"stops"}
    return [text for _, text in facts]


def revoke(name: str) -> Callable[[LogBuilder], Order]:
    return lambda site: site.order(RevokePrincipal, "anna", principal=name, reason=site.text("Left."))


def review(**fields: Any) -> Callable[[LogBuilder], Order]:
    return lambda site: site.review_order("rita", "privacy", **fields)


def revoke_key(site: LogBuilder, since: int | None) -> Order:
    (keyid,) = (key.keyid for key in site.state.keys.values() if key.principal == "rita")
    return site.order(RevokeKey, "anna", principal="rita", keyid=keyid, since=since, reason=site.text("Stolen."))


def remove_second_role(site: LogBuilder) -> Order:
    site.grant("rita", "reviewer:legal-risk")
    return site.order(RemoveRole, "anna", principal="rita", role="reviewer:privacy", reason=site.text("Other work."))


CASES: dict[str, tuple[Callable[[LogBuilder], Order], str]] = {
    "revoked reviewer": (revoke("rita"), "Adapter clauses@1 needs 2 valid approvals for legal and has 1."),
    "revoked owner": (revoke("otto"), "is no longer a release owner of legal. A release owner of legal must"),
    "revoked unit": (revoke("legal"), "is not an enrolled unit."),
    "removed role": (remove_second_role, "Adapter clauses@1 needs 2 valid approvals for legal and has 1."),
    "distrusted key": (
        lambda site: revoke_key(site, since=site.state.size - 3),
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1.",
    ),
    "conditions on served models": (
        review(decision=CONDITIONAL, conditions=conditions(served_models=("drafts",))),
        "A condition of this review allows only these served models: drafts.",
    ),
    "conditions on dates": (
        review(decision=CONDITIONAL, conditions=conditions(not_before="2030-01-01T00:00:00.000Z")),
        "A condition of this review allows requests from 2030-01-01T00:00:00.000Z on.",
    ),
    "rejection": (review(decision="reject"), "rita rejected this adapter by this entry. rita must approve it"),
    "request for changes": (review(decision="request-changes"), "rita requested changes by this entry."),
    "withdrawal": (review(decision="withdraw"), "More reviewers must approve it."),
    "request": (lambda site: site.request_order(), "and has 0. More reviewers must approve it."),
    "finding": (lambda site: site.finding_order(), "This finding (high issue, privacy) blocks this release."),
    "suspension": (lambda site: site.suspension_order(), "suspended adapter clauses@1 for legal by this entry."),
}


@pytest.mark.parametrize(("make", "text"), CASES.values(), ids=CASES)
def test_an_order_names_the_release_that_it_stops_and_the_reason(make: Any, text: str) -> None:
    site = stage("released")
    order = make(site)
    before = len(site.state.orders), site.state.size, site.state.revision
    (found,) = texts(site, order)
    assert found.startswith(SERVES) and text in found
    assert (len(site.state.orders), site.state.size, site.state.revision) == before and reasons(site) == []


@pytest.mark.parametrize(
    "make",
    [
        revoke("audrey"),
        review(),
        review(decision=CONDITIONAL, conditions=conditions(served_models=("labels",))),
        lambda site: site.finding_order(blocks=False),
        lambda site: revoke_key(site, since=None),
        lambda site: site.delegation_order("dana", until=None),
    ],
)
def test_an_order_that_stops_nothing_names_nothing(make: Any) -> None:
    site = stage("released")
    assert texts(site, make(site)) == []


def test_a_revocation_names_the_emergency_release_that_the_person_countersigned() -> None:
    site = emergency()
    (found,) = texts(site, revoke("ben")(site))
    assert found.startswith(SERVES) and "countersigned by ben, whose key or role as an administrator" in found
    site.revoke("ben")
    assert "countersigned by ben" in "".join(reasons(site))


def test_a_reset_of_the_clock_names_the_emergency_release_that_it_ends() -> None:
    site = stage("sealed")
    approve(site)
    site.activate()
    site.now = add_seconds(site.now, 90_000)
    right = run_ahead(site, 20 * DAY_S)
    site.break_glass()
    order, _ = pend_reset(site, right)
    (found,) = texts(site, order)
    assert found.startswith(SERVES) and "was made before the clock was set back" in found


def test_an_emergency_release_needs_no_approval_so_its_reviewers_stop_nothing() -> None:
    site = emergency()
    site.review("rita", "privacy")
    assert texts(site, revoke("rita")(site)) == []
    assert texts(site, site.review_order("rita", "privacy", decision="withdraw")) == []
    site.revoke("rita")
    assert reasons(site) == []


def test_the_withdrawal_of_a_request_that_policy_requires_asks_for_a_request_first() -> None:
    site = stage("sealed")
    site.adopt(policy_set(requests_required=True))
    requested = site.request_release()
    assert requested.type == "release.requested"
    approve(site)
    site.activate()
    assert reasons(site) == []
    (found,) = texts(site, site.withdrawal_order())
    assert "The person who ordered the run must request the release" in found


def test_a_refused_order_and_a_release_that_is_blocked_already_stop_nothing() -> None:
    site = stage("released")
    assert texts(site, site.order(RevokePrincipal, "rita", principal="otto", reason=site.text("No."))) == []
    site.suspend()
    assert texts(site, revoke("legal")(site)) == []


def test_many_releases_are_counted() -> None:
    site = stage("released")
    release = site.state.releases.get("legal/labels")
    assert release is not None
    for number in range(14):
        name = f"model-{number:02}"
        site.state.releases.set(f"legal/{name}", release.model_copy(update={"served_model": name}))
    (found,) = texts(site, revoke("otto")(site))
    assert found.startswith("labels for legal, model-00 for legal,") and " and 5 more, where clauses@1" in found


EXCEPTIONS = ("adopt-policy", "restore-log", "countersign", "break-glass")
"""Actions that can stop a release and bind documents or name another order."""


@pytest.mark.parametrize(
    "action",
    sorted(
        name
        for name, row in ACTIONS.items()
        if row.recheck_slots and not row.order.sets_time and name not in EXCEPTIONS
    ),
)
def test_each_action_that_can_stop_a_release_can_be_tried(action: str) -> None:
    state = make_example_state()
    order = ACTIONS[action].example
    assert try_order(state, order, order.issued_at).place == state.place


@pytest.mark.parametrize("action", EXCEPTIONS)
def test_an_order_that_needs_documents_cannot_be_tried(action: str) -> None:
    order = ACTIONS[action].example
    with pytest.raises(ApplianceError):
        try_order(make_example_state(), order, order.issued_at)


def test_a_copy_of_the_state_changes_alone() -> None:
    site = stage("released")
    copy = site.state.copy()
    assert list(copy.encode_authority()) == list(site.state.encode_authority())
    assert [len(one) for one in copy.tables] == [len(one) for one in site.state.tables]
    for table in copy.tables:
        for key, _ in [*table.items()]:
            table.put(key, None)
    assert sum(map(len, copy.tables)) == 0 and reasons(site) == []
