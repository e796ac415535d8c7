"""A policy set compared with the one in force, before a person signs for its adoption or endorses it."""

from __future__ import annotations

from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_changes import PolicyChange, describe_changes, differences
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import ApplianceError
from appliance.web.console.core.page import Value
from appliance.workflows.core.context import Context
from appliance.workflows.queries.policy_trial import Trial, try_policy


class Comparison(Value):
    """`changes` in words, and the text's `diff`. `trial`: recent decisions under the new set; None where `problem` says
    why it could not be tried."""

    changes: tuple[PolicyChange, ...]
    diff: tuple[str, ...]
    trial: Trial | None
    problem: str | None


def compare_policies(context: Context, proposal: Proposal) -> Comparison | None:
    """Of an order to adopt a set; None for another order."""
    order = proposal.order
    if not isinstance(order, AdoptPolicy):
        return None
    document = proposal.documents["policy"]
    old = parse_policy(context.ledger.document(context.ledger.state.site.policy))
    new = parse_policy(document)
    trial, problem = None, None
    try:
        trial = try_policy(context, document, order.policy)
    except ApplianceError as error:
        problem = error.message
    return Comparison(
        changes=describe_changes(old, new), diff=tuple(differences(old, new)), trial=trial, problem=problem
    )
