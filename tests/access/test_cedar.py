"""Tests of the site's Cedar policies: the facts that they receive, their refusals, and that they cannot allow more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.access.cedar import POLICY_FORBIDS, POLICY_PERMITS_NOT, POLICY_WITHOUT_ACTION, CedarPolicies
from appliance.access.requests import make_request, sample_requests
from appliance.domain.actions.example import make_example_state
from appliance.domain.actions.registry import ACTIONS, list_refusal_reasons
from appliance.domain.audit.log_replay import CedarPolicy, Decide
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.example import NOW, make_example
from appliance.domain.core.names import NO_DIGEST, Time
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.core.state import State
from appliance.domain.governance.people import Grant, PrincipalEnrolled, RevokePrincipal
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.runs.control import Cancel
from appliance.errors import BadInput, Denied, Refusal
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.refusals import refuses

FOLDER = Path(__file__).resolve().parents[2] / "policies" / "default"
SCHEMA = (FOLDER / "schema.cedarschema").read_text()
PERMIT = '@id("all") permit (principal, action, resource);\n'


def policy(cedar: str, schema: str = SCHEMA, **parameters: Any) -> PolicySet:
    return PolicySet(name="site", parameters=Parameters(**parameters), cedar=cedar, cedar_schema=schema)


def forbids(policy_id: str, action: str, principal: str) -> Refusal:
    """Return the refusal of a Cedar policy that forbids the action."""
    return POLICY_FORBIDS(f"cedar-policy:{policy_id}", action=action, principal=principal)


def decide(site: Site | LogBuilder, order: Order, cedar: str) -> tuple[Refusal, ...]:
    return decide_by(CedarPolicies(policy(cedar)), site, order)


def decide_by(policies: CedarPolicies, site: Site | LogBuilder, order: Order) -> tuple[Refusal, ...]:
    signer = site.state.principals.get(order.signer)
    assert signer is not None
    return policies.decide(signer, order, site.state, site.now)


class Site(NamedTuple):
    state: State
    now: Time


SITE = Site(make_example_state(), NOW)
ORDERED: dict[str, Order] = {name: action.example for name, action in ACTIONS.items()}
SAMPLES = sample_requests()


def test_every_action_has_facts_and_an_example_that_the_rules_accept() -> None:
    for name, action in ACTIONS.items():
        assert list_refusal_reasons(SITE.state, action.example, NOW) == [], name
        assert (action.facts is None) == (name == "enrol-several")
    assert set(SAMPLES) | {"enrol-several"} == set(ACTIONS)


def test_every_action_has_an_entry_in_the_schema() -> None:
    assert re.findall(r'^action "(.*)" appliesTo {', SCHEMA, re.MULTILINE) == list(SAMPLES)


def test_an_order_that_enrols_several_is_asked_of_each_as_an_enrolment() -> None:
    order = ORDERED["enrol-several"]
    assert decide(SITE, order, PERMIT) == ()
    no_owners = '@id("no-owners") forbid (principal, action == Action::"enrol", resource) when { context.roles.contains'
    assert decide(SITE, order, f'{PERMIT}{no_owners}("release-owner:legal") }};') == (
        forbids("no-owners", "enrol", "anna"),
    )
    assert decide(SITE, order, f'{PERMIT}{no_owners}("auditor") }};') == ()


@pytest.mark.thorough
@pytest.mark.family(keep=10)
@pytest.mark.parametrize("action", sorted(SAMPLES))
def test_every_action_is_decided(action: str) -> None:
    order = ORDERED[action]
    assert decide(SITE, order, PERMIT) == ()
    cedar = f'{PERMIT}@id("no-{action}") forbid (principal, action == Action::"{action}", resource);'
    forbid = CedarPolicies(policy(cedar))
    assert decide_by(forbid, SITE, order) == (forbids(f"no-{action}", action, order.signer),)
    others = [other for name, other in ORDERED.items() if name.removesuffix("-several") != action]
    assert all(decide_by(forbid, SITE, other) == () for other in others)


# What a policy can see.

SEEN = [
    ("train", 'resource.dataset.classification == "internal"'),
    ("train", 'resource.dataset.licence == "CC-BY-4.0" && resource.base.licence == "Apache-2.0"'),
    ("train", 'resource.dataset.imported_by == Principal::"ines"'),
    ("train", 'resource.dataset.imported_by in Role::"operator"'),
    ("train", 'resource.ordered_by == principal && resource.name == "clauses"'),
    ("train", 'context.method == "qlora" && context.rank == 16 && context.purpose == "release"'),
    ("train", 'principal in Role::"operator" && principal.name == "olga"'),
    ("train", '!(context has tier)'),
    ("authorise-run", 'principal in Role::"reviewer" && resource.ordered_by == Principal::"olga"'),
    ("refuse-run", 'resource.dataset.imported_by != principal'),
    ("cancel", 'resource.status == "queued" && resource.base.name == "smollm2"'),
    ("resume", 'resource.ordered_by == principal && resource.status == "failed"'),
    ("replay", 'principal in Role::"auditor" && context.from_step == 0 && context.to_step == 10'),
    ("review", 'principal in Role::"reviewer" && principal in Role::"reviewer:privacy"'),
    ("review", 'context.unit == "legal" && context.review_function == "privacy" && context.decision == "approve"'),
    ("review", 'context has valid_until && context.valid_until.durationSince(context.now) == duration("350d")'),
    ("review", 'resource.dataset.classification == "internal" && resource.ordered_by == Principal::"olga"'),
    ("review", "!(context has on_behalf_of)"),
    ("request-release", 'context.exposure == "internal" && context.purpose == "assist" && context.tier == "low"'),
    ("withdraw-request", 'context.unit == "legal"'),
    ("add-finding", 'context.severity == "high" && context.blocks && context.owner == "olga"'),
    ("add-finding", "!context.accepts_verdict"),
    ("close-finding", 'context.finder == "rita" && context.review_function == "privacy" && context.kind == "issue"'),
    ("view-samples", 'context.count == 5 && resource.name == "clauses"'),
    ("try-adapter", 'context.prompts == 1 && resource.name == "clauses"'),
    (
        "delegate",
        'resource in Role::"reviewer:legal-risk" && context has until && context.review_function == "privacy"',
    ),
    ("break-glass", 'context.served_model == "labels" && context.until.durationSince(context.now) == duration("1h")'),
    ("activate", 'context.unit == "legal" && context.served_model == "labels" && resource == Adapter::"clauses@1"'),
    ("activate", 'principal in Role::"release-owner" && principal in Role::"release-owner:legal"'),
    ("rollback", "resource.version == 1"),
    ("enrol", 'resource.name == "nina" && context.roles.contains("operator")'),
    ("enrol", 'context.roles.contains("release-owner:legal") && resource.roles.isEmpty()'),
    ("grant", 'resource in Role::"reviewer" && context.role == "reviewer:safety"'),
    ("remove-role", 'resource == Principal::"vera" && context.role == "reviewer:safety"'),
    ("revoke-principal", 'resource == Principal::"rita"'),
    ("countersign", 'resource.action == "grant" && resource.signer == Principal::"anna"'),
    ("countersign", "resource.signer != principal && !context.single_administrator"),
    ("withdraw-order", "resource.signer == principal"),
    ("import-base", 'resource.licence == "Apache-2.0" && context.format == "safetensors"'),
    ("import-dataset", 'resource.classification == "internal" && resource.version == 2 && context.format == "csv"'),
    ("revoke-adapter", 'resource.name == "clauses"'),
    ("suspend-release", 'context.unit == "legal" && context.role == "reviewer:privacy" && !(context has task)'),
    ("resume-release", 'context.by == "rita" && context has served_model && context.served_model == "drafts"'),
    ("export-adapter", 'context.unit == "legal" && context.valid_until < datetime("2027-01-01T00:00:00Z")'),
    ("revoke-base", 'resource.name == "smollm2"'),
    ("revoke-dataset", 'resource.name == "clauses" && resource.version == 1'),
    ("adopt-policy", "resource.digest like \"sha256:*\""),
    ("train", 'context.now > datetime("2026-01-15T00:00:00Z") && context.now < datetime("2026-01-16T00:00:00Z")'),
]  # fmt: skip


def test_a_policy_sees_that_a_rejection_has_no_date() -> None:
    site = stage("sealed")
    forbid = '@id("dated") forbid (principal, action == Action::"review", resource) when { context has valid_until };'
    rejection = site.review_order("rita", "privacy", decision="reject")
    assert decide(site, rejection, PERMIT + forbid) == ()
    assert decide(site, site.review_order("rita", "privacy"), PERMIT + forbid) != ()
    unasked = forbid.replace("context has valid_until", "context.valid_until < context.now")
    with pytest.raises(BadInput, match="expected them to fit the schema"):
        CedarPolicies(policy(PERMIT + unasked))


@pytest.mark.family(keep=12)
@pytest.mark.parametrize(("action", "condition"), SEEN)
def test_a_policy_sees_what_the_ledger_knows(action: str, condition: str) -> None:
    text = f'{PERMIT}@id("when") forbid (principal, action == Action::"{action}", resource) when {{ {condition} }};'
    assert decide(SITE, ORDERED[action], text) == (forbids("when", action, ORDERED[action].signer),)
    unless = text.replace("when {", "unless {")
    assert decide(SITE, ORDERED[action], unless) == (), "the condition is false where it should be true"


def test_every_policy_that_forbids_is_named_whatever_its_place_in_the_file() -> None:
    text = (
        '@id("third") forbid (principal, action == Action::"cancel", resource);\n'
        '@id("second") forbid (principal, action == Action::"train", resource);\n'
        f"{PERMIT}"
        '@id("first") forbid (principal, action, resource) when { context.now > datetime("2000-01-01") };\n'
    )
    assert decide(SITE, ORDERED["train"], text) == (
        forbids("first", "train", "olga"),
        forbids("second", "train", "olga"),
    )


# Failing closed.


def test_what_no_policy_permits_is_refused() -> None:
    text = '@id("some") permit (principal, action == Action::"cancel", resource);'
    assert decide(SITE, ORDERED["train"], text) == (
        POLICY_PERMITS_NOT("policy-set:site", action="train", principal="olga"),
    )


def test_a_policy_that_cannot_be_evaluated_is_a_reason_against() -> None:
    """Cedar alone would skip the forbid that fails, and allow."""
    overflow = "context.rank * 9223372036854775807 > 0"
    with pytest.raises(BadInput, match="expected it to take a sample request"):
        CedarPolicies.for_adoption(policy(PERMIT + forbid_train(overflow)))
    (reason,) = decide(SITE, ORDERED["train"], PERMIT + forbid_train(f"context.rank == 16 && {overflow}"))
    assert reason.code == "policy-error"


def forbid_train(condition: str) -> str:
    return f'@id("no") forbid (principal, action == Action::"train", resource) when {{ {condition} }};'


def test_an_order_about_what_the_ledger_does_not_know_is_refused() -> None:
    unknown = make_example(Cancel, signer="olga", run="r-999999")
    (reason,) = decide(SITE, unknown, PERMIT)
    assert (
        reason.code == "policy-subject-unknown"
        and reason.values["detail"] == "run: expected one that is recorded, got r-999999"
    )


@pytest.mark.parametrize(
    ("cedar", "schema", "words"),
    [
        ("permit (principal, action", SCHEMA, "policies: expected Cedar policies, got:"),
        (PERMIT, "entity X = {", "schema: expected a Cedar schema, got:"),
        ("permit (principal, action, resource);", SCHEMA, "policy0, @id: expected 1 to 63"),
        (PERMIT + '@id("Not An Id") forbid (principal, action, resource);', SCHEMA, "policy1, @id: expected 1 to 63"),
        (PERMIT + PERMIT, SCHEMA, "policy1: expected an @id of its own, got 'all' again"),
        ("", SCHEMA, "expected at least one permit"),
        ('@id("no") forbid (principal, action, resource);', SCHEMA, "expected at least one permit"),
        (PERMIT + '@id("t") permit (principal == ?principal, action, resource);', SCHEMA, "expected no templates"),
        (PERMIT + '@id("a") forbid (principal, action == Action::"fly", resource);', SCHEMA, "a: for policy"),
        (
            PERMIT + '@id("b") forbid (principal, action == Action::"train", resource) when { resource.hue == "red" };',
            SCHEMA,
            "b: for policy",
        ),
        (PERMIT, SCHEMA.replace("classification: String,", ""), "action import-dataset: expected it to take a sample"),
        (PERMIT, SCHEMA.replace("rank: Long,", "rank: String,"), "action train: expected it to take a sample"),
        (PERMIT, SCHEMA.replace('action "cancel"', 'action "stop"'), "action cancel: expected it to take a sample"),
        (PERMIT, SCHEMA.replace(" action: String,", " action: String, x: String,"), "action countersign: expected"),
    ],
)  # fmt: skip
def test_a_policy_set_that_could_not_decide_is_refused_before_it_is_adopted(
    cedar: str, schema: str, words: str
) -> None:
    with pytest.raises(BadInput, match="policy set site") as caught:
        CedarPolicies.for_adoption(policy(cedar, schema))
    assert words in caught.value.message


def list_lockout_reasons(policies: CedarPolicies, site: Site | LogBuilder) -> tuple[Refusal, ...]:
    people = [person for person in site.state.principals.values() if person.has("administrator")]
    return policies.list_lockout_reasons(people, site.state.site.single_administrator, site.now)


FIRST = """
entity Role in [Role];
entity Principal in [Role] = { name: String, roles: Set<String> };
entity Policy = { digest: String };
entity PendingOrder = { action: String, signer: Principal };
type Now = { now: datetime, single_administrator: Bool };
action "adopt-policy" appliesTo { principal: [Principal], resource: [Policy], context: Now };
action "countersign" appliesTo { principal: [Principal], resource: [PendingOrder], context: Now };
"""
"""Fields of the schema of every set that was ever adopted. No build may change what it sends of this: a valid set
could not be replaced then."""


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_a_schema_of_any_earlier_release_takes_the_adoption_of_another_set_and_refuses_what_it_lacks(
    action: str,
) -> None:
    site = CedarPolicies(policy(PERMIT, FIRST))
    assert list_lockout_reasons(site, SITE) == ()
    signer = SITE.state.principals.get(ORDERED[action].signer)
    assert signer is not None
    asked = action.removesuffix("-several")
    lacks = POLICY_WITHOUT_ACTION("policy-set:site", action=asked, principal=signer.name)
    expected = () if action in ("adopt-policy", "countersign") else (lacks,)
    assert site.decide(signer, ORDERED[action], SITE.state, SITE.now) == expected


# What a set's own schema does not declare is left out.

DECLARED = [
    (kind, name)
    for kind, attributes in re.findall(r"entity (\w+)(?: in \[Role\])? = {(.*?)\n};", SCHEMA, re.DOTALL)
    for name in re.findall(r"^  (\w+)\??:", attributes, re.MULTILINE)
]


def undeclared(kind: str, name: str) -> str:
    schema, count = re.subn(rf"(entity {kind}\b[^{{;]*{{[^}}]*?\n)  {name}: [^\n]*\n", r"\1", SCHEMA)
    assert count == 1
    return schema


@pytest.mark.family(keep=10)
@pytest.mark.parametrize(("kind", "name"), DECLARED)
def test_an_attribute_that_the_schema_does_not_declare_is_left_out(kind: str, name: str) -> None:
    earlier = policy(PERMIT, undeclared(kind, name))
    site = CedarPolicies(earlier)
    samples = [request for request in SAMPLES.values() if f"{kind}Entity(" in repr(request)]
    assert samples and not [request for request in samples if site.list_refusal_reasons(request)]
    with pytest.raises(BadInput, match="expected it to take a sample request"):
        CedarPolicies.for_adoption(earlier)


def test_what_only_an_undeclared_attribute_names_need_not_be_declared() -> None:
    """Of a build that knew no datasets."""
    schema = re.sub(r'(?s)(entity Dataset = {|action "(import|revoke)-dataset" appliesTo {).*?\n};', "", SCHEMA)
    schema = schema.replace("  dataset: Dataset,\n", "")
    site = CedarPolicies(policy(PERMIT + forbid_train("resource.base.licence == context.method || true"), schema))
    assert site.list_refusal_reasons(SAMPLES["train"]) == (forbids("no", "train", "olga"),)
    assert site.list_refusal_reasons(SAMPLES["activate"]) == ()
    refused = [action for action, request in SAMPLES.items() if site.list_refusal_reasons(request)]
    assert refused == ["import-dataset", "revoke-dataset", "train"]


def test_what_the_schema_does_not_declare_of_the_context_is_left_out_and_the_rest_is_seen() -> None:
    schema = SCHEMA.replace("    rank: Long,\n", "").replace("epochs: Long,", "epochs?: Long,")
    when = "context has epochs && context.epochs == 1"
    assert CedarPolicies(policy(PERMIT, schema)).list_refusal_reasons(SAMPLES["train"]) == ()
    site = CedarPolicies(policy(PERMIT + forbid_train(when), schema))
    assert site.list_refusal_reasons(SAMPLES["train"]) == (forbids("no", "train", "olga"),)


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA.replace("rank: Long,", "rank: String,"),
        SCHEMA.replace("rank: Long,", "rank: Long,\n    more: Long,"),
        SCHEMA.replace("  dataset: Dataset,\n", "  dataset: Base,\n"),
        SCHEMA.replace("  status: String,", "  status: Set<String>,"),
        SCHEMA.replace("  resource: [Run],\n", "  resource: [Adapter],\n"),
    ],
)
def test_what_the_schema_declares_otherwise_is_still_a_reason_against(schema: str) -> None:
    assert schema != SCHEMA
    (reason,) = CedarPolicies(policy(PERMIT, schema)).list_refusal_reasons(SAMPLES["train"])
    assert reason.code == "policy-error"


def test_a_set_that_forbids_its_own_replacement_says_so() -> None:
    def locked(text: str, site: Site | LogBuilder = SITE) -> tuple[Refusal, ...]:
        return list_lockout_reasons(CedarPolicies(policy(PERMIT + text)), site)

    adopt, countersign = 'Action::"adopt-policy"', 'Action::"countersign"'
    by_anna = 'unless { principal == Principal::"anna" }'
    assert locked("") == ()
    assert locked(f'@id("one") forbid (principal, action == {adopt}, resource) {by_anna};') == ()
    alone = f'@id("one") forbid (principal, action in [{adopt}, {countersign}], resource) {by_anna};'
    assert forbids("one", "countersign", "ben") in locked(alone)
    assert locked(alone, LogBuilder(single=True)) == ()
    assert locked(f'@id("never") forbid (principal, action == {adopt}, resource);')
    assert locked(f'@id("never") forbid (principal, action == {countersign}, resource);')
    assert locked(f'@id("never") forbid (principal, action == {adopt}, resource);', LogBuilder(single=True))
    left = stage("initialized")
    left.revoke("ben")
    assert [one.code for one in locked("", left)] == ["administrators-too-few"]


NIGHT = 'context.now.toTime() > duration("18h")'
NEXT_YEAR = 'context.now > datetime("2027-01-01")'
FORBID = '@id("f") forbid (principal, action, resource) '
ADOPT = '@id("f") forbid (principal, action == Action::"adopt-policy", resource) '


@pytest.mark.parametrize(
    "text",
    [
        FORBID + f"when {{ {NEXT_YEAR} }};",
        FORBID + f"unless {{ !({NIGHT}) }};",
        ADOPT + f"when {{ {NEXT_YEAR} }};",
        ADOPT + f'unless {{ resource.digest == "{NO_DIGEST}" }};',
        ADOPT + f'unless {{ resource == Policy::"{NO_DIGEST}" }};',
        ADOPT + f'unless {{ resource in Policy::"{NO_DIGEST}" }};',
        ADOPT + 'when { [context].contains({now: datetime("2027-01-01"), single_administrator: false}) };',
        ADOPT + 'when { {"Value": context.now, "Record": 1}.Value > datetime("2027-01-01") };',
        ADOPT + 'when { {"Var": 1, ".": {"has": context["now"]}}["."]["has"] > datetime("2027-01-01") };',
        ADOPT + f"when {{ if context.single_administrator then false else {NEXT_YEAR} }};",
        f'@id("f") forbid (principal, action == Action::"countersign", resource) when {{ {NEXT_YEAR} }};',
        # Which cannot be evaluated from then on: nothing is allowed.
        f'@id("f") permit (principal, action, resource) when {{ !({NEXT_YEAR}) || 9223372036854775807 + 1 == 0 }};',
        # What it says first is evaluated first.
        '@id("f") forbid (principal, action == Action::"countersign", resource)'
        f' when {{ {NEXT_YEAR} && resource.action == "enrol" }};',
    ],
)
def test_a_set_that_can_forbid_its_own_replacement_later_says_so_today(text: str) -> None:
    reasons = list_lockout_reasons(CedarPolicies(policy(PERMIT + text)), SITE)
    assert ("policy-not-always-replaceable", "cedar-policy:f") in {(one.code, one.subject) for one in reasons}


@pytest.mark.parametrize("condition", [NEXT_YEAR, 'resource.digest != "x"'])
def test_a_set_that_permits_its_replacement_only_for_a_time_or_for_one_set_says_so(condition: str) -> None:
    others = '@id("a") permit (principal, action == Action::"countersign", resource);\n'
    text = f'@id("b") permit (principal, action == Action::"adopt-policy", resource) unless {{ {condition} }};'
    assert list_lockout_reasons(CedarPolicies(policy(others + text)), SITE)
    assert list_lockout_reasons(
        CedarPolicies(policy(f'{others}@id("b") permit (principal, action, resource == Policy::"{NO_DIGEST}");')), SITE
    )


@pytest.mark.parametrize(
    "text",
    [
        f'@id("f") forbid (principal, action == Action::"train", resource) when {{ {NIGHT} }};',
        f'@id("f") forbid (principal == Principal::"carl", action, resource) when {{ {NEXT_YEAR} }};',
        '@id("f") forbid (principal, action == Action::"countersign", resource)'
        f' when {{ resource.action == "enrol" && {NIGHT} }};',
        '@id("f") forbid (principal, action == Action::"countersign", resource)'
        f' when {{ resource.action == "grant" }} when {{ {NIGHT} }};',
        ADOPT + f"when {{ context.single_administrator && {NIGHT} }};",
        ADOPT + 'when { context.single_administrator } unless { principal.name == "anna" };',
        f'@id("f") forbid (principal, action, resource) when {{ resource is Run }} when {{ {NIGHT} }};',
        '@id("f") forbid (principal, action, resource == Policy::"%s");' % ("sha256:" + "1" * 64),
    ],
)
def test_a_set_that_forbids_other_things_for_a_time_can_be_replaced(text: str) -> None:
    assert list_lockout_reasons(CedarPolicies(policy(PERMIT + text)), SITE) == ()


@pytest.mark.parametrize("name", ["default", "strict-example"])
def test_the_sets_that_come_with_the_appliance_can_be_replaced(name: str) -> None:
    folder = FOLDER.parent / name
    assert list_lockout_reasons(CedarPolicies.for_adoption(policy((folder / "policies.cedar").read_text())), SITE) == ()


def test_the_page_says_of_its_examples_what_is_so() -> None:
    page = (FOLDER.parents[1] / "docs" / "guides" / "administrators.md").read_text()
    examples = page.partition("```cedar\n")[2].partition("```")[0].split("// ")[1:]
    assert [example.partition(":")[0] for example in examples] == ["Taken", "Taken", "Refused"]
    for example in examples:
        text = example.partition("\n")[2]
        assert bool(
            list_lockout_reasons(CedarPolicies.for_adoption(policy(PERMIT + text)), SITE)
        ) == example.startswith("Refused")


# Only tightening.

LOOSEST = st.lists(
    st.sampled_from(
        [
            PERMIT,
            '@id("b") permit (principal in Role::"operator", action == Action::"review", resource);\n',
            '@id("c") permit (principal == Principal::"olga", action, resource);\n',
            '@id("d") permit (principal, action == Action::"activate", resource) when { context.unit == "sales" };\n',
            '@id("e") forbid (principal, action == Action::"cancel", resource);\n',
        ]
    ),
    min_size=1,
    unique=True,
).filter(lambda texts: any("permit" in text for text in texts))


def forbidden_orders(site: LogBuilder) -> list[Order]:
    """Each breaks an invariant."""
    return [
        site.review_order("olga", "privacy"),
        site.review_order("rita", "model-risk"),
        site.release_order(Activate, "olga"),
        site.release_order(Activate, unit="sales"),
        site.train_order("rita"),
        site.order(RevokePrincipal, "olga", principal="rita"),
        site.enrolment("eve", ("administrator", "operator"))[0],
        site.order(Grant, "anna", principal="audrey", role="operator"),
        site.order(RevokeAdapter, "olga", **site.on_adapter()),
    ]


@pytest.mark.thorough
@settings(max_examples=30, deadline=None)
@given(texts=LOOSEST)
def test_no_policy_loosens_an_invariant(texts: list[str]) -> None:
    """Whatever a set permits, the reasons against are the invariants' and its own, never fewer."""
    site = stage("approved")
    site.adopt(policy("".join(texts)))
    decided = CedarPolicies(policy("".join(texts)))
    for order in forbidden_orders(site):
        signer = site.state.principals.get(order.signer)
        assert signer is not None
        against = list_refusal_reasons(site.state, order, site.now)
        both = [*against, *decided.decide(signer, order, site.state, site.now)]
        assert against and set(against) <= set(both)


