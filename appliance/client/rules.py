"""The rules version: the one in force, the newest that the service knows, and the order that raises it."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.client.support.door import About, Door
from appliance.client.support.orders import propose
from appliance.domain.governance.rules import RaiseRules
from appliance.domain.rulebook.proposals import Proposal


@dataclass(frozen=True)
class RulesAnswer:
    """`entry`: the one that put the version in force."""

    version: int
    newest: int
    entry: int


def rules_in_force(door: Door) -> RulesAnswer:
    answer = door.get("/v1/rules")
    return RulesAnswer(int(answer["version"]), int(answer["newest"]), int(answer["entry"]))


def propose_rules(about: About, signer: str, version: int) -> Proposal:
    return propose(about, signer, RaiseRules, {"rules": version})
