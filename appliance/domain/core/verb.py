"""One row of the rulebook: what is known of a verb, and of an event that no order asks for.

Each row is declared where its subject is, beside the order, the event and the functions that it names. `rulebook`
collects the rows; nothing else lists verbs or events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.order import Order
from appliance.domain.core.roles import Reasons
from appliance.domain.core.signatures import Accepted
from appliance.domain.core.state import State

NEWEST_RULES = 1
"""The rules version that this build knows best (docs/adr/0014-versions-of-meaning.md). A log is judged by
version 1, until two administrators put a later one in force."""

Rule = Callable[[Case], Changes]
"""How an entry of one type changes the state; raises where it must not stand."""

Invariant = Callable[..., Reasons]
"""(state, order, signer, now) to every reason against the order; none means allowed."""


@dataclass(frozen=True)
class Attachment:
    """A document that its sender puts beside an order, and that the order binds by digest in the member `role`."""

    role: str
    check: Callable[[Case, Any, bytes], None]
    """(case, order, document): raises where the document is not what the order binds, or not what it must be."""
    optional: bool = False
    """The order's member can be null; then there is no document."""

    def of(self, order: Order) -> bool:
        """Whether this order binds one."""
        return not self.optional or getattr(order, self.role) is not None


@dataclass(frozen=True)
class Verb:
    """What a person can order. Only `endorse` has no event of its own: it makes the endorsed order's event stand."""

    order: type[Order]
    may: Invariant
    meaning: str | Callable[[Any], str]
    """What the signature means, shown before signing (21 CFR 11.50); a function of the order where it depends on the
    order."""
    signers: tuple[str, ...]
    """Who may sign it as far as `may` asks for a role: roles, and relations to what the order is about. For readers
    (docs/reference/verbs.md); `may` decides, and a test compares both."""
    summary: str = ""
    """What an order of it does, for a reader who chooses one; empty where `meaning` is one text and says it."""
    event: type[Ordered] | None = None
    apply: Rule | None = None
    two_administrators: bool = False
    """It changes who has power or what can be known, so that it waits for a second administrator's endorsement."""
    attachment: Attachment | None = None
    changes_answers: bool = False
    """After it, every slot and every run under way is asked again whether it may go on."""
    body: Callable[[State], Mapping[str, object]] | None = None
    """Members of the event beside `policy`, from the state before it."""
    evidence: Callable[[State, Accepted], Mapping[str, bytes]] | None = None
    """Documents that the service puts beside the order, by role; the rule compares them."""
    since: int = 1
    """The rules version from which this row counts; an earlier row of the verb counts for entries before it."""

    @property
    def name(self) -> str:
        return self.order.verb

    def attachment_of(self, order: Order) -> Attachment | None:
        """What must lie beside this order."""
        return self.attachment if self.attachment is not None and self.attachment.of(order) else None

    @property
    def title(self) -> str:
        """Its name as words."""
        return self.name.replace("-", " ").capitalize()

    @property
    def told(self) -> str:
        """What an order of it does, before any is filled in."""
        return self.meaning if isinstance(self.meaning, str) else self.summary

    def means(self, order: Order) -> str:
        return self.meaning if isinstance(self.meaning, str) else self.meaning(order)


@dataclass(frozen=True)
class EventRule:
    """An event that the service records by itself, and how it changes the state."""

    event: type[Event]
    apply: Rule
    since: int = 1
    """The rules version from which this row counts; an earlier row of the event counts for entries before it."""


def unchanged(case: Case) -> Changes:
    """The rule of an event that changes nothing: it is only remembered."""
    return []
