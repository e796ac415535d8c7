"""The verifier without one of its rules: for each rule there is a log that only this rule keeps from being verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.domain import retention
from appliance.domain.actions import apply, registry
from appliance.domain.actions import apply as rules
from appliance.domain.actions.registry import EVENTS
from appliance.domain.audit.report import Findings, Report
from appliance.domain.audit.verify import Audit
from appliance.domain.core import signatures
from appliance.domain.core.action import NEWEST_RULES, Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.names import NO_DIGEST, add_seconds, encode_value
from appliance.domain.core.records.data import BoundSet
from appliance.domain.core.records.people import Key
from appliance.domain.core.state import DigestTable, Table
from appliance.domain.data.imports import ImportRequested
from appliance.domain.evaluation import rules as evaluation_rules
from appliance.domain.evaluation.items import encode_items
from appliance.domain.evaluation.verdict import Verdict, parse_verdict
from appliance.domain.governance import people
from appliance.domain.governance.people import Grant, PrincipalEnrolled, RoleGranted
from appliance.domain.governance.service import Heartbeat
from appliance.domain.releases import activations, adapters, approval, reviews
from appliance.domain.releases import activations as emergencies
from appliance.domain.releases import requests as requests_for_release
from appliance.domain.releases import requests as tiers
from appliance.domain.releases import verdicts as blocking
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.retention import Erase
from appliance.domain.runs import training
from appliance.domain.serving import requests, slots
from appliance.errors import ApplianceError
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.signatures.dsse import Envelope, Signature, encode_envelope, encode_statement, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner, generate_ed25519
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import ORIGIN, START, LogBuilder, manifest, policy_set, stage
from tests.domain.audit.test_verify import reforged, signed_over, verify
from tests.domain.evaluation.test_rules import ALIKE, GATES, change, change_evaluated, gates_file, one_gate
from tests.domain.evaluation.test_sets import CLEAN, ON_EXAM
from tests.kit.evaluated_release import approve, conditions
from tests.properties.breaches import (
    ACTIONS,
    NOTHING,
    TYPES,
    WITHOUT_A_RULE,
    WITNESS,
    WITNESS_NAME,
    Breach,
    activated_by_an_approver,
    approved_by_the_activator,
    declared_by_an_approver,
    loaded_after_policy_parted_them,
    made,
    policy_with_a_witness,
)

RULES = registry.RULE_SETS[NEWEST_RULES].rules

for name in ("initialized", "staffed", "imported", "trained", "sealed", "approved", "released", "serving"):
    stage(name)  # built once, by all the rules


def unchecked(rule: Callable[[Case], Changes]) -> Callable[[Case], Changes]:
    """Return the rule without its requirements. If it finds nothing to change, it changes nothing."""

    def run(case: Case) -> Changes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Case, "require", lambda *_: None)
            try:
                return rule(case)
            except (ApplianceError, AttributeError, LookupError):
                return []

    return run


def without_order_checks(kind: str) -> Callable[[Case, Ordered], tuple[Case, Changes]]:
    """How an entry's order is taken, without what the entries of this one type are held to there."""
    whole = rules._take_order

    def take(case: Case, body: Ordered) -> tuple[Case, Changes]:
        if case.entry.type != kind:
            return whole(case, body)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Case, "require", lambda *_: None)
            patch.setattr(rules, "_check_allowed", nothing)
            patch.setattr(rules, "list_events", lambda _: tuple(EVENTS.values()))
            return whole(case, body)

    return take


def verdicts(take_out: Callable[[pytest.MonkeyPatch], Any], breach: Breach) -> list[str]:
    """Of the breach's log, with the rule and without it."""
    with pytest.MonkeyPatch.context() as patch:
        take_out(patch)
        site = made(breach)
        without: Report = verify(site)
    whole = verify(site)
    return [whole.verdict, *(finding.message for finding in without.findings), without.verdict]


def test_every_type_is_tried_or_has_no_rule() -> None:
    assert set(TYPES) | WITHOUT_A_RULE | {"appliance.initialized"} == set(RULES)
    assert set(ACTIONS) == {row.order for row in registry.ACTIONS.values()}


