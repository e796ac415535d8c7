"""The policy set in force, and the sets that were in force before."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.queries import people

_ADOPTED = ("appliance.initialized", "policy.adopted")


class Adopted(Value):
    entry: int
    time: str
    actor: str
    type: str


class PolicyPage(Value):
    digest: str
    name: str
    parameters: dict[str, Any]
    cedar: str
    rules: int
    newest_rules: int
    adopted: tuple[Adopted, ...]


def policy(context: Context, viewer: Viewer, query: Query) -> PolicyPage:
    found, rules = people.policy(context), people.rules(context)
    entries = [parse_entry(data) for _, data in context.ledger.find(types=_ADOPTED, newest=True, limit=PAGE_ROWS)]
    return PolicyPage(
        digest=found["digest"],
        name=found["policy"]["name"],
        parameters=found["policy"]["parameters"],
        cedar=found["policy"]["cedar"],
        rules=rules["version"],
        newest_rules=rules["newest"],
        adopted=tuple(Adopted(entry=one.index, time=one.time, actor=one.actor, type=one.type) for one in entries),
    )


def _table(value: PolicyPage) -> Table:
    return Table(("parameter", "value"), list(value.parameters.items()))


PAGE = Page("/policy", "Policy", PEOPLE, Query, policy, "administrators/policy.html", _table, "Site", "policy")
