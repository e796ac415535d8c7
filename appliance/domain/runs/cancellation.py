"""A run is cancelled."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.runs.conditions import UNDER_WAY, move, take_run


class Cancel(Order):
    verb = "cancel"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class RunCancelled(Ordered):
    type = "run.cancelled"


def may_cancel(state: State, order: Cancel, signer: Principal, now: Time) -> Reasons:
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = [] if signer.name == run.ordered_by else needs(signer, "administrator")
    if run.status not in UNDER_WAY:
        reasons.append(f"run {run.id}: expected one that waits or is running, got one that is {run.status}")
    return reasons


def run_cancelled(case: Case) -> Changes:
    order = case.order(Cancel)
    return move(case.state, take_run(case, order.run, *UNDER_WAY), "cancelled")


VERBS = (
    Verb(
        Cancel,
        may=may_cancel,
        signers=("who ordered it", "administrator"),
        meaning="The run stops, and its record says that you stopped it.",
        event=RunCancelled,
        apply=run_cancelled,
    ),
)