@pytest.mark.family(keep=16)
@pytest.mark.parametrize("kind", TYPES)
def test_the_rule_of_a_type_is_needed(kind: str) -> None:
    def take_out(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(RULES, kind, unchecked(RULES[kind]))
        patch.setattr(rules, "_take_order", without_order_checks(kind))

    assert verdicts(take_out, TYPES[kind]) == ["failed", "verified"]


@pytest.mark.family(keep=12)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.action)
def test_the_invariant_of_an_action_is_needed(action: Any) -> None:
    def take_out(patch: pytest.MonkeyPatch) -> None:
        row = registry.ACTIONS[action.action]
        patch.setitem(registry.ACTIONS, action.action, replace(row, authorise=lambda *_: []))
        patch.setattr(Action, "refuse_signer", no_reasons)  # who may sign is a part of the invariant

    assert verdicts(take_out, ACTIONS[action]) == ["failed", "verified"]


# What every entry is held to, and every signature.


def nothing(*_: Any, **__: Any) -> None:
    return None


def no_reasons(*_: Any, **__: Any) -> list[str]:
    return []


def forged(site: LogBuilder) -> None:
    """Append an order that another key signed under the signer's name."""
    order = site.review_order("rita", "privacy")
    envelope = site.sign(order, generate_ed25519())
    lie = Envelope(envelope.payload, Signature(site.keys["rita"].keyid, envelope.signature.sig))
    signed = ((envelope.pae_digest, order),)
    site.add(ReviewRecorded(policy=site.in_force), documents={"order": encode_envelope(lie)}, signed=signed)


def other_bytes(site: LogBuilder) -> None:
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order(dataset="more"))
    data = manifest("more", 1, {"rows": b"rows"})
    body = site.dataset_imported(requested, dataset="more@1")
    site.add(body, documents={"manifest": data}, bound={"manifest": NOTHING})
    site.documents[NOTHING] = data


def twice(site: LogBuilder) -> None:
    order = site.review_order("rita", "privacy")
    site.ordered(ReviewRecorded(policy=site.in_force), order)
    site.ordered(ReviewRecorded(policy=site.in_force), order)


def possessed_by_another(site: LogBuilder) -> None:
    order, documents = site.enrolment("eve", ("auditor",))
    documents["possession"] = encode_envelope(site.possession("eve", site.keys["rita"]))
    site.two(PrincipalEnrolled(policy=site.in_force), order, documents)


def attached(site: LogBuilder) -> None:
    order, documents = site.enrolment("eve", ("auditor",))
    site.pend(order, {**documents, "policy": encode_value(site.policy)})


def sealed_with(name: str) -> Callable[[LogBuilder], None]:
    """Return a step that seals an adapter whose document is signed by another key."""

    def act(site: LogBuilder) -> None:
        body, documents = site.sealing("r-000001")
        _, others = site.sealing("r-000001", key=EcdsaSigner(generate_private_key(SECP256R1())))
        site.add(body, documents={**documents, name: others[name]})

    return act


def sealed_from_another_order(site: LogBuilder) -> None:
    body, documents = site.sealing("r-000001")
    statement = site.provenance("r-000001", documents["manifest"], order=NOTHING)
    signed = sign_envelope(encode_statement(statement), site.adapter_key)
    site.add(body, documents={**documents, "provenance": encode_envelope(signed)})


def evaluated(typed: Callable[[Verdict], bytes]) -> Callable[[LogBuilder], None]:
    """Return a step that seals an adapter no better than its base, with a verdict that was typed in."""

    def act(site: LogBuilder) -> None:
        run = site.train(gates=GATES)
        right = parse_verdict(site.evaluate(run, encode_items(ALIKE))["verdict"])
        site.seal(run, items=encode_items(ALIKE), verdict={"verdict": typed(right)})

    return act


def on_exam(site: LogBuilder) -> str:
    """Train a run that is evaluated on a validation set."""
    site.import_set()
    return site.train(gates=ON_EXAM)


def trained_for_a_revoked_set(site: LogBuilder) -> None:
    site.import_set()
    found = site.state.validation_sets.get("exam@1")
    assert found is not None
    site.revoke_set()
    site.request_run(gates=ON_EXAM, sets=(BoundSet(validation_set="exam@1", digest=found.digest),))


