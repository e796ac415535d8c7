"""Whether administrators can replace a policy set at any time, not only today.

A policy can forbid by what changes: the time, the digest of the set to be adopted, the order to be endorsed. Such a
policy cannot be tried with every value, so the worst is assumed: from its first condition that reads a changing value,
the policy counts as one that always forbids. These do not change, and are evaluated as they are: the scope,
`principal`, `context.single_administrator`, and of an order to be endorsed `resource.verb` and `resource.signer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_STEADY = {"context": ("single_administrator",), "resource": ("verb", "signer")}
"""Attributes of a variable that are the same whenever the order is made."""


def at_worst(policies: dict[str, Any]) -> dict[str, Any]:
    """Cedar's JSON of a policy set, as it decides at the worst time and for the worst policy set to be adopted."""
    worst = {place: _policy_at_worst(policy) for place, policy in policies["staticPolicies"].items()}
    return policies | {"staticPolicies": {place: policy for place, policy in worst.items() if policy is not None}}


def _policy_at_worst(policy: dict[str, Any]) -> dict[str, Any] | None:
    """None for a policy that permits for one resource alone, such as one digest."""
    if policy["effect"] == "permit" and not policy["resource"].keys().isdisjoint(("entity", "in")):
        return None
    steady: list[dict[str, Any]] = []
    for condition in _parts(policy["conditions"]):
        if _changes(condition["body"]):
            # A permit as well: where its condition cannot be evaluated, nothing is allowed.
            return policy | {"effect": "forbid", "conditions": steady}
        steady.append(condition)
    return policy


def _parts(conditions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The conditions, each `when { a && b }` as two, in the order in which Cedar evaluates them."""
    waiting = conditions[::-1]
    while waiting:
        condition = waiting.pop()
        both = condition["body"].get("&&") if condition["kind"] == "when" else None
        if both is None:
            yield condition
        else:
            waiting += [condition | {"body": both["right"]}, condition | {"body": both["left"]}]


def _changes(expression: Any) -> bool:
    """Whether it reads the context or the resource beyond what is steady."""
    waiting = [expression]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict) and "Record" in part:
            waiting += part["Record"].values()  # under names of the policy's own, which are not operators
        elif isinstance(part, dict) and not _is_steady(part):
            if part.get("Var") in _STEADY:
                return True
            waiting += part.values()
    return False


def _is_steady(part: dict[str, Any]) -> bool:
    """`context.single_administrator`, `resource has verb`, `resource is Policy` and their like."""
    for operator in (".", "has"):
        if operator in part:
            read = part[operator]
            return read["attr"] in _STEADY.get(read["left"].get("Var"), ())
    kind = part.get("is")
    return kind is not None and "Var" in kind["left"] and "in" not in kind
