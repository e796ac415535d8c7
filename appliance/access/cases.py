"""Test cases of a policy set: the decisions that a site expects of its policies, kept with them.

A case starts from the sample request of its verb (appliance/access/samples.py) and has only what it changes:

    {"name": "who imported restricted data trains on it", "verb": "train", "expect": "allow",
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

from appliance.access.cedar import SitePolicies
from appliance.access.request import Moment, Request, Thing, principal_thing
from appliance.access.samples import REJECTION, SAMPLES
from appliance.domain.core.names import Identifier, Value, explain, versioned
from appliance.domain.core.policy import PolicySet
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time, parse_time


class PolicyCase(Value):
    """`policy` names the policy that must be among those that forbid."""

    name: str = Field(min_length=1, max_length=200)
    verb: str
    expect: Literal["allow", "deny"]
    policy: Identifier | None = None
    principal: dict[str, Any] = Field(default={})
    resource: dict[str, Any] = Field(default={})
    context: dict[str, Any] = Field(default={})


@dataclass(frozen=True, slots=True)
class CaseResult:
    name: str
    passed: bool
    expected: str
    got: str


def parse_cases(data: bytes) -> tuple[PolicyCase, ...]:
    """The cases of a JSON array; BadInput where there is none, since nothing tested is not green."""
    try:
        cases = TypeAdapter(tuple[PolicyCase, ...]).validate_json(data)
    except ValidationError as error:
        raise BadInput(f"policy test cases: {explain(error)}") from None
    if not cases:
        raise BadInput("policy test cases: expected at least one, got none")
    return cases


def test_cases(policy: PolicySet, cases: tuple[PolicyCase, ...]) -> tuple[CaseResult, ...]:
    """Each case's outcome, in order. BadInput when the policy set or a case is not one."""
    site = SitePolicies.for_adoption(policy)
    return tuple(_test(site, case) for case in cases)


def _test(site: SitePolicies, case: PolicyCase) -> CaseResult:
    verdict = site.evaluate(request_of_case(case))
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


def request_of_case(case: PolicyCase) -> Request:
    rejection = case.verb == REJECTION.verb and case.context.get("decision") == REJECTION.context["decision"]
    sample = REJECTION if rejection else SAMPLES.get(case.verb)
    what = f"policy test case {case.name!r}"
    if sample is None:
        raise BadInput(f"{what}, verb: expected one of {', '.join(SAMPLES)}, got {case.verb!r}")
    return Request(
        _changed_thing(sample.principal, case.principal, f"{what}, principal"),
        case.verb,
        _changed_thing(sample.resource, case.resource, f"{what}, resource"),
        _changed(sample.context, case.context, f"{what}, context"),
    )


def _changed(known: Mapping[str, Any], changes: Mapping[str, Any], what: str) -> dict[str, Any]:
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise BadInput(f"{what}: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return {key: _value(old, changes[key], f"{what}.{key}") if key in changes else old for key, old in known.items()}


def _value(old: Any, new: Any, what: str) -> Any:
    """The new value in the sample's own type."""
    if isinstance(old, Thing) and isinstance(new, dict):
        return _changed_thing(old, new, what)
    if isinstance(old, Moment) and isinstance(new, str):
        return Moment(encode_time(parse_time(new, what)))
    if isinstance(old, tuple) and isinstance(new, list) and all(isinstance(item, str) for item in new):
        return tuple(new)
    if type(old) is not type(new):
        raise BadInput(f"{what}: expected a value like {_shown(old)}, got {json.dumps(new)[:80]}")
    return new


def _shown(value: Any) -> str:
    if isinstance(value, Thing):
        return "an object"
    return json.dumps(value.time if isinstance(value, Moment) else value)


def _changed_thing(thing: Thing, changes: Mapping[str, Any], what: str) -> Thing:
    attributes = _changed(thing.attributes, changes, what)
    if thing.type == "Principal":
        return principal_thing(attributes["name"], attributes["roles"])
    if thing.type == "Base":
        return Thing("Base", attributes["name"], attributes)
    if thing.type in ("Dataset", "Adapter"):
        return Thing(thing.type, versioned(attributes["name"], attributes["version"]), attributes)
    return Thing(thing.type, thing.id, attributes)
