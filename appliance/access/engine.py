"""Cedar with the policies and the schema of one policy set.

All failures refuse: Cedar skips a policy that it cannot evaluate, and a skipped `forbid` forbids nothing. So the
errors of an evaluation are part of the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import cedarpy

from appliance.access.bounds import check_bounds
from appliance.domain.governance.policy_ids import list_policy_ids
from appliance.errors import BadInput
from appliance.formats.core.fields import parse_identifier

_STEADY = {"context": ("single_administrator",), "resource": ("action", "signer")}
"""Attributes of a variable that have the same value whenever the order is made."""


def assume_worst_case(policies: dict[str, Any]) -> dict[str, Any]:
    """Return Cedar's JSON of a policy set as it decides in the worst case.

    The worst case covers all times and all policy sets that could be adopted.
    """
    changed = {key: _assume_policy_worst_case(policy) for key, policy in policies["staticPolicies"].items()}
    return policies | {"staticPolicies": {key: policy for key, policy in changed.items() if policy is not None}}


def _assume_policy_worst_case(policy: dict[str, Any]) -> dict[str, Any] | None:
    """Return a policy in the worst case, None for a policy that permits one resource only, such as one digest."""
    if policy["effect"] == "permit" and not policy["resource"].keys().isdisjoint(("entity", "in")):
        return None
    steady: list[dict[str, Any]] = []
    for condition in _list_conditions(policy["conditions"]):
        if _reads_variable_attribute(condition["body"]):
            # Permits become forbids, too: if their condition cannot be evaluated, nothing is allowed.
            return policy | {"effect": "forbid", "conditions": steady}
        steady.append(condition)
    return policy


def _list_conditions(conditions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the conditions in the order of evaluation, with each `when { a && b }` as two."""
    waiting = conditions[::-1]
    while waiting:
        condition = waiting.pop()
        conjunction = condition["body"].get("&&") if condition["kind"] == "when" else None
        if conjunction is None:
            yield condition
        else:
            waiting += [condition | {"body": conjunction["right"]}, condition | {"body": conjunction["left"]}]


def _reads_variable_attribute(expression: Any) -> bool:
    """Return True if the expression reads attributes of the context or the resource that can change."""
    pending = [expression]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict) and "Record" in part:
            pending += part["Record"].values()  # the keys are names that the policy chose, not operators
        elif isinstance(part, dict) and not _is_steady(part):
            if part.get("Var") in _STEADY:
                return True
            pending += part.values()
    return False


def _is_steady(part: dict[str, Any]) -> bool:
    """Return True if this part reads steady attributes only.

    Examples are `context.single_administrator`, `resource has action` and `resource is Policy`.
    """
    for operator in (".", "has"):
        if operator in part:
            read = part[operator]
            return read["attr"] in _STEADY.get(read["left"].get("Var"), ())
    kind = part.get("is")
    return kind is not None and "Var" in kind["left"] and "in" not in kind


_MOST_ERRORS = 8
"""Largest number of validation errors that a refusal quotes."""


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """A decision of Cedar: the `@id` of each policy that forbids, the evaluation errors, and the permission."""

    forbids: tuple[str, ...]
    errors: tuple[str, ...]
    permitted: bool


class Cedar(Protocol):
    """A loaded policy set that decides requests, in this process or in another."""

    def authorize(self, request: dict[str, Any], entities: str, worst: bool) -> PolicyDecision: ...

    def is_valid(self, policy: str) -> bool: ...

    def close(self) -> None: ...


