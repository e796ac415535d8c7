"""A policy set compared with the one in force, before a person signs for its adoption or endorses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.domain.core.policy import parse_policy
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_changes import PolicyChange, describe_changes, differences
from appliance.domain.rulebook.proposals import Proposal
from appliance.errors import ApplianceError, Denied, TooMany
from appliance.web.console.core.page import Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.queries.policy_trial import SECONDS, Trial, try_policy


class Comparison(Value):
    """`changes` in words, and the text's `diff`. `trial`: recent decisions under the new set; None where `problem` says
    why it could not be tried."""

    changes: tuple[PolicyChange, ...]
    diff: tuple[str, ...]
    trial: Trial | None
    problem: str | None


class Trials:
    """One trial at a time of each person: a trial takes seconds of the processor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._people: set[str] = set()

    @contextmanager
    def of(self, person: str) -> Iterator[None]:
        """TooMany while another one of this person goes on."""
        with self._lock:
            if person in self._people:
                told = f"policy trial of {person}: expected one at a time, got another; wait until the first has ended"
                raise TooMany(told, retry_after_s=round(SECONDS))
            self._people.add(person)
        try:
            yield
        finally:
            with self._lock:
                self._people.discard(person)


def check_administrator(viewer: Viewer) -> None:
    """Denied for everybody else: a trial takes seconds of the processor, and only administrators adopt a set."""
    if not viewer.has("administrator"):
        held = ", ".join(viewer.roles) or "none"
        reason = f"role: expected {viewer.name} to be administrator, got {held}"
        raise Denied(
            "Adopting a policy set is for administrators: they compare it, try it, sign it and endorse it",
            reasons=(reason,),
        )


def compare_policies(context: Context, viewer: Viewer, proposal: Proposal, trials: Trials) -> Comparison | None:
    """Of an order to adopt a set; None for another order. Denied unless an administrator asks."""
    order = proposal.order
    if not isinstance(order, AdoptPolicy):
        return None
    check_administrator(viewer)
    with trials.of(viewer.name):
        return _compare(context, proposal, order)


def _compare(context: Context, proposal: Proposal, order: AdoptPolicy) -> Comparison:
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
