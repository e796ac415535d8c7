"""Values with which the form of an order begins, besides those that its link gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from appliance.domain.core.decisions import APPROVALS, Decision
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import State
from appliance.domain.governance.invitations import EnrolWithPasskey
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.releases.activations import Rollback
from appliance.domain.releases.requests import RequestRelease, find_current_request
from appliance.domain.releases.reviews import ReviewAdapter, list_delegations
from appliance.domain.releases.usual import VALID_DAYS, usual_meaning
from appliance.domain.runs.training import Train
from appliance.web.console.core.page import Viewer
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.invitations import find_accepted
from appliance.workflows.queries import people
from appliance.workflows.releases.review import read_text


def fill_initial_values(
    context: LedgerContext, viewer: Viewer, action: str, given: Mapping[str, str]
) -> dict[str, str]:
    """Return the given values and those that follow from them, from the state and from the viewer's roles."""
    state = context.ledger.state
    found = dict(given)
    if action == AdoptPolicy.action:
        return _describe_policy(context)
    if action == Train.action and (required := state.parameters.required_gates):
        found = {"gates": required[0], **found}
    if action == EnrolWithPasskey.action:
        found = _describe_invited(context, found.get("possession", "")) | found
    if action == Rollback.action:
        found = _describe_earlier(state, found) | found
    if action == RequestRelease.action:
        found = _describe_request(context, viewer, found) | found
    own = viewer.places("reviewer")
    delegations = list_delegations(state, viewer.name, context.now(state))
    if len(own) == 1:
        found = {"review_function": own[0], **found}
    elif action == ReviewAdapter.action and not own and len(delegations) == 1:
        place = {"review_function": delegations[0].review_function, "on_behalf_of": delegations[0].delegator}
        found = place | found
    return _describe_usual(state, found) | found if action == ReviewAdapter.action else found


def _describe_policy(context: LedgerContext) -> dict[str, str]:
    """Return the valid policy set as the files of its folder, to be changed into another."""
    held = people.policy(context).policy
    return {
        "policy.name": held.name,
        "policy.parameters": json.dumps(held.parameters.model_dump(mode="json"), indent=2),
        "policy.cedar": held.cedar,
        "policy.schema": held.cedar_schema,
    }


def _describe_invited(context: LedgerContext, keyid: str) -> dict[str, str]:
    """Return the printed name and roles of the invitation that was accepted with this passkey."""
    row = find_accepted(context.ledger.state, keyid)
    if row is None:
        return {}
    texts = context.ledger.disclosures([row.printed_name])
    name = texts[row.printed_name].text if row.printed_name in texts else ""
    return {"printed_name": name, "roles": " ".join(row.roles)}


def _describe_earlier(state: State, given: Mapping[str, str]) -> dict[str, str]:
    """Return the version before the active one, or the given one, as the release had it when it was last active."""
    release = state.releases.get(release_key(given.get("unit", ""), given.get("served_model", "")))
    steps = () if release is None else release.earlier
    for step in steps:
        if given.get("adapter") in (None, step.adapter):
            return {"adapter": step.adapter, "adds_instruction": "yes" if step.adds_instruction else ""}
    return {}


def _describe_usual(state: State, given: Mapping[str, str]) -> dict[str, str]:
    """Return the usual words of a decision, and for an approval the usual date, as policy allows it."""
    decision, unit, function = (given.get(name, "") for name in ("decision", "unit", "review_function"))
    days = max(1, min(VALID_DAYS, state.parameters.approval_lifetime_s // 86_400))
    found = {"valid_until": f"{days}d"} if decision in APPROVALS else {}
    if decision in get_args(Decision) and unit and function:
        found["meaning"] = usual_meaning(decision, unit, function)
    return found


def _describe_request(context: LedgerContext, viewer: Viewer, given: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of the viewer's own release request, to be made again."""
    state = context.ledger.state
    adapter = state.adapters.get(given.get("adapter", ""))
    found = None if adapter is None else find_current_request(state, adapter, given.get("unit", ""))
    if found is None or found.requested_by != viewer.name:
        return {}
    texts = {name: read_text(context, found.index, name) for name in ("intended_use", "limits")}
    terms = {} if found.conditions is None else dict(found.conditions)
    limits = {f"conditions.{name}": value for name, value in terms.items() if name != "served_models" and value}
    limits["conditions.served_models"] = " ".join(terms.get("served_models", ())) or None
    words = {"exposure": found.exposure, "purpose": found.purpose, **texts, **limits}
    return {name: str(text) for name, text in words.items() if text is not None}
