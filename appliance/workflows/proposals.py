"""Proposals of orders that a person signs in a browser, made from the person's input and the state.

The client's commands make the same orders from proved entries. Here the service looks the values up, and the person
sees every value before they sign. Values `auto` of a recipe are resolved here (docs/adr/0003).
"""

from __future__ import annotations

import secrets
from typing import Any

from appliance.domain.actions.proposals import Proposal, make_proposal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.lookup import Artifact, Kind, OrderInput, ProvenValue, TrainingFacts, UnprovenValue
from appliance.domain.core.policy import Parameters
from appliance.domain.core.state import State, Table
from appliance.domain.releases.requests import find_current_request
from appliance.workflows.core.context import RunContext
from appliance.workflows.queries.work import recipe_facts
from appliance.workflows.releases.review import find_adapter


class StateLookup:
    """A `Lookup` that reads the service's state and machine."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    @property
    def _state(self) -> State:
        return self._context.ledger.state

    def find_artifact(self, kind: Kind, name: str) -> ProvenValue[Artifact]:
        state = self._state
        if kind == "adapter":
            adapter = find_adapter(state, name)
            return ProvenValue(Artifact(adapter.manifest, adapter.verdict))
        tables: dict[str, Table[Any]] = {"base": state.bases, "dataset": state.datasets}
        tables["validation-set"] = state.validation_sets
        return ProvenValue(Artifact(tables[kind].require(name).digest))

    def find_request(self, adapter: str, unit: str) -> ProvenValue[str] | None:
        request = find_current_request(self._state, find_adapter(self._state, adapter), unit)
        return None if request is None else ProvenValue(request.order)

    def read_parameters(self) -> ProvenValue[Parameters]:
        return ProvenValue(self._state.parameters)

    def read_training_facts(self, base: str, dataset: str) -> UnprovenValue[TrainingFacts]:
        return UnprovenValue(recipe_facts(self._context, base, dataset).for_orders)


def propose(context: RunContext, signer: str, action: str, given: OrderInput) -> Proposal:
    """Return the proposal of an order.

    Raises:
        NotFound: A value names something that the state does not have.
        BadInput: A value is malformed.
    """
    state = context.ledger.state
    return make_proposal(
        ACTIONS[action].order,
        given,
        StateLookup(context),
        origin=state.site.origin,
        signer=signer,
        lifetime_s=state.parameters.order_lifetime_s,
        now=context.now(state),
        draw=secrets.token_bytes,
    )
