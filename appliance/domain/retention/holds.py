"""Legal holds: no text about their subject is erased."""

from __future__ import annotations

from typing import Annotated

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed, Ordered
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import Hold
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.core.words import form


class PlaceHold(Order):
    """A legal hold: no text about the subject is erased while it is in force."""

    verb = "place-hold"
    subject: Annotated[str, form(r"^[a-z-]{1,20}:[a-z0-9@-]{1,100}$", "KIND:NAME such as adapter:clauses@1")]

    def subjects(self) -> Subjects:
        return self._self(self.subject)


class LiftHold(PlaceHold):
    verb = "lift-hold"


class HoldPlaced(Ordered):
    type = "hold.placed"


class HoldLifted(Endorsed):
    type = "hold.lifted"


def keeps(held: str, subjects: tuple[str, ...]) -> bool:
    """A hold on a name keeps what is about any version of it; on a version also what is about the name alone, as the
    order is that imported it."""
    name, _, version = held.partition("@")
    return any(subject in (held, name) or (not version and subject.startswith(f"{name}@")) for subject in subjects)


def is_known(state: State, subject: str) -> bool:
    """Whether the log knows what a hold is placed on. Otherwise the hold would keep nothing, without an error."""
    kind, _, name = subject.partition(":")
    match kind:
        case "principal" | "unit":
            return name in state.principals
        case "base" | "dataset" | "validation-set":
            known = name in (state.validation_sets if kind == "validation-set" else state.datasets)
            return known or any(row.subject == subject for row in state.imports.values())
        case "adapter":
            return name in state.adapters or any(run.name == name for run in state.runs.values())
        case "run":
            return name in state.runs
        case "task":
            return any(release.task == name for release in state.releases.values())
    return False


def may_place_hold(state: State, order: PlaceHold, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator", "auditor")
    if (hold := state.holds.get(order.subject)) is not None:
        reasons.append(f"hold: expected none on {order.subject}, got that of entry {hold.index}")
    if not is_known(state, order.subject):
        kinds = "principal, unit, base, dataset, validation-set, adapter, run or task"
        reasons.append(f"hold: expected a {kinds} that the log knows, got {order.subject}")
    return reasons


def may_lift_hold(state: State, order: LiftHold, signer: Principal, now: Time) -> Reasons:
    missing = [] if order.subject in state.holds else [f"hold: expected one on {order.subject}, got none"]
    return needs(signer, "administrator") + missing


def hold_placed(case: Case) -> Changes:
    order = case.order(PlaceHold)
    hold = Hold(subject=order.subject, order=case.accepted.digest, signer=order.signer, index=case.entry.index)
    return [(case.state.holds, order.subject, hold)]


def hold_lifted(case: Case) -> Changes:
    return [(case.state.holds, case.order(LiftHold).subject, None)]


VERBS = (
    Verb(
        PlaceHold,
        may=may_place_hold,
        signers=("administrator", "auditor"),
        meaning="No text of an entry about this subject is erased while the hold is in force.",
        event=HoldPlaced,
        apply=hold_placed,
    ),
    Verb(
        LiftHold,
        may=may_lift_hold,
        signers=("administrator",),
        meaning="Texts about this subject may be erased again, when their retention has ended.",
        event=HoldLifted,
        apply=hold_lifted,
        two_administrators=True,
    ),
)
