"""The appliance as it was after an entry or at a time: one kind of thing at a time, a page at a time."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.words import unknown_word
from appliance.domain.queries.rows import MODELS
from appliance.errors import BadInput
from appliance.web.console.auditors.log import parse_moment
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.queries.questions import things_as_of

THINGS = 20
"""On a page: each is shown whole, and an adapter has all of its reviews."""


class PastQuery(Query):
    """`at`: an entry's number, a time or a day, whose end is meant; without it now. `past`: the last id before this
    page."""

    at: str | None = None
    kind: str = "release"
    past: str | None = None


class Thing(Value):
    id: str
    since: int
    """The entry after which it is as it is."""
    value: dict[str, Any]


class Past(Value):
    as_of: int
    time: str
    size: int
    kind: str
    kinds: tuple[str, ...]
    things: tuple[Thing, ...]
    next: str | None


def past(context: Context, viewer: Viewer, query: PastQuery) -> Past:
    kinds = tuple(sorted(MODELS))
    if query.kind not in kinds:
        raise BadInput(unknown_word("kind", query.kind, kinds, "a kind of thing"))
    at = query.at if query.at is None or query.at.isdecimal() else parse_moment(query.at, "at", end_of_day=True)
    found = things_as_of(context, at, query.kind, query.past or "", THINGS + 1)
    things = found["things"]
    return Past(
        as_of=found["as_of"],
        time=found["time"],
        size=context.ledger.state.size,
        kind=query.kind,
        kinds=kinds,
        things=tuple(Thing(id=one["id"], since=one["since"], value=one["value"]) for one in things[:THINGS]),
        next=things[THINGS - 1]["id"] if len(things) > THINGS else None,
    )


def _table(value: Past) -> Table:
    return Table(("kind", "id", "since"), [[value.kind, thing.id, thing.since] for thing in value.things])


PAGE = Page("/past", "As it was", PEOPLE, PastQuery, past, "auditors/past.html", _table, group="Audit", symbol="past")