def test_the_rules_do_not_know_cedar_so_that_no_set_moves_them() -> None:
    """The same refusal under a set that permits everything to everyone, entry by entry."""
    site = stage("sealed")
    site.adopt(policy(PERMIT))
    with refuses(site, Denied, "olga is operator. This action needs reviewer:privacy."):
        site.review("olga", "privacy")
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 0."):
        site.activate()


@pytest.mark.thorough
def test_a_decision_leaves_the_state_as_it_was() -> None:
    before = list(SITE.state.projections())
    for order in ORDERED.values():
        decide(SITE, order, PERMIT)
    assert list(SITE.state.projections()) == before


# Replayed by whoever verifies.


def cedar_of(found: PolicySet) -> Decide:
    return CedarPolicies(found).decide


def verify(site: LogBuilder, replay: CedarPolicy | None = cedar_of) -> Any:
    return verify_log(
        site.entries, site.documents.get, site.disclosures, site.checkpoint(), site.trust,
        now=site.now, replay=replay,
    )  # fmt: skip


def test_a_log_replays_its_sites_policies() -> None:
    site = LogBuilder(policy=policy(PERMIT))
    site.enrol("olga", "operator")
    report = verify(site)
    assert (report.verdict, report.cedar_policies, report.counts.decisions) == ("verified", "replayed", 2)