def released_on_a_revoked_set(site: LogBuilder) -> None:
    site.seal(on_exam(site), sets={"items-exam.jsonl": encode_items(ALIKE)}, metrics=CLEAN)
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.revoke_set()
    site.activate()


def by_a_revoked_key(site: LogBuilder) -> None:
    site.revoke_key("rita")
    site.review("rita", "privacy")


def over_a_distrusted_review(site: LogBuilder) -> None:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    site.revoke_key("rita", since=adapter.reviews[0].index)
    site.activate()


def late(site: LogBuilder, act: Callable[[LogBuilder], Any]) -> None:
    site.now = add_seconds(site.now, 200_000)
    act(site)


def evaluated_by_its_maker(site: LogBuilder) -> None:
    order = site.order(Grant, "anna", principal="olga", role="reviewer:privacy")
    site.two(RoleGranted(policy=site.in_force), order)
    site.review("olga", "privacy")


def unwitnessed(site: LogBuilder) -> None:
    site.adopt(policy_with_a_witness())
    site.add(site.admitted())


def signed_before(site: LogBuilder) -> None:
    issued = add_seconds(site.now, -1_800)
    order = site.review_order("rita", "privacy", issued_at=issued)
    site.ordered(ReviewRecorded(policy=site.in_force), order)


def add(event: Event, **changes: Any) -> Callable[[LogBuilder], Any]:
    return lambda site: site.add(event, **changes)


def over_another_request(site: LogBuilder) -> None:
    """Approved on one request, activated on the next."""
    site.request_release()
    approve(site)
    site.request_release()
    site.activate()


def released_under(site: LogBuilder, **terms: Any) -> None:
    site.request_release(conditions=conditions(**terms))
    approve(site)
    site.activate()


def over_the_days_answers(site: LogBuilder) -> None:
    released_under(site, answers_a_day=1)
    site.load()
    for number in (1, 2):
        site.add(site.request(number))
        site.add(site.answered(number))


def twice_by_one_person(site: LogBuilder) -> None:
    """By a delegate alone, once in the delegator's place."""
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("dana", "legal-risk")
    site.activate()


def after_an_emergency(site: LogBuilder) -> None:
    site.review("rita", "privacy", decision="withdraw")
    site.break_glass()
    site.now = add_seconds(site.now, 3_700)
    site.add(site.admitted(approvals=()))


def not_passed(site: LogBuilder, policy: str = "stops") -> None:
    """With clauses@1, whose verdict was not passed."""
    site.adopt(policy_set(failed_verdict=policy))
    site.seal(site.train(gates=GATES), items=encode_items(ALIKE))


def accepted_too_late(site: LogBuilder) -> None:
    """Released by people who approved before somebody accepted the verdict."""
    not_passed(site, "shown")
    site.review("rita", "privacy")
    site.review("raul", "model-risk")
    site.adopt(policy_set(failed_verdict="stops"))
    site.find(kind="exception", blocks=False, accepts_verdict=True)
    site.activate()


def asked_for_a_tier(site: LogBuilder) -> None:
    """Request a release in a tier that requires authorised runs, of a run that began without."""
    tier = policy_set().parameters.tiers[0].model_copy(update={"authorise_runs": True})
    site.adopt(policy_set(tiers=(tier,)))
    site.request_release()


def contains(table: Table[Any], key: str) -> bool:
    return table.kind != "order" and table.get(key) is not None


def by_a_passkey_that_policy_took_back(site: LogBuilder) -> None:
    site.adopt(policy_set(passkeys_synced=True))
    site.keys["rita"] = site.enrol_passkey("rita", new_passkey(flags=0x0D))
    site.adopt(policy_set())
    site.review("rita", "privacy")


