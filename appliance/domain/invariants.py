"""The invariants: who may do what. Each rule returns its reasons against; no reason means allowed.

Site policies (access) may only tighten what stands here. `now` is the entry's time: the later of the clock and the last
entry.
"""

from __future__ import annotations

from appliance.domain import governing_invariants, making_invariants
from appliance.domain.approval import Reasons
from appliance.domain.names import Time
from appliance.domain.orders import Order
from appliance.domain.state import State

RULES = {**governing_invariants.RULES, **making_invariants.RULES}


def reasons_against(state: State, order: Order, now: Time) -> Reasons:
    """Everything that stands against an authentic order; empty when it is allowed."""
    signer = state.principals.get(order.signer)
    if signer is None or signer.revoked is not None:
        return [f"signer: expected a standing principal, got {order.signer}"]
    return RULES[type(order)](state, order, signer, now)
