"""Test cases of a policy set: the decisions that a site expects of its policies, stored with them.

A case starts from the sample request of its action and contains only its changes. Null removes an
optional attribute:

    {"name": "who imported restricted data trains on it", "action": "train", "expect": "allow",
     "principal": {"name": "ines", "roles": ["operator"]},
     "resource": {"dataset": {"classification": "restricted", "imported_by": {"name": "ines"}}},
     "context": {"rank": 8}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from appliance.access.cedar import CedarPolicies
from appliance.access.requests import CedarRequest, sample_requests
from appliance.domain.core.names import Identifier, V, Value, explain, validate_json, versioned
from appliance.domain.core.policy import PolicySet
from appliance.errors import BadInput, TooLarge
from appliance.formats.core.canonical import check_values

MOST_CASES = 1_000
"""Largest number of cases of one policy set."""


class PolicyCase(Value):
    """A test case. `policy` names a policy that must be among those that forbid."""

    name: str = Field(min_length=1, max_length=200)
    action: str
    expect: Literal["allow", "deny"]
    policy: Identifier | None = None
    principal: dict[str, Any] = Field(default={})
    resource: dict[str, Any] = Field(default={})
    context: dict[str, Any] = Field(default={})


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The outcome of a test case."""

    name: str
    passed: bool
    expected: str
    got: str


def parse_cases(data: bytes) -> tuple[PolicyCase, ...]:
    """Parse a JSON array of cases.

    Raises:
        BadInput: the text is malformed, or has no case and so would test nothing.
        TooLarge: there are more than `MOST_CASES`.
    """
    check_values(data, "policy test cases")
    try:
        cases = TypeAdapter(tuple[PolicyCase, ...]).validate_json(data)
    except ValidationError as error:
        raise BadInput(f"policy test cases: {explain(error)}") from None
    if not cases:
        raise BadInput("policy test cases: expected at least one, got none")
    if len(cases) > MOST_CASES:
        raise TooLarge(f"policy test cases: expected at most {MOST_CASES:,}, got {len(cases):,}; split them")
    return cases


def test_cases(policy: PolicySet, cases: tuple[PolicyCase, ...]) -> tuple[CaseResult, ...]:
    """Return the outcome of each case, in order.

    Raises:
        BadInput: the policy set or a case is wrong.
    """
    requests = [request_of_case(case) for case in cases]
    with CedarPolicies.for_adoption(policy) as site:
        return tuple(_run_case(site, case, request) for case, request in zip(cases, requests, strict=True))


def _run_case(site: CedarPolicies, case: PolicyCase, request: CedarRequest) -> CaseResult:
    verdict = site.evaluate(request)
    expected = case.expect if case.policy is None else f"{case.expect} by {case.policy}"
    if verdict.errors:
        got = f"no decision: {verdict.errors[0]}"
    elif verdict.permitted:
        got = "allow"
    else:
        got = f"deny by {', '.join(verdict.forbids) or 'no policy (none permits)'}"
    passed = not verdict.errors and verdict.permitted == (case.expect == "allow")
    if case.policy is not None:
        passed = passed and case.policy in verdict.forbids
    return CaseResult(case.name, passed, expected, got)


def request_of_case(case: PolicyCase) -> CedarRequest:
    """Return the Cedar request of a case.

    Raises:
        BadInput: the action has no sample, or a change does not fit it.
    """
    what = f"policy test case {case.name!r}"
    sample = sample_requests().get(case.action)
    if sample is None:
        raise BadInput(f"{what}, action: expected one of {', '.join(sample_requests())}, got {case.action!r}")
    return CedarRequest(
        _change(sample.principal, case.principal, f"{what}, principal"),
        case.action,
        _change(sample.resource, case.resource, f"{what}, resource"),
        _change(sample.context, case.context, f"{what}, context"),
    )


def _change(sample: V, changes: Mapping[str, Any], what: str) -> V:
    """Return an entity or a context with other attributes. Null removes an optional attribute."""
    merged = _merge(sample.model_dump(mode="json"), changes)
    return validate_json(type(sample), json.dumps(merged).encode(), what)


def _merge(old: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the changes. An id that consists of the entity's name and version follows them."""
    merged = {**old, **changes}
    for name, change in changes.items():
        if isinstance(old.get(name), dict) and isinstance(change, dict):
            merged[name] = _merge(old[name], change)
    if "id" in old and old["id"] == _make_id(old):
        merged["id"] = _make_id(merged)
    return merged


def _make_id(entity: Mapping[str, Any]) -> Any:
    """Return the id that consists of the entity's name, and of its version if it has one."""
    return versioned(entity["name"], entity["version"]) if "version" in entity else entity.get("name")
