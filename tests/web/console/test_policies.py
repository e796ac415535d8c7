"""A policy set is compared and tried before it is adopted: which decisions and releases would end otherwise."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import PolicySet
from appliance.domain.governance.policies import AdoptPolicy, describe_changes, list_diff_lines
from appliance.errors import BadInput, Denied
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope
from appliance.web.console.signing import statements as console_policies
from appliance.workflows import orders
from appliance.workflows.queries import policy_trial
from appliance.workflows.queries.policy_trial import try_policy
from tests.kit.console import Console, console
from tests.kit.founded import policy_set

FORBID = """
@id("no-olga")
forbid (principal, action == Action::"train", resource) when { principal.name == "olga" };
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("released", tmp_path_factory.mktemp("p") / "h") as made:
        made.site.adopt(policy_set())
        yield made


def tried(desk: Console, policy: PolicySet) -> policy_trial.Trial:
    document = encode_value(policy)
    return try_policy(desk.context, document, digest_bytes(document))


def test_the_set_in_force_changes_nothing(desk: Console) -> None:
    found = tried(desk, policy_set())
    assert (found.changed_decisions, found.releases, found.ended) == ((), (), "at the log's end")
    assert found.decided > 10 and found.decided + found.unclear == found.found


def test_a_decision_that_a_new_cedar_policy_refuses_is_listed_with_its_reason(desk: Console) -> None:
    policy = policy_set()
    found = tried(desk, policy.model_copy(update={"cedar": policy.cedar + FORBID}))
    (one,) = found.changed_decisions
    assert (one.action, one.signer, one.was) == ("train", "olga", "accepted")
    assert [reason.subject for reason in one.reasons] == ["cedar-policy:no-olga"]
    assert found.releases == (), "what was trained stays"


def test_a_release_that_would_stop_is_listed_and_nothing_of_the_service_s_state_changes(desk: Console) -> None:
    before = desk.context.ledger.state.parameters
    found = tried(desk, policy_set(reviewers=3, distinct_functions=3))
    (one,) = found.releases
    assert (one.unit, one.served_model, one.adapter, one.answers_now) == ("legal", "labels", "clauses@1", True)
    assert any(
        "Adapter clauses@1 needs 3 valid approvals for legal and has 2." in str(reason) for reason in one.reasons
    )
    assert "activate" in {decision.action for decision in found.changed_decisions}
    assert desk.context.ledger.state.parameters is before


def test_a_refusal_that_a_looser_set_would_lift_is_listed(desk: Console) -> None:
    site = desk.site
    meaning = disclose("I read it.", bytes(32))
    late = {"meaning": meaning.commitment, "valid_until": "2030-01-01T00:00:00.000Z"}
    order = site.review_order("rita", "privacy", **late)
    with pytest.raises(Denied, match="valid until"):
        orders.submit(desk.context, orders.Submission(encode_envelope(site.sign(order)), (meaning,), {}, "unix"))
    found = tried(desk, policy_set(approval_lifetime_s=10 * 365 * 86_400))
    assert [(one.action, one.was) for one in found.changed_decisions] == [("review", "refused")]
    assert any("be valid until" in str(reason) for reason in found.changed_decisions[0].reasons)