PARTS: dict[str, tuple[Any, str, Any, Breach]] = {
    "sequence": (rules, "check_sequence", nothing, ("staffed", add(Heartbeat(), time=START))),
    "documents": (rules, "check_documents", nothing, ("imported", other_bytes)),
    "outcome": (rules, "check_claims", nothing, ("staffed", add(Heartbeat(), outcome="failure"))),
    "actor": (rules, "check_claims", nothing, ("staffed", add(Heartbeat(), actor="anna"))),
    "subjects": (rules, "check_subjects", nothing, ("staffed", add(Heartbeat(), subjects=("unit:legal",)))),
    "signer": (rules, "_check_order_entry", nothing, ("sealed", lambda s: s.ordered(
        ReviewRecorded(policy=s.in_force), s.review_order("rita", "privacy"), actor="raul"))),
    "policy": (rules, "_check_order_entry", nothing, ("sealed", lambda s: s.ordered(
        ReviewRecorded(policy=NOTHING), s.review_order("rita", "privacy")))),
    "signature": (signatures, "verify_envelope", nothing, ("sealed", forged)),
    "valid key": (Key, "is_valid", lambda *_: True, ("sealed", by_a_revoked_key)),
    "kind of passkey": (signatures, "refuse_passkey_scope", no_reasons, ("sealed", by_a_passkey_that_policy_took_back)),
    "counting key": (Key, "counts", lambda *_: True, ("approved", over_a_distrusted_review)),
    "lifetime": (signatures, "check_lifetime", nothing, ("sealed", lambda s: s.ordered(
        ReviewRecorded(policy=s.in_force), s.review_order("rita", "privacy", expires_at=s.now)))),
    "since enrolment": (signatures, "check_enrolled", nothing, ("sealed", signed_before)),
    "accepted once": (DigestTable, "__contains__", contains, ("sealed", twice)),
    "possession": (rules, "_check_attachment", nothing, ("staffed", possessed_by_another)),
    "attachments": (rules, "_check_attachment", nothing, ("staffed", attached)),
    "model signature": (adapters, "verify_model", nothing, ("trained", sealed_with("signature"))),
    "provenance signature": (adapters, "verify_envelope", nothing, ("trained", sealed_with("provenance"))),
    "provenance": (adapters, "check_provenance", nothing, ("trained", sealed_from_another_order)),
    "sandbox_probes": (adapters, "check_sandbox", nothing, TYPES["adapter.sealed"]),
    "conclusion of a verdict": (evaluation_rules, "check_conclusion", nothing, ("imported", evaluated(
        lambda verdict: change(verdict, passed=True, served_model=True)))),
    "records of a verdict": (evaluation_rules, "_check_records", nothing, ("imported", evaluated(
        lambda verdict: change_evaluated(verdict, digest=NOTHING)))),
    "counts of a verdict": (evaluation_rules, "_check_counts", nothing, ("imported", evaluated(
        lambda verdict: change_evaluated(verdict, evaluated_before=7)))),
    "gates that policy requires": (training, "find_gate_problems", no_reasons, ("imported", lambda s: (
        s.adopt(policy_set(required_gates=(NOTHING,))), s.request_run()))),
    "sets of gates": (training, "check_sets", nothing, ("imported", lambda s: s.request_run(
        gates=gates_file(gates=[one_gate(set="outside")])))),
    "validation sets of a run": (training, "refuse_sets", no_reasons, ("imported", trained_for_a_revoked_set)),
    "validation sets of an approval": (
        tiers, "refuse_invalid_sets", no_reasons, ("imported", released_on_a_revoked_set)),
    "valid inputs of a run": (training, "check_inputs", nothing, ("imported", lambda s: (
        s.request_run(), s.revoke_dataset(), s.add(s.started("r-000001"))))),
    "valid inputs of an adapter": (adapters, "check_inputs", nothing, ("trained", lambda s: (
        s.revoke_dataset(), s.seal("r-000001")))),
    "review lapsed": (
        approval, "explain_invalid_review", nothing, ("approved", lambda s: late(s, LogBuilder.activate))),
    "release lapsed": (
        approval, "refuse_invalid_release", no_reasons, ("released", lambda s: (s.revoke("otto"), s.load()))),
    "quorum": (approval, "refuse_missing_approvals", no_reasons, ("sealed", LogBuilder.activate)),
    "duties": (approval, "refuse_makers", no_reasons, ("sealed", evaluated_by_its_maker)),
    "admissible": (approval, "find_blockers", no_reasons, ("serving", lambda s: (
        s.ordered(AdapterRevoked(policy=s.in_force), s.order(RevokeAdapter, "rita", **s.on_adapter())),
        s.add(s.request(7))))),
    "suspensions": (approval, "refuse_suspended", no_reasons, ("serving", lambda s: (
        s.suspend(), s.add(s.request(7))))),
    "two administrators who resume": (Action, "needs_second", lambda *_: False, ("sealed", lambda s: (
        s.resume_release(s.suspend().index, "anna")))),
    "open suspensions": (adapters, "is_suspended", lambda *_: False, ("serving", lambda s: (
        s.suspend(), s.add(s.request(7))))),
    "blocking findings": (
        approval, "refuse_open_findings", no_reasons, ("serving", lambda s: (s.find(), s.add(s.request(7))))),
    "stale approvals": (approval, "explain_stale_approval", nothing, ("sealed", over_another_request)),
    "failed verdicts": (reviews, "refuse_unaccepted_verdict", no_reasons, ("imported", lambda s: (
        not_passed(s), s.review("rita", "privacy")))),
    "exceptions that approvals rest on": (approval, "explain_early_approval", nothing, ("imported", accepted_too_late)),
    "authorised runs": (requests_for_release, "explain_unauthorised_run", nothing, ("sealed", asked_for_a_tier)),
    "served models and dates": (
        approval, "refuse_by_binding", no_reasons, ("sealed", lambda s: released_under(s, served_models=("advice",)))
    ),
    "answers a day": (requests, "count_answer", lambda *_: [], ("sealed", over_the_days_answers)),
    "one voice for each person": (
        approval, "list_counted_approvals", approval.list_valid_reviews, ("sealed", twice_by_one_person)),
    "an approver who activates": (activations, "approved_by_activator", no_reasons, (
        "approved", activated_by_an_approver)),
    "an approver who declares an emergency": (emergencies, "approved_by_activator", no_reasons, (
        "released", declared_by_an_approver)),
    "an approver whom a new policy parts": (approval, "approved_by_activator", no_reasons, (
        "approved", loaded_after_policy_parted_them)),
    "an activator who approves": (approval, "refuse_approving_activator", no_reasons, (
        "approved", approved_by_the_activator)),
    "open findings": (blocking, "is_open", lambda *_: False, ("serving", lambda s: (s.find(), s.add(s.request(7))))),
    "an emergency's end": (approval, "refuse_ended_emergency", no_reasons, ("released", after_an_emergency)),
    "roles that stand alone": (people, "exclusive_roles", no_reasons, ("staffed", lambda s: s.enrol(
        "eve", "auditor", "operator"))),
    "retention": (retention, "_check_retention", no_reasons, ACTIONS[Erase]),
    "witnesses": (slots, "refuse_unwitnessed_log", no_reasons, ("released", unwitnessed)),
}  # fmt: skip


