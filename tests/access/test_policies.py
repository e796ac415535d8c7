"""Tests of the policy sets in policies/: each assembles, decides, and passes its own test cases."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.access import cases
from appliance.access.cedar import POLICY_FORBIDS, CedarPolicies
from appliance.access.requests import sample_requests
from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import Parameters, PolicySet, parse_policy
from appliance.domain.governance.policies import ADOPTED_FILES, SCHEMA, assemble_policy
from appliance.errors import BadInput
from scripts.references.schema import render_schema

ROOT = Path(__file__).resolve().parents[2] / "policies"
FOLDERS = sorted(path for path in ROOT.iterdir() if (path / "parameters.json").is_file())


def read(folder: Path) -> dict[str, bytes]:
    shipped = ROOT / "default" / SCHEMA
    return {path.name: path.read_bytes() for path in (shipped, *folder.iterdir())}


DEFAULT = read(ROOT / "default")


def assembled(**changes: bytes) -> PolicySet:
    names = {"parameters": "parameters.json", "policies": "policies.cedar", "schema": "schema.cedarschema"}
    return assemble_policy("site", {**DEFAULT, **{names[key]: value for key, value in changes.items()}})


def test_the_folders_are_there() -> None:
    assert {"default", "strict-example"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_passes_its_own_cases(folder: Path) -> None:
    policy = assemble_policy(folder.name, read(folder))
    parsed = cases.parse_cases((folder / "tests.json").read_bytes())
    failed = [result for result in cases.test_cases(policy, parsed) if not result.passed]
    assert failed == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_forbid_of_a_folder_has_a_case_that_it_refuses(folder: Path) -> None:
    text = "\n".join(line for line in (folder / "policies.cedar").read_text().splitlines() if line[:2] != "//")
    forbids = set(re.findall(r'@id\("([^"]+)"\)\s*forbid', text))
    tested = {case.policy for case in cases.parse_cases((folder / "tests.json").read_bytes()) if case.expect == "deny"}
    assert forbids == tested - {None}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_one_document_that_parses_again(folder: Path) -> None:
    policy = assemble_policy(folder.name, read(folder))
    assert parse_policy(encode_value(policy)) == policy


def test_the_shipped_schema_is_that_of_the_actions() -> None:
    assert DEFAULT[SCHEMA].decode() == render_schema(), "expected the file that scripts/reference writes"


@pytest.mark.thorough
def test_the_default_set_has_the_default_parameters_but_stops_failed_verdicts_and_forbids_nothing() -> None:
    policy = assemble_policy("default", DEFAULT)
    assert policy.parameters == Parameters(failed_verdict="stops")
    assert set(json.loads(DEFAULT["parameters.json"])) == set(Parameters.model_fields)
    assert all(CedarPolicies(policy).list_refusal_reasons(request) == () for request in sample_requests().values())


def test_the_commented_examples_are_policies_that_work() -> None:
    _, _, examples = DEFAULT["policies.cedar"].decode().partition("// Examples.")
    lines = [line[3:] for line in examples.splitlines() if re.match(r"// (@id|forbid|when|unless)", line)]
    site = CedarPolicies(assembled(policies=DEFAULT["policies.cedar"] + "\n".join(lines).encode()))
    assert site.list_refusal_reasons(sample_requests()["review"]) == (
        POLICY_FORBIDS("cedar-policy:approve-for-90-days", action="review", principal="rita"),
    )
    assert len(re.findall("@id", "\n".join(lines))) == 6


def test_the_strict_example_tightens_and_never_loosens() -> None:
    strict = assemble_policy("strict", read(ROOT / "strict-example")).parameters
    usual = Parameters()
    assert strict.reviewers >= usual.reviewers
    assert "privacy" in strict.required_functions
    for name in ("order_lifetime_s", "approval_lifetime_s", "session_lifetime_s", "token_lifetime_s", "clock_skew_s"):
        assert getattr(strict, name) <= getattr(usual, name)


# Assembling.


@pytest.mark.parametrize("name", ADOPTED_FILES)
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(BadInput, match=f"got none of {name}"):
        assemble_policy("site", {key: data for key, data in DEFAULT.items() if key != name})


def test_a_file_that_would_silently_not_be_adopted_is_refused() -> None:
    with pytest.raises(BadInput, match=r"got more\.cedar"):
        assemble_policy("site", {**DEFAULT, "more.cedar": b""})


def test_tests_are_no_part_of_what_is_adopted() -> None:
    without = {key: data for key, data in DEFAULT.items() if key != "tests.json"}
    assert assemble_policy("site", without) == assemble_policy("site", DEFAULT)


def test_the_layout_of_the_parameters_file_does_not_matter_and_its_values_do() -> None:
    compact = json.dumps(json.loads(DEFAULT["parameters.json"])).encode()
    assert assembled(parameters=compact) == assembled()
    assert assembled(parameters=b'{"failed_verdict": "stops"}') == assembled()
    assert assembled(parameters=b'{"reviewers": 3}') != assembled()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected JSON"),
        (b"[]", "parameters.json"),
        (b'{"reviewer": 2}', "reviewer: expected no field of this name"),
        (b'{"reviewers": "2"}', "reviewers"),
        (b'{"reviewers": 2.0}', "reviewers"),
        (b'{"reviewers": true}', "reviewers"),
        (b'{"reviewers": 2, "reviewers": 1}', "every key once"),
        (b'{"reviewers": 1}', "distinct_functions: expected at most reviewers"),
        (b'{"required_functions": ["Privacy"]}', "required_functions: expected lower-case"),
        (b"\xff", "expected UTF-8"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
def test_parameters_are_read_strictly(data: bytes, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        assembled(parameters=data)
    assert words in caught.value.message


def test_a_policy_sets_name_is_an_identifier() -> None:
    with pytest.raises(BadInput, match="policy set Not A Name: name"):
        assemble_policy("Not A Name", DEFAULT)


def test_policies_that_are_no_text_are_refused() -> None:
    with pytest.raises(BadInput, match=r"policies\.cedar, byte 0: expected UTF-8"):
        assembled(policies=b"\xff")


# Cases.


def run(case: dict[str, Any], policy: bytes = DEFAULT["policies.cedar"]) -> cases.CaseResult:
    parsed = cases.parse_cases(json.dumps([{"name": "one", "action": "train", "expect": "allow"} | case]).encode())
    (result,) = cases.test_cases(assembled(policies=policy), parsed)
    return result


FORBID = DEFAULT["policies.cedar"] + b'@id("no-train") forbid (principal, action == Action::"train", resource);'


@pytest.mark.thorough
def test_a_case_that_fails_says_what_was_decided() -> None:
    assert run({}) == cases.CaseResult("one", True, "allow", "allow")
    assert run({}, FORBID) == cases.CaseResult("one", False, "allow", "deny by no-train")
    assert run({"expect": "deny"}) == cases.CaseResult("one", False, "deny", "allow")
    denied = {"expect": "deny", "policy": "no-train"}
    assert run(denied, FORBID).passed
    assert not run({"expect": "deny", "policy": "another"}, FORBID).passed


def test_a_denial_because_nothing_permits_names_no_policy() -> None:
    only = b'@id("cancel") permit (principal, action == Action::"cancel", resource);'
    result = run({"expect": "deny"}, only)
    assert (result.passed, result.got) == (True, "deny by no policy (none permits)")
    assert not run({"expect": "deny", "policy": "cancel"}, only).passed


def test_a_decision_that_fails_passes_no_case() -> None:
    broken = DEFAULT["policies.cedar"] + (
        b'@id("sum") forbid (principal, action == Action::"train", resource) '
        b"when { context.rank > 100 && context.rank * 9223372036854775807 > 0 };"
    )
    for expect in ("allow", "deny"):
        result = run({"expect": expect, "context": {"rank": 101}}, broken)
        assert (result.passed, result.got[:12]) == (False, "no decision:")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"action": "fly"}, "action: expected one of enrol"),
        ({"context": {"colour": "red"}}, "context: colour: expected no field of this name"),
        ({"resource": {"dataset": {"colour": "red"}}}, "resource: dataset.colour: expected no field of this name"),
        ({"context": {"rank": "8"}}, "context: rank: expected a whole number"),
        ({"context": {"rank": True}}, "context: rank: expected a whole number"),
        ({"context": {"now": "yesterday"}}, "context: now: expected a time such as"),
        ({"context": {"now": 5}}, "context: now: expected text"),
        ({"context": {"rank": {}}}, "context: rank: expected a whole number"),
        ({"context": {"rank": ["8"]}}, "context: rank: expected a whole number"),
        ({"resource": {"dataset": "clauses"}}, "resource: dataset: expected an object"),
        ({"principal": {"roles": "operator"}}, "principal: roles: expected a list"),
        ({"principal": {"roles": [1]}}, "principal: roles.0: expected text"),
        ({"expect": "maybe"}, "expect"),
        ({"more": 1}, "more"),
        ({"name": ""}, "name"),
    ],
)  # fmt: skip
def test_a_case_that_says_something_unknown_is_refused(case: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(case)
    assert words in caught.value.message


def test_a_case_sets_and_removes_optional_attributes_only() -> None:
    asked = b'@id("asked") forbid (principal, action == Action::"review", resource) when { context has '
    delegated = DEFAULT["policies.cedar"] + asked + b"on_behalf_of };"
    case = {"action": "review", "expect": "deny", "policy": "asked", "context": {"on_behalf_of": "raul"}}
    assert run(case, delegated).passed
    dated = DEFAULT["policies.cedar"] + asked + b"valid_until };"
    assert run(case | {"context": {}}, dated).passed
    assert run({"action": "review", "context": {"decision": "reject", "valid_until": None}}, dated).passed
    with pytest.raises(BadInput, match="context: unit: expected text, got None"):
        run({"action": "review", "context": {"unit": None}})


@pytest.mark.parametrize("data", [b"[]", b"", b"{}", b"[1]"])
def test_no_cases_are_not_green(data: bytes) -> None:
    with pytest.raises(BadInput, match="policy test cases"):
        cases.parse_cases(data)


def test_a_renamed_thing_has_the_id_of_its_name() -> None:
    case = {
        "resource": {"base": {"name": "qwen"}, "dataset": {"name": "rows", "version": 7}},
        "expect": "deny",
        "policy": "by-id",
    }
    policy = DEFAULT["policies.cedar"] + (
        b'@id("by-id") forbid (principal, action == Action::"train", resource) '
        b'when { resource.base == Base::"qwen" && resource.dataset == Dataset::"rows@7" '
        b'&& resource == Run::"r-000005" };'
    )
    assert run(case, policy).passed
