"""The page of the orders that its viewer may sign."""

from __future__ import annotations

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.action import Action
from appliance.domain.governance.countersignature import Countersign, WithdrawOrder
from appliance.domain.releases.reviews import list_delegations
from appliance.web.console.core.page import Page, PageValue, Query, Viewer
from appliance.workflows.core.context import LedgerContext


class ActionRow(PageValue):
    """An action that can be ordered. `here` is true if it can be signed in the browser."""

    action: str
    title: str
    group: str
    signers: tuple[str, ...]
    signed_by: str
    meaning: str
    here: bool
    countersigned: bool
    """True if it needs a second administrator."""


class Actions(PageValue):
    """The page of actions that can be ordered."""

    actions: tuple[ActionRow, ...]

    @property
    def groups(self) -> tuple[tuple[str, tuple[ActionRow, ...]], ...]:
        """The actions that the viewer may sign, by subject."""
        found = {name: tuple(row for row in self.actions if row.group == name) for name in GROUPS.values()}
        return tuple((name, rows) for name, rows in found.items() if rows)


GROUPS = {
    "data": "Data",
    "runs": "Training",
    "releases": "Reviews and releases",
    "serving": "Applications and tokens",
    "governance": "People, keys and policy",
    "retention": "Texts and holds",
}
"""Title of each subject that has actions."""


def actions(context: LedgerContext, viewer: Viewer, query: Query) -> Actions:
    """Return the actions that the viewer may sign by a role, as a delegate, or without a role."""
    rows = [
        ActionRow(
            action=row.name,
            title=row.title,
            group=GROUPS[row.order.__module__.split(".")[2]],
            signers=row.signers,
            signed_by=describe_signers(row.signers),
            meaning=row.description,
            here=row.has_form,
            countersigned=row.two_administrators is True,
        )
        for row in ACTIONS.values()
        if row.name not in _OF_WAITING_ORDERS and may_sign(context, viewer, row)
    ]
    return Actions(actions=tuple(rows))


def may_sign(context: LedgerContext, viewer: Viewer, action: Action) -> bool:
    """Return True if the viewer may sign such orders by a role, as a delegate, or without a role."""
    state = context.ledger.state
    if viewer.may_sign(action.signers) or _RELATIONS & set(action.signers):
        return True
    return "a delegate" in action.signers and bool(list_delegations(state, viewer.name, context.now(state)))


_OF_WAITING_ORDERS = {Countersign.action, WithdrawOrder.action}
"""Actions that begin on the page of waiting orders."""
_RELATIONS = {"the key's owner", "who ordered it", "who signed it"}
"""Signers that are not roles."""
_SIGNER_WORDS = {
    "reviewer:FUNCTION": "a reviewer",
    "any reviewer": "a reviewer",
    "release-owner:UNIT": "a release owner of the unit",
    "who ordered it": "the person who ordered it",
    "who signed it": "the person who signed it",
    "the unit": "the unit",
    "the key's owner": "the key's owner",
    "a delegate": "a delegate of a reviewer",
}


def describe_signers(signers: tuple[str, ...]) -> str:
    """Return who may sign an order, in words."""
    words = [_SIGNER_WORDS.get(one) or f"{'an' if one[0] in 'aeio' else 'a'} {one}" for one in signers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


PAGE = Page("/sign", "Sign an order", actions, group="Orders", symbol="seal")