def test_it_takes_no_more_than_its_time_and_its_number(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(policy_trial, "MOST", 3)
        assert tried(desk, policy_set()).found == 3
    with monkeypatch.context() as patched:
        patched.setattr(policy_trial, "SECONDS", -1.0)
        found = tried(desk, policy_set())
        assert found.decided == 0 and found.ended.startswith("after")


def test_a_set_that_cannot_be_adopted_is_not_tried(desk: Console) -> None:
    with pytest.raises(BadInput, match="Cedar policies"):
        tried(desk, policy_set().model_copy(update={"cedar": "permit"}))


def test_changes_are_told_by_parameter_by_name_and_by_policy() -> None:
    old = policy_set()
    tiers = tuple(
        tier.model_copy(update={"reviewers": 5}) if n == 0 else tier for n, tier in enumerate(old.parameters.tiers)
    )
    new = policy_set(reviewers=4, tiers=tiers).model_copy(
        update={"cedar": old.cedar.replace("permit (principal", "permit  (principal") + FORBID, "name": "other"}
    )
    found = {one.what: one for one in describe_changes(old, new)}
    assert (found["reviewers"].before, found["reviewers"].now) == (str(old.parameters.reviewers), "4")
    (tier,) = [one for what, one in found.items() if what.startswith("tiers: ")]
    assert "reviewers 5" in str(tier.now) and "reviewers 5" not in str(tier.before)
    assert found["Cedar policy no-olga"].before is None and "forbid" in str(found["Cedar policy no-olga"].now)
    assert describe_changes(old, old) == ()


@pytest.mark.parametrize("cedar", ["permit (principal, action, resource);", "", '// @id("a")', '@id("a") @id("a")'])
def test_a_text_whose_policies_have_no_id_of_their_own_is_compared(cedar: str) -> None:
    old = policy_set()
    new = old.model_copy(update={"cedar": cedar})
    for found in (describe_changes(old, new), describe_changes(new, old)):
        assert [one.what for one in found if one.what.startswith("Cedar policy ")]


def test_a_line_that_only_other_programs_end_is_compared_as_cedar_reads_it() -> None:
    """The condition is part of the comment, so it is gone."""
    old = policy_set()
    old = old.model_copy(update={"cedar": f"{old.cedar}{FORBID}"})
    hidden = old.cedar.replace("when {", "// read on 3 March\u2028when {")
    new = old.model_copy(update={"cedar": hidden})
    (one,) = describe_changes(old, new)
    assert one.what == "Cedar policy no-olga" and "\u2028" in str(one.now)
    assert any("\u2028when {" in line for line in list_diff_lines(old, new))


@pytest.mark.thorough
def test_the_page_before_the_signature_shows_both_and_so_does_the_countersignature_s(desk: Console) -> None:
    policy = policy_set()
    changed = policy.model_copy(update={"cedar": policy.cedar + FORBID})
    browser = desk.signed_in("anna")
    answer = browser.fill(
        "adopt-policy",
        {
            "policy.name": changed.name,
            "policy.parameters": json.dumps(changed.parameters.model_dump(mode="json")),
            "policy.cedar": changed.cedar,
            "policy.schema": changed.cedar_schema,
        },
    )
    assert answer.status_code == 200, answer.text
    document = encode_value(changed)
    pending = desk.site.pend(desk.site.order(AdoptPolicy, "anna", policy=digest_bytes(document)), {"policy": document})
    other = desk.signed_in("ben")
    countersigning = other.fill("countersign", {"order": pending.pae_digest})
    assert countersigning.status_code == 200, countersigning.text
    for page in (answer.text, countersigning.text):
        text = html.unescape(page)
        assert "<td>Cedar policy no-olga</td>" in text and '+@id("no-olga")' in text
        assert "Cedar policy no-olga forbids olga the action train." in text
        assert "accepted, and would be refused" in text
        assert text.index("What it stops or starts") < text.index("What it would have decided")


def test_after_an_adoption_the_page_names_the_release_that_stopped_and_its_owner(desk: Console) -> None:
    entry = desk.site.adopt(policy_set(reviewers=3, distinct_functions=3))
    page = " ".join(html.unescape(desk.signed_in("ben").get(f"/signed/{entry.index}").text).split())
    assert "legal/labels: Adapter clauses@1 needs 3 valid approvals" in page and "Who can do it: legal, otto" in page
    assert "Nobody has to act because of it" not in page


FORM = "policy.name", "policy.parameters", "policy.cedar", "policy.schema"


def form_of(policy: PolicySet) -> dict[str, str]:
    parameters = json.dumps(policy.parameters.model_dump(mode="json"))
    return dict(zip(FORM, (policy.name, parameters, policy.cedar, policy.cedar_schema), strict=True))


@pytest.mark.parametrize(("name", "roles"), [("rita", "reviewer:privacy"), ("olga", "operator"), ("audrey", "auditor")])
def test_nobody_but_an_administrator_has_a_set_tried(
    desk: Console, name: str, roles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_policies, "try_policy", lambda *_: pytest.fail("it was tried"))
    document = encode_value(policy_set(reviewers=3))
    pending = desk.site.pend(desk.site.order(AdoptPolicy, "anna", policy=digest_bytes(document)), {"policy": document})
    browser = desk.signed_in(name)
    answers = [
        browser.get("/sign/adopt-policy"),
        browser.get("/sign/adopt-policy.json"),
        browser.fill("adopt-policy", form_of(policy_set(reviewers=3))),
        browser.fill("countersign", {"order": pending.pae_digest}),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4
    for answer in answers:
        assert f"{name} is {roles}. This action needs administrator." in html.unescape(answer.text)
    assert "Ask somebody who has the role" in html.unescape(answers[0].text)


@pytest.mark.thorough
def test_a_person_has_one_trial_at_a_time(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    tried_before = console_policies.try_policy

    def slow(*given: Any) -> policy_trial.Trial:
        begun.set()
        assert go_on.wait(90)
        return tried_before(*given)

    monkeypatch.setattr(console_policies, "try_policy", slow)
    browser, other, ben = (desk.signed_in(name) for name in ("anna", "anna", "ben"))
    fields = form_of(policy_set(reviewers=3))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(browser.fill, "adopt-policy", fields)
        assert begun.wait(90)
        refused = other.fill("adopt-policy", fields)
        second = pool.submit(ben.fill, "adopt-policy", fields)
        go_on.set()
        assert (first.result(60).status_code, second.result(60).status_code) == (200, 200)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert "expected one at a time" in html.unescape(refused.text) and ">Change the form</a>" in refused.text
    assert other.fill("adopt-policy", fields).status_code == 200, "once the first has ended"
