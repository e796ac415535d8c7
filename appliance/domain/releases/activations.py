"""Releases: which adapter answers a unit's task, and the way back to an earlier one."""

from __future__ import annotations

from typing import Literal

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Identifier, Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.serving import Activation, Release, release_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.releases.adapters import OnAdapter, find_adapter
from appliance.domain.releases.approval import conditions_against, inadmissible


class OnRelease(OnAdapter):
    unit: Identifier
    task: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}", f"task:{self.task}")


class Activate(OnRelease):
    """`adds_instruction`: where a request has no system message, the service puts in the dataset's instruction."""

    verb = "activate"
    adds_instruction: bool


class RollBack(OnRelease):
    """To an adapter that answered this task before."""

    verb = "roll-back"
    adds_instruction: bool


class ReleaseActivated(Ordered):
    type = "release.activated"


class ReleaseRolledBack(Ordered):
    type = "release.rolled-back"


def may_activate(state: State, order: Activate | RollBack, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, f"release-owner:{order.unit}")
    if signer.name == adapter.ordered_by:
        reasons.append(f"separation of duties: expected a release owner who did not order the run, got {signer.name}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    if order.adds_instruction:
        reasons += instruction_is_there(state, adapter)
    reasons += inadmissible(state, adapter, order.unit, now)
    return reasons + conditions_against(state, adapter, order.unit, order.task, now)


def instruction_is_there(state: State, adapter: Adapter) -> Reasons:
    """The text that a release would put into requests: it was not erased."""
    dataset = state.datasets.get(adapter.dataset)
    text = None if dataset is None else state.texts.get(dataset.instruction)
    if text is not None and text.erased is not None:
        return [f"instruction of dataset {adapter.dataset}: expected its text, got one erased by entry {text.erased}"]
    return []


def _meaning(order: Activate | RollBack) -> str:
    again = " again" if isinstance(order, RollBack) else ""
    which = "this earlier adapter" if again else "this adapter under this task's name"
    added = (
        " Where a request has no system message, it gets the dataset's instruction." if order.adds_instruction else ""
    )
    return f"From now on the unit's clients are answered by {which}{again}.{added}"


def may_roll_back(state: State, order: RollBack, signer: Principal, now: Time) -> Reasons:
    reasons = may_activate(state, order, signer, now)
    release = state.releases.get(release_key(order.unit, order.task))
    earlier = [] if release is None else [a.adapter for a in release.history]
    if release is not None and release.current.adapter == order.name:
        reasons.append(f"adapter: expected an earlier one than today's, got {order.name}")
    elif order.name not in earlier:
        reasons.append(f"adapter: expected one that answered {order.unit}/{order.task} before, got {order.name}")
    return reasons


def activated(case: Case) -> Changes:
    return _release(case, case.order(Activate), "activate")


def rolled_back(case: Case) -> Changes:
    return _release(case, case.order(RollBack), "roll-back")


def _release(case: Case, order: Activate | RollBack, kind: Literal["activate", "roll-back"]) -> Changes:
    key = release_key(order.unit, order.task)
    before = case.state.releases.get(key)
    activation = Activation(
        index=case.entry.index,
        order=case.accepted.digest,
        adapter=order.name,
        manifest=order.manifest,
        signer=order.signer,
        keyid=case.accepted.keyid,
        kind=kind,
        adds_instruction=order.adds_instruction,
    )
    history = (() if before is None else before.history) + (activation,)
    return [(case.state.releases, key, Release(unit=order.unit, task=order.task, history=history))]


VERBS = (
    Verb(
        Activate,
        may=may_activate,
        signers=("release-owner:UNIT",),
        meaning=_meaning,
        summary="An approved adapter answers the unit's clients under a task's name.",
        event=ReleaseActivated,
        apply=activated,
        changes_answers=True,
    ),
    Verb(
        RollBack,
        may=may_roll_back,
        signers=("release-owner:UNIT",),
        meaning=_meaning,
        summary="An adapter that answered this task before answers it again.",
        event=ReleaseRolledBack,
        apply=rolled_back,
        changes_answers=True,
    ),
)