@pytest.mark.family(keep=12)
@pytest.mark.parametrize("part", PARTS)
def test_what_every_entry_is_held_to_is_needed(part: str) -> None:
    where, name, instead, breach = PARTS[part]
    assert verdicts(lambda patch: patch.setattr(where, name, instead), breach) == ["failed", "verified"]


# What the whole log is held to: chain, tree, checkpoint, trust, texts.


def chained(site: LogBuilder, middle: list[bytes], place: int) -> list[bytes]:
    """Return the log with other bytes in place of one entry, and a new chain after it."""
    entries = [*site.entries[:place], *middle]
    for data in site.entries[place + 1 :]:
        entries.append(encode_canonical(parse_canonical(data) | {"prev": f"sha256:{hash_leaf(entries[-1]).hex()}"}))
    return entries


def quiet() -> tuple[LogBuilder, int]:
    site = stage("staffed")
    for _ in range(3):
        site.add(Heartbeat())
    return site, len(site.entries) - 2


def resigned(site: LogBuilder, entries: list[bytes]) -> dict[str, Any]:
    return {"entries": entries, "checkpoint": signed_over(site, entries)}


def with_edit(site: LogBuilder, place: int) -> list[bytes]:
    edited = encode_canonical(parse_canonical(site.entries[place]) | {"source": "tcp"})
    return [*site.entries[:place], edited, *site.entries[place + 1 :]]