def test_an_entry_that_the_adopted_set_forbids_is_found() -> None:
    """A service that did not ask its own policies."""
    strict = '@id("no-more-runs") forbid (principal, action == Action::"train", resource);'
    site = LogBuilder(policy=policy(PERMIT))
    for name, roles in {"ines": ("operator",), "olga": ("operator",)}.items():
        site.enrol(name, *roles)
    site.import_base()
    site.import_dataset()
    site.adopt(policy(PERMIT + strict))
    run = site.request_run()
    report = verify(site)
    (finding,) = report.findings
    assert finding.index == site.state.runs.get(run).index  # type: ignore[union-attr]
    assert str(forbids("no-more-runs", "train", "olga")) in finding.message


def test_an_countersigned_order_that_the_set_adopted_meanwhile_forbids_is_found() -> None:
    """The service asked about the countersignature alone; the entry names the set whose policies it says allowed it."""
    site = LogBuilder(policy=policy(PERMIT))
    order, documents = site.enrolment("mallory", ("operator",))
    pending = site.pend(order, documents)
    by_anna = '(principal == Principal::"anna", action == Action::"enrol", resource)'
    site.adopt(policy(f'{PERMIT}@id("no-mallory") forbid {by_anna};'))
    entry = site.countersign(PrincipalEnrolled(policy=site.in_force), order, pending, documents)
    report = verify(site)
    assert (report.verdict, report.counts.decisions) == ("failed", 3)
    (finding,) = report.findings
    assert (finding.index, finding.rule) == (entry.index, "cedar-policy")
    assert finding.message.endswith(str(forbids("no-mallory", "enrol", "anna")))
    without = verify(site, None)
    assert (without.verdict, without.cedar_policies) == ("verified", "not replayed")


def test_a_log_whose_sets_an_earlier_release_adopted_verifies() -> None:
    """In force was a set without the actions that came later; what was ordered then it decides as it did."""
    older, count = re.subn(r'action "(revoke-tokens|export-adapter)" appliesTo {(?s:.*?)\n};', "", SCHEMA)
    assert count == 2
    site = LogBuilder(policy=policy(PERMIT, older))
    site.enrol("legal", "unit")
    site.adopt(policy(PERMIT))
    site.revoke_tokens(issued_before=site.now)
    report = verify(site)
    assert (report.verdict, report.findings, report.counts.decisions) == ("verified", (), 5)


def test_the_moment_of_a_decision_is_the_entrys() -> None:
    signer = SITE.state.principals.get("olga")
    assert signer is not None
    request = make_request(signer, ORDERED["train"], SITE.state, "2030-01-01T00:00:00.000Z")
    assert request.context.now == "2030-01-01T00:00:00.000Z"