class PolicyEngine:
    """A policy set that is loaded in this process, which is for current policy sets only.

    Cedar holds the interpreter lock while it works.
    """

    def __init__(self, name: str, cedar: str, schema: str) -> None:
        """Load a policy set.

        Raises:
            TooLarge: the text exceeds a limit.
            BadInput: the text does not parse or does not fit the schema, in Cedar's words, or a policy does not begin
                with a unique `@id`, by which refusals and comparisons name it.
        """
        check_bounds(name, cedar, schema)
        what = f"policy set {name}"
        try:
            self._schema = cedarpy.Schema.from_str(schema)
        except ValueError as error:
            raise BadInput(f"{what}, schema: expected a Cedar schema, got: {_to_line(error)}") from None
        try:
            self._policies = cedarpy.PolicySet.from_str(cedar)
            self._parsed = json.loads(cedarpy.policies_to_json_str(cedar))
        except ValueError as error:
            raise BadInput(f"{what}, policies: expected Cedar policies, got: {_to_line(error)}") from None
        self._what, self._ids = what, _policy_ids(self._parsed, what)
        if sorted(self._ids.values()) != sorted(list_policy_ids(cedar)):
            expected = 'expected each policy to begin with its @id("NAME") at the start of a line'
            raise BadInput(f"{what}, policies: {expected}, got another place; write one policy below the other")
        self._worst_case: tuple[cedarpy.PolicySet, dict[str, str]] | None = None
        if not any(policy["effect"] == "permit" for policy in self._parsed["staticPolicies"].values()):
            raise BadInput(f"{what}, policies: expected at least one permit, without which all is refused, got none")
        self._validate(cedar)

    def authorize(self, request: dict[str, Any], entities: str, worst: bool = False) -> PolicyDecision:
        """Decide a request. With `worst` the policies are those in the worst case (`assume_worst_case`)."""
        policies, ids = self._load_at_worst() if worst else (self._policies, self._ids)
        result = cedarpy.is_authorized(request, policies, entities, self._schema)
        errors = tuple(_to_line(error) for error in result.diagnostics.errors)
        if result.decision == cedarpy.Decision.NoDecision and not errors:
            errors = ("no decision",)
        permitted = result.decision == cedarpy.Decision.Allow
        # The reasons of a denial are the policies that forbid.
        forbids = () if permitted else tuple(sorted(ids[place] for place in result.diagnostics.reasons))
        return PolicyDecision(forbids, errors, permitted)

    def is_valid(self, policy: str) -> bool:
        """Return True if the schema accepts the text of this policy."""
        return bool(cedarpy.validate_policies(policy, self._schema).validation_passed)

    def close(self) -> None:
        """Do nothing: no process has to end."""

    def _load_at_worst(self) -> tuple[cedarpy.PolicySet, dict[str, str]]:
        if self._worst_case is None:
            try:
                text = cedarpy.policies_from_json_str(json.dumps(assume_worst_case(self._parsed)))
                policies = cedarpy.PolicySet.from_str(text)
                parsed = json.loads(cedarpy.policies_to_json_str(text))
            except ValueError as error:
                expected = "expected conditions whose worst case can be computed; shorten them, or split them"
                raise BadInput(f"{self._what}, policies: {expected}, got: {_to_line(error)}") from None
            self._worst_case = policies, _policy_ids(parsed, self._what)
        return self._worst_case

    def _validate(self, text: str) -> None:
        result = cedarpy.validate_policies(text, self._schema)
        if result.validation_passed:
            return
        errors = result.errors[:_MOST_ERRORS]
        found = [f"{self._ids.get(error.policy_id, 'policies')}: {_to_line(error.error)}" for error in errors]
        raise BadInput(f"{self._what}, policies: expected them to fit the schema, got: {'; '.join(found) or 'no'}")


def _policy_ids(parsed: dict[str, Any], what: str) -> dict[str, str]:
    """Return the `@id` of each policy by Cedar's own name for it, which is its position in the file."""
    if parsed["templates"]:
        raise BadInput(f"{what}, policies: expected no templates, since nothing would link them, got some")
    ids: dict[str, str] = {}
    known: set[str] = set()
    for key, policy in parsed["staticPolicies"].items():
        name = parse_identifier(policy.get("annotations", {}).get("id", ""), f"{what}, {key}, @id")
        if name in known:
            raise BadInput(f"{what}, {key}: expected an @id of its own, got {name!r} again")
        ids[key] = name
        known.add(name)
    return ids


def _to_line(error: object) -> str:
    return " ".join(str(error).split())[:500]
