"""The site's own policies: what they can see, how they refuse, and that they can only tighten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.access.cedar import SitePolicies
from appliance.access.request import Moment, Thing, request_of
from appliance.access.samples import (
    ADAPTER,
    BASE,
    DATASET,
    HOLD,
    IMPORT,
    LOG_KEY,
    NEWCOMER,
    PENDING,
    POLICY,
    RULES,
    RUN,
    SAMPLES,
    TEXT,
    VALIDATION_SET,
)
from appliance.domain.audit.log_replay import Decide, SitePolicy
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.names import NO_DIGEST, add_seconds
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.data.bases import RevokeBase
from appliance.domain.data.datasets import RevokeDataset
from appliance.domain.data.imports import CancelImport, ImportBase
from appliance.domain.data.validation_sets import RevokeValidationSet
from appliance.domain.governance.clock import ResetClock
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.governance.keys import ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.log_keys import RotateLogKey
from appliance.domain.governance.people import Grant, PrincipalEnrolled, RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.rules import RaiseRules
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.emergencies import BreakGlass
from appliance.domain.retention.holds import LiftHold, PlaceHold
from appliance.domain.retention.texts import Erase
from appliance.domain.rulebook.registry import VERBS, reasons_against
from appliance.domain.runs.authorisation import RefuseRun
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.runs.replays import ReplayRun
from appliance.domain.runs.resumption import Resume
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import BadInput, Denied
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import ORIGIN, LogBuilder, order_of, policy_digest, stage
from tests.kit.refusals import refuses

FOLDER = Path(__file__).resolve().parents[2] / "policies" / "default"
SCHEMA = (FOLDER / "schema.cedarschema").read_text()
PERMIT = '@id("all") permit (principal, action, resource);\n'


def policy(cedar: str, schema: str = SCHEMA, **parameters: Any) -> PolicySet:
    return PolicySet(name="site", parameters=Parameters(**parameters), cedar=cedar, cedar_schema=schema)


def decide(site: LogBuilder, order: Order, cedar: str) -> tuple[str, ...]:
    signer = site.state.principals.get(order.signer)
    assert signer is not None
    return SitePolicies(policy(cedar)).decide(signer, order, site.state, site.now)


def orders(site: LogBuilder) -> dict[str, Order]:
    """One order of each verb, about things that this site knows."""
    pending = site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))
    run = site.request_run()
    wanted = site.state.imports.get(order_of(site.request_import()))
    assert wanted is not None
    site.enroll("dana", "reviewer:legal-risk")
    site.import_set()
    site.request_release(unit="sales")
    enroll, _ = site.enrolment("newcomer", ("operator", "release-owner:legal"))
    several, _ = site.enrolments({"mia": ("operator",), "max": ("release-owner:legal",)})
    made: list[Order] = [
        enroll,
        several,
        site.order(Grant, "anna", principal="rita", role="reviewer:safety"),
        site.order(RevokePrincipal, "anna", principal="rita"),
        site.order(AdoptPolicy, "anna", policy=policy_digest(policy(PERMIT))),
        site.order(Endorse, "ben", order=pending.pae_digest),
        site.order(ImportBase, "ines", base="other", format="gguf", source=site.base_digest, licence="Apache-2.0"),
        site.dataset_order(),
        site.set_order(),
        site.order(RevokeValidationSet, "vera", validation_set="exam", version=1, digest=set_digest(site)),
        site.train_order(),
        site.authorisation_order(run),
        site.authorisation_order(run, model=RefuseRun),
        site.order(Cancel, "olga", run=run),
        site.order(CancelImport, "ines", order=wanted.order),
        site.order(Resume, "olga", run=run),
        site.order(ReplayRun, "audrey", run=run, from_step=0, to_step=2),
        site.request_order(),
        site.withdrawal_order(unit="sales"),
        site.finding_order(),
        site.closing_order(site.find(blocks=False).index),
        site.samples_order(),
        site.try_order(),
        site.delegation_order("dana"),
        site.release_order(BreakGlass, until=add_seconds(site.now, 600)),
        site.review_order("rita", "privacy"),
        site.release_order(Activate),
        site.release_order(RollBack),
        site.order(RevokeAdapter, "rita", **site.on_adapter()),
        site.export_order(),
        site.order(RevokeBase, "rita", base="smollm2", digest=site.base_digest),
        site.order(RevokeDataset, "rita", dataset="clauses", version=1, digest=site.base_digest),
        site.new_key(ReplaceKey, "anna", "rita")[0],
        site.passkey_order("rita", new_passkey())[0],
        site.new_key(RotateKey, "rita", "rita", old_until=site.now)[0],
        site.order(RevokeKey, "anna", principal="rita", keyid=site.keys["rita"].keyid, since=None),
        site.application_order()[0],
        site.order(RevokeTokens, "legal", unit="legal", token=site.base_digest, issued_before=None, application=None),
        site.order(RaiseRules, "anna", rules=2),
        site.order(ResetClock, "anna", last=site.state.last_time),
        site.order(RotateLogKey, "anna", log_key=vkey_of(ORIGIN, generate_ed25519()), old_until=site.now),
        site.order(Erase, "anna", commitment=enroll_of(site, "olga")),
        site.order(PlaceHold, "anna", subject="principal:olga"),
        site.order(LiftHold, "anna", subject="principal:olga"),
    ]
    return {order.verb: order for order in made}


def set_digest(site: LogBuilder) -> str:
    found = site.state.validation_sets.get("exam@1")
    assert found is not None
    return found.digest


def enroll_of(site: LogBuilder, name: str) -> str:
    person = site.state.principals.get(name)
    assert person is not None and person.printed_name is not None
    return person.printed_name


SITE = stage("released")
ORDERED = orders(SITE)


def test_every_verb_has_an_order_here_and_a_sample() -> None:
    assert set(ORDERED) == set(SAMPLES) | {"enroll-several"} == set(VERBS)


def test_an_order_that_enrols_several_is_asked_of_each_as_an_enrolment() -> None:
    order = ORDERED["enroll-several"]
    assert decide(SITE, order, PERMIT) == ()
    no_owners = (
        '@id("no-owners") forbid (principal, action == Action::"enroll", resource) when { context.roles.contains'
    )
    assert decide(SITE, order, f'{PERMIT}{no_owners}("release-owner:legal") }};') == (
        "site policy no-owners: forbids enroll by anna",
    )
    assert decide(SITE, order, f'{PERMIT}{no_owners}("auditor") }};') == ()


@pytest.mark.family(keep=10)
@pytest.mark.parametrize("verb", sorted(SAMPLES))
def test_every_verb_is_decided(verb: str) -> None:
    order = ORDERED[verb]
    assert decide(SITE, order, PERMIT) == ()
    forbid = f'{PERMIT}@id("no-{verb}") forbid (principal, action == Action::"{verb}", resource);'
    assert decide(SITE, order, forbid) == (f"site policy no-{verb}: forbids {verb} by {order.signer}",)
    others = [other for name, other in ORDERED.items() if name.removesuffix("-several") != verb]
    assert all(decide(SITE, other, forbid) == () for other in others)


def shape(value: Any) -> Any:
    """Types without values."""
    if isinstance(value, Thing):
        return value.type, {key: shape(item) for key, item in value.attributes.items()}
    return type(value).__name__


@pytest.mark.family(keep=12)
@pytest.mark.parametrize("verb", sorted(SAMPLES))
def test_the_sample_of_a_verb_has_the_shape_of_the_real_request(verb: str) -> None:
    """Otherwise a schema would be tried against something that is never sent."""
    order, sample = ORDERED[verb], SAMPLES[verb]
    signer = SITE.state.principals.get(order.signer)
    assert signer is not None
    real = request_of(signer, order, SITE.state, SITE.now)
    assert shape(real.resource) == shape(sample.resource)
    assert {key: shape(value) for key, value in real.context.items()} == {
        key: shape(value) for key, value in sample.context.items()
    }


# What a policy can see.

SEEN = [
    ("train", 'resource.dataset.classification == "internal"'),
    ("train", 'resource.dataset.licence == "CC-BY-4.0" && resource.base.licence == "Apache-2.0"'),
    ("train", 'resource.dataset.imported_by == Principal::"ines"'),
    ("train", 'resource.dataset.imported_by in Role::"operator"'),
    ("train", 'resource.ordered_by == principal && resource.adapter == "clauses"'),
    ("train", 'context.method == "qlora" && context.rank == 8 && context.purpose == "release"'),
    ("train", 'principal in Role::"operator" && principal.name == "olga"'),
    ("train", '!(context has tier)'),
    ("authorise-run", 'principal in Role::"reviewer" && resource.ordered_by == Principal::"olga"'),
    ("refuse-run", 'resource.dataset.imported_by != principal'),
    ("cancel", 'resource.status == "queued" && resource.base.name == "smollm2"'),
    ("resume", 'resource.ordered_by == principal && resource.status == "queued"'),
    ("replay", 'principal in Role::"auditor" && context.from_step == 0 && context.to_step == 2'),
    ("review", 'principal in Role::"reviewer" && principal in Role::"reviewer:privacy"'),
    ("review", 'context.unit == "legal" && context.field == "privacy" && context.decision == "approve"'),
    ("review", 'context has valid_until && context.valid_until.durationSince(context.now) == duration("1d")'),
    ("review", 'resource.dataset.classification == "internal" && resource.ordered_by == Principal::"olga"'),
    ("review", "!(context has on_behalf_of)"),
    ("request-release", 'context.exposure == "internal" && context.purpose == "assist" && context.tier == "low"'),
    ("withdraw-request", 'context.unit == "sales"'),
    ("add-finding", 'context.severity == "high" && context.blocks && context.owner == "olga"'),
    ("add-finding", "!context.accepts_verdict"),
    ("close-finding", 'context.finder == "rita" && context.field == "privacy" && context.kind == "issue"'),
    ("view-samples", 'context.count == 5 && resource.name == "clauses"'),
    ("try-adapter", 'context.prompts == 1 && resource.name == "clauses"'),
    ("delegate", 'resource in Role::"reviewer:legal-risk" && context has until && context.field == "privacy"'),
    ("break-glass", 'context.task == "labels" && context.until.durationSince(context.now) == duration("10m")'),
    ("activate", 'context.unit == "legal" && context.task == "labels" && resource == Adapter::"clauses@1"'),
    ("activate", 'principal in Role::"release-owner" && principal in Role::"release-owner:legal"'),
    ("roll-back", "resource.version == 1"),
    ("enroll", 'resource.name == "newcomer" && context.roles.contains("operator")'),
    ("enroll", 'context.roles.contains("release-owner:legal") && resource.roles.isEmpty()'),
    ("grant", 'resource in Role::"reviewer" && context.role == "reviewer:safety"'),
    ("revoke-principal", 'resource == Principal::"rita"'),
    ("endorse", 'resource.verb == "grant" && resource.signer == Principal::"anna"'),
    ("endorse", "resource.signer != principal && !context.single_administrator"),
    ("import-base", 'resource.licence == "Apache-2.0" && context.format == "gguf"'),
    ("import-dataset", 'resource.classification == "internal" && resource.version == 2 && context.format == "csv"'),
    ("revoke-adapter", 'resource.name == "clauses"'),
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
        SitePolicies(policy(PERMIT + unasked))


@pytest.mark.family(keep=12)
@pytest.mark.parametrize(("verb", "condition"), SEEN)
def test_a_policy_sees_what_the_ledger_knows(verb: str, condition: str) -> None:
    text = f'{PERMIT}@id("when") forbid (principal, action == Action::"{verb}", resource) when {{ {condition} }};'
    assert decide(SITE, ORDERED[verb], text) == (f"site policy when: forbids {verb} by {ORDERED[verb].signer}",)
    unless = text.replace("when {", "unless {")
    assert decide(SITE, ORDERED[verb], unless) == (), "the condition is false where it should be true"


def test_every_policy_that_forbids_is_named_whatever_its_place_in_the_file() -> None:
    text = (
        '@id("third") forbid (principal, action == Action::"cancel", resource);\n'
        '@id("second") forbid (principal, action == Action::"train", resource);\n'
        f"{PERMIT}"
        '@id("first") forbid (principal, action, resource) when { context.now > datetime("2000-01-01") };\n'
    )
    assert decide(SITE, ORDERED["train"], text) == (
        "site policy first: forbids train by olga",
        "site policy second: forbids train by olga",
    )


# Failing closed.


def test_what_no_policy_permits_is_refused() -> None:
    text = '@id("some") permit (principal, action == Action::"cancel", resource);'
    assert decide(SITE, ORDERED["train"], text) == (
        "site policies site: expected a policy that permits train by olga, got none",
    )


def test_a_policy_that_cannot_be_evaluated_is_a_reason_against() -> None:
    """Cedar alone would skip the forbid that fails, and allow."""
    overflow = "context.rank * 9223372036854775807 > 0"
    with pytest.raises(BadInput, match="expected it to take a sample request"):
        SitePolicies.for_adoption(policy(PERMIT + forbid_train(overflow)))
    (reason,) = decide(SITE, ORDERED["train"], PERMIT + forbid_train(f"context.rank == 8 && {overflow}"))
    assert reason.startswith("site policies site: expected a decision on train by olga, got:")


def forbid_train(condition: str) -> str:
    return f'@id("no") forbid (principal, action == Action::"train", resource) when {{ {condition} }};'


def test_an_order_about_what_the_ledger_does_not_know_is_refused() -> None:
    unknown = SITE.order(Cancel, "olga", run="r-999999")
    (reason,) = decide(SITE, unknown, PERMIT)
    assert reason == "site policies site, cancel by olga: run: expected a known one, got r-999999"


@pytest.mark.parametrize(
    ("cedar", "schema", "words"),
    [
        ("permit (principal, action", SCHEMA, "policies: expected Cedar policies, got:"),
        (PERMIT, "entity X = {", "schema: expected a Cedar schema, got:"),
        ("permit (principal, action, resource);", SCHEMA, "policy0: expected an @id"),
        (PERMIT + '@id("Not An Id") forbid (principal, action, resource);', SCHEMA, "policy1: expected an @id"),
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
        (PERMIT, SCHEMA.replace("  verb: String,", "  verb: String,\n  more: String,"), "action endorse: expected"),
    ],
)  # fmt: skip
def test_a_policy_set_that_could_not_decide_is_refused_before_it_is_adopted(
    cedar: str, schema: str, words: str
) -> None:
    with pytest.raises(BadInput, match="policy set site") as caught:
        SitePolicies.for_adoption(policy(cedar, schema))
    assert words in caught.value.message


def locked_out(policies: SitePolicies, site: LogBuilder) -> tuple[str, ...]:
    people = [person for person in site.state.principals.values() if person.has("administrator")]
    return policies.locked_out(people, site.state.site.single_administrator, site.now)


FIRST = """
entity Role in [Role];
entity Principal in [Role] = { name: String, roles: Set<String> };
entity Policy = { digest: String };
entity PendingOrder = { verb: String, signer: Principal };
type Standing = { now: datetime, single_administrator: Bool };
action "adopt-policy" appliesTo { principal: [Principal], resource: [Policy], context: Standing };
action "endorse" appliesTo { principal: [Principal], resource: [PendingOrder], context: Standing };
"""
"""What the schema of every set that was ever adopted has. No build may change what it sends of this: a set in force
could not be replaced then."""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_schema_of_any_earlier_release_takes_the_adoption_of_another_set_and_refuses_what_it_lacks(verb: str) -> None:
    site = SitePolicies(policy(PERMIT, FIRST))
    assert locked_out(site, SITE) == ()
    signer = SITE.state.principals.get(ORDERED[verb].signer)
    assert signer is not None
    asked = verb.removesuffix("-several")
    lacks = f"site policies site, {asked} by {signer.name}: expected a schema with the action {asked}, got none: "
    expected = () if verb in ("adopt-policy", "endorse") else (f"{lacks}adopt a set whose schema has it",)
    assert site.decide(signer, ORDERED[verb], SITE.state, SITE.now) == expected


# What a set's own schema does not declare is left out.

DECLARED = [
    (thing.type, name)
    for thing in (
        BASE,
        DATASET,
        VALIDATION_SET,
        RUN,
        ADAPTER,
        IMPORT,
        PENDING,
        TEXT,
        HOLD,
        LOG_KEY,
        RULES,
        POLICY,
        NEWCOMER,
    )
    for name in thing.attributes
]


def undeclared(kind: str, name: str) -> str:
    schema, count = re.subn(rf"(entity {kind}\b[^{{;]*{{[^}}]*?\n)  {name}: [^\n]*\n", r"\1", SCHEMA)
    assert count == 1
    return schema


@pytest.mark.family(keep=10)
@pytest.mark.parametrize(("kind", "name"), DECLARED)
def test_an_attribute_that_the_schema_does_not_declare_is_left_out(kind: str, name: str) -> None:
    earlier = policy(PERMIT, undeclared(kind, name))
    site = SitePolicies(earlier)
    assert [verb for verb, request in SAMPLES.items() if site.reasons_against(request)] == []
    with pytest.raises(BadInput, match="expected it to take a sample request"):
        SitePolicies.for_adoption(earlier)


def test_what_only_an_undeclared_attribute_names_need_not_be_declared() -> None:
    """Of a build that knew no datasets."""
    schema = re.sub(r'(?s)(entity Dataset = {|action "(import|revoke)-dataset" appliesTo {).*?\n};', "", SCHEMA)
    schema = schema.replace("  dataset: Dataset,\n", "")
    site = SitePolicies(policy(PERMIT + forbid_train("resource.base.licence == context.method || true"), schema))
    assert site.reasons_against(SAMPLES["train"]) == ("site policy no: forbids train by olga",)
    assert site.reasons_against(SAMPLES["activate"]) == ()
    refused = [verb for verb, request in SAMPLES.items() if site.reasons_against(request)]
    assert refused == ["import-dataset", "train", "revoke-dataset"]


def test_what_the_schema_does_not_declare_of_the_context_is_left_out_and_the_rest_is_seen() -> None:
    schema = SCHEMA.replace("    rank: Long,\n", "").replace("epochs: Long,", "epochs?: Long,")
    when = "context has epochs && context.epochs == 3"
    assert SitePolicies(policy(PERMIT, schema)).reasons_against(SAMPLES["train"]) == ()
    site = SitePolicies(policy(PERMIT + forbid_train(when), schema))
    assert site.reasons_against(SAMPLES["train"]) == ("site policy no: forbids train by olga",)


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA.replace("rank: Long,", "rank: String,"),
        SCHEMA.replace("rank: Long,", "rank: Long,\n    more: Long,"),
        SCHEMA.replace("  dataset: Dataset,\n", "  dataset: Base,\n"),
        SCHEMA.replace("  adapter: String, ", "  adapter: Set<String>, "),
        SCHEMA.replace("  resource: [Run],\n", "  resource: [Adapter],\n"),
    ],
)
def test_what_the_schema_declares_otherwise_is_still_a_reason_against(schema: str) -> None:
    assert schema != SCHEMA
    (reason,) = SitePolicies(policy(PERMIT, schema)).reasons_against(SAMPLES["train"])
    assert reason.startswith("site policies site: expected a decision on train by olga, got:")


def test_a_set_that_forbids_its_own_replacement_says_so() -> None:
    def locked(text: str, site: LogBuilder = SITE) -> tuple[str, ...]:
        return locked_out(SitePolicies(policy(PERMIT + text)), site)

    adopt, endorse = 'Action::"adopt-policy"', 'Action::"endorse"'
    by_anna = 'unless { principal == Principal::"anna" }'
    assert locked("") == ()
    assert locked(f'@id("one") forbid (principal, action == {adopt}, resource) {by_anna};') == ()
    alone = f'@id("one") forbid (principal, action in [{adopt}, {endorse}], resource) {by_anna};'
    assert "site policy one: forbids endorse by ben" in locked(alone)
    assert locked(alone, LogBuilder(single=True)) == ()
    assert locked(f'@id("never") forbid (principal, action == {adopt}, resource);')
    assert locked(f'@id("never") forbid (principal, action == {endorse}, resource);')
    assert locked(f'@id("never") forbid (principal, action == {adopt}, resource);', LogBuilder(single=True))
    left = stage("initialized")
    left.revoke("ben")
    assert locked("", left) == ("administrators: expected enough to adopt a policy set, got too few",)


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
        f'@id("f") forbid (principal, action == Action::"endorse", resource) when {{ {NEXT_YEAR} }};',
        # Which cannot be evaluated from then on: nothing is allowed.
        f'@id("f") permit (principal, action, resource) when {{ !({NEXT_YEAR}) || 9223372036854775807 + 1 == 0 }};',
        # What it says first is evaluated first.
        '@id("f") forbid (principal, action == Action::"endorse", resource)'
        f' when {{ {NEXT_YEAR} && resource.verb == "enroll" }};',
    ],
)
def test_a_set_that_can_forbid_its_own_replacement_later_says_so_today(text: str) -> None:
    reasons = locked_out(SitePolicies(policy(PERMIT + text)), SITE)
    assert any(
        re.match("site policy f: forbids (adopt-policy|endorse) by .*at some time, or for some set", r) for r in reasons
    )


@pytest.mark.parametrize("condition", [NEXT_YEAR, 'resource.digest != "x"'])
def test_a_set_that_permits_its_replacement_only_for_a_time_or_for_one_set_says_so(condition: str) -> None:
    others = '@id("a") permit (principal, action == Action::"endorse", resource);'
    text = f'@id("b") permit (principal, action == Action::"adopt-policy", resource) unless {{ {condition} }};'
    assert locked_out(SitePolicies(policy(others + text)), SITE)
    assert locked_out(
        SitePolicies(policy(f'{others}@id("b") permit (principal, action, resource == Policy::"{NO_DIGEST}");')), SITE
    )


@pytest.mark.parametrize(
    "text",
    [
        f'@id("f") forbid (principal, action == Action::"train", resource) when {{ {NIGHT} }};',
        f'@id("f") forbid (principal == Principal::"carl", action, resource) when {{ {NEXT_YEAR} }};',
        '@id("f") forbid (principal, action == Action::"endorse", resource)'
        f' when {{ resource.verb == "enroll" && {NIGHT} }};',
        '@id("f") forbid (principal, action == Action::"endorse", resource)'
        f' when {{ resource.verb == "grant" }} when {{ {NIGHT} }};',
        ADOPT + f"when {{ context.single_administrator && {NIGHT} }};",
        ADOPT + 'when { context.single_administrator } unless { principal.name == "anna" };',
        f'@id("f") forbid (principal, action, resource) when {{ resource is Run }} when {{ {NIGHT} }};',
        '@id("f") forbid (principal, action, resource == Policy::"%s");' % ("sha256:" + "1" * 64),
    ],
)
def test_a_set_that_forbids_other_things_for_a_time_can_be_replaced(text: str) -> None:
    assert locked_out(SitePolicies(policy(PERMIT + text)), SITE) == ()


@pytest.mark.parametrize("name", ["default", "strict-example"])
def test_the_sets_that_come_with_the_appliance_can_be_replaced(name: str) -> None:
    folder = FOLDER.parent / name
    texts = [(folder / file).read_text() for file in ("policies.cedar", "schema.cedarschema")]
    assert locked_out(SitePolicies.for_adoption(policy(*texts)), SITE) == ()


def test_the_page_says_of_its_examples_what_is_so() -> None:
    page = (FOLDER.parents[1] / "docs" / "administrators.md").read_text()
    examples = page.partition("```cedar\n")[2].partition("```")[0].split("// ")[1:]
    assert [example.partition(":")[0] for example in examples] == ["Taken", "Taken", "Refused"]
    for example in examples:
        text = example.partition("\n")[2]
        assert bool(locked_out(SitePolicies.for_adoption(policy(PERMIT + text)), SITE)) == example.startswith("Refused")


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


@settings(max_examples=30, deadline=None)
@given(texts=LOOSEST)
def test_no_policy_loosens_an_invariant(texts: list[str]) -> None:
    """Whatever a set permits, the reasons against are the invariants' and its own, never fewer."""
    site = stage("approved")
    site.adopt(policy("".join(texts)))
    decided = SitePolicies(policy("".join(texts)))
    for order in forbidden_orders(site):
        signer = site.state.principals.get(order.signer)
        assert signer is not None
        against = reasons_against(site.state, order, site.now)
        both = [*against, *decided.decide(signer, order, site.state, site.now)]
        assert against and set(against) <= set(both)