def broken_whole(kind: str) -> tuple[LogBuilder, dict[str, Any]]:
    """Return a site, and the parts of its log that are changed."""
    site, place = quiet()
    outsider = generate_ed25519()
    root = Checkpoint(ORIGIN, len(site.entries), root_of(map(hash_leaf, site.entries)))
    text = site.disclosures[0]
    changes: dict[str, dict[str, Any]] = {
        "size": {"entries": site.entries[:-1]},
        "root": {"entries": reforged(site, place, source="tcp")},
        "checkpoint": {"checkpoint": sign_checkpoint(root, outsider)},
        "trust": {"trust": replace(site.trust, genesis=NO_DIGEST)},
        "disclosure": {"disclosures": [Disclosure(text.commitment, text.salt, "Mallory"), *site.disclosures]},
        "missing-text": {"disclosures": site.disclosures[1:]},
        "unbound-text": {"disclosures": [*site.disclosures, disclose("Of nothing.", bytes(32))]},
        "encoding": resigned(site, chained(site, [b"junk"], place)),
        "chain": resigned(site, with_edit(site, place)),
        "sequence": resigned(site, chained(site, [], place)),
    }
    return site, changes[kind]


def broken_later(kind: str) -> tuple[LogBuilder, dict[str, Any]]:
    if kind == "witness":
        site = stage("staffed")
        site.adopt(policy_with_a_witness())
        body, documents = site.cosigned(WITNESS, WITNESS_NAME, len(site.entries) - 1)
        site.add(body.model_copy(update={"proof": body.proof[:-1]}), documents=documents)
        return site, {}
    site = stage("approved")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    site.erase(next(key for key, text in site.state.texts.items() if text.entry == adapter.reviews[0].index))
    return site, {}


KINDS = [
    *("size", "root", "checkpoint", "trust", "disclosure", "missing-text", "unbound-text"),
    *("encoding", "chain", "sequence", "witness", "erasure"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_finding_is_needed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a log in which the verifier finds this and nothing else: without it, it would be verified."""
    site, changes = (broken_later if kind in ("witness", "erasure") else broken_whole)(kind)
    report = verify(site, **changes)
    assert (report.verdict, {finding.rule for finding in report.findings}) == ("failed", {kind})
    kept = Findings.add
    monkeypatch.setattr(Findings, "add", lambda f, i, rule, message: rule == kind or kept(f, i, rule, message))
    assert verify(site, **changes).verdict == "verified"


@pytest.mark.parametrize("field", ["genesis", "log_key", "administrators"])
def test_each_field_of_the_trust_file_is_needed(field: str) -> None:
    """Another of these, and the log fails, whatever else holds."""
    site, _ = quiet()
    report = verify(site, trust=replace(site.trust, **{field: getattr(LogBuilder().trust, field)}))
    assert report.verdict == "failed" and "trust" in {finding.rule for finding in report.findings}


def test_the_one_encoding_of_an_entry_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    site, place = quiet()
    spaced = site.entries[place].replace(b'"v":1}', b'"v": 1}')
    changes = resigned(site, chained(site, [spaced], place))
    assert verify(site, **changes).verdict == "failed"

    def believe(entry: Any, data: bytes) -> Any:
        entry.__dict__.update(encoded=data, leaf=hash_leaf(data), link=f"sha256:{hash_leaf(data).hex()}")
        return entry

    monkeypatch.setattr(apply, "entry_of", believe)
    assert verify(site, **changes).verdict == "verified"


@pytest.mark.parametrize("missing", ["trust", "checkpoint"])
def test_what_is_essential_is_needed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site, _ = quiet()
    assert verify(site, **{missing: None}).verdict == "unverifiable"
    monkeypatch.setattr(Audit, "_essential", lambda _: ())
    assert verify(site, **{missing: None}).verdict == "verified"


def test_the_first_entrys_rule_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two administrators in an entry that declares a single one."""
    site = stage("initialized")
    body = site.first.model_dump(mode="json") | {"single_administrator": True}
    site.entries = [encode_canonical(parse_canonical(site.entries[0]) | {"body": body})]
    assert verify(site).verdict == "failed"
    monkeypatch.setattr(Case, "require", nothing)
    assert verify(site).verdict == "verified"
