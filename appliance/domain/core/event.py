"""What every type of entry has: a body, and the roles of the documents that it binds.

Bodies hold what the service found or decided; what a person asked for is in the order, which is a document.
"""

from __future__ import annotations

from typing import ClassVar

from appliance.domain.core.entry import Outcome
from appliance.domain.core.names import SERVICE, Canonical, Commitment, Digest


class Event(Canonical):
    """The body of one type of entry, and the roles of the documents that the entry binds."""

    type: ClassVar[str]
    documents: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    outcomes: ClassVar[tuple[Outcome, ...]] = ("success",)
    sets_time: ClassVar[bool] = False
    """Whether its entry may have an earlier time than the one before it."""

    def about(self) -> tuple[str, ...]:
        """The subjects that the body itself names."""
        return ()

    def named(self) -> tuple[str, ...]:
        """The same, each once: made once for a value that never changes."""
        known: tuple[str, ...] | None = self.__dict__.get("_named")
        if known is None:
            known = self.__dict__["_named"] = tuple(dict.fromkeys(self.about()))
        return known

    @property
    def actor(self) -> str | None:
        """Who must stand as the entry's actor; None where the rule takes it from a document."""
        return SERVICE


class Failed(Event):
    """Something ended badly; `message` says why, as a text of its own that can be erased."""

    outcomes = ("failure",)
    message: Commitment


class Ordered(Event):
    """An entry that was made because a person signed; `policy` names the set whose site policies allowed it."""

    documents: ClassVar[tuple[str, ...]] = ("order",)
    policy: Digest

    @property
    def actor(self) -> str | None:
        return None


class Endorsed(Ordered):
    """Needs two administrators: `order` endorses the one in `endorsed`, except where the site has a single one."""

    optional = ("endorsed",)