def test_the_rules_do_not_know_cedar_so_that_no_set_moves_them() -> None:
    """The same refusal under a set that permits everything to everyone, entry by entry."""
    site = stage("sealed")
    site.adopt(policy(PERMIT))
    with refuses(site, Denied, "role: expected olga to be reviewer:privacy", "did not order the run"):
        site.review("olga", "privacy")
    with refuses(site, Denied, "quorum: expected 2 standing approvals"):
        site.activate()


def test_a_decision_leaves_the_state_as_it_was() -> None:
    before = list(SITE.state.projections())
    for order in ORDERED.values():
        decide(SITE, order, PERMIT)
    assert list(SITE.state.projections()) == before


# Replayed by whoever verifies.


def cedar_of(found: PolicySet) -> Decide:
    return SitePolicies(found).decide


def verify(site: LogBuilder, replay: SitePolicy | None = cedar_of) -> Any:
    return verify_log(
        site.entries, site.documents.get, site.disclosures, site.checkpoint(), site.trust,
        now=site.now, replay=replay,
    )  # fmt: skip


def test_a_log_replays_its_sites_policies() -> None:
    site = LogBuilder(policy=policy(PERMIT))
    site.enroll("olga", "operator")
    report = verify(site)
    assert (report.verdict, report.site_policies, report.counts.decisions) == ("verified", "replayed", 2)


def test_an_entry_that_the_adopted_set_forbids_is_found() -> None:
    """A service that did not ask its own policies."""
    strict = '@id("no-more-runs") forbid (principal, action == Action::"train", resource);'
    site = LogBuilder(policy=policy(PERMIT))
    for name, roles in {"ines": ("operator",), "olga": ("operator",)}.items():
        site.enroll(name, *roles)
    site.import_base()
    site.import_dataset()
    site.adopt(policy(PERMIT + strict))
    run = site.request_run()
    report = verify(site)
    (finding,) = report.findings
    assert finding.index == site.state.runs.get(run).index  # type: ignore[union-attr]
    assert "site policy no-more-runs: forbids train by olga" in finding.message


def test_an_endorsed_order_that_the_set_adopted_meanwhile_forbids_is_found() -> None:
    """A service that asked about the endorsement alone: the entry names the set whose policies it says allowed it."""
    site = LogBuilder(policy=policy(PERMIT))
    order, documents = site.enrolment("mallory", ("operator",))
    pending = site.pend(order, documents)
    by_anna = '(principal == Principal::"anna", action == Action::"enroll", resource)'
    site.adopt(policy(f'{PERMIT}@id("no-mallory") forbid {by_anna};'))
    entry = site.endorse(PrincipalEnrolled(policy=site.in_force), order, pending, documents)
    report = verify(site)
    assert (report.verdict, report.counts.decisions) == ("failed", 3)
    (finding,) = report.findings
    assert (finding.index, finding.rule) == (entry.index, "site-policy")
    assert finding.message.endswith("site policy no-mallory: forbids enroll by anna")
    without = verify(site, None)
    assert (without.verdict, without.site_policies) == ("verified", "not replayed")


def test_a_log_whose_sets_an_earlier_release_adopted_verifies() -> None:
    """In force was a set without the verbs that came later; what was ordered then it decides as it did."""
    older = re.sub(r'action "(revoke-tokens|export-adapter)" appliesTo {[^}]*};', "", SCHEMA)
    site = LogBuilder(policy=policy(PERMIT, older))
    site.enroll("legal", "unit")
    site.adopt(policy(PERMIT))
    site.revoke_tokens(issued_before=site.now)
    report = verify(site)
    assert (report.verdict, report.findings, report.counts.decisions) == ("verified", (), 5)


def test_the_moment_of_a_decision_is_the_entrys() -> None:
    signer = SITE.state.principals.get("olga")
    assert signer is not None
    request = request_of(signer, ORDERED["train"], SITE.state, "2030-01-01T00:00:00.000Z")
    assert request.context["now"] == Moment("2030-01-01T00:00:00.000Z")
