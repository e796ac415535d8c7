"""The pages of the last checkpoint with its witnesses, and of the state at a time."""

from __future__ import annotations

from appliance.api.log import StateRow
from appliance.api.operations import WitnessRow
from appliance.domain.core.records.site import LogKey
from appliance.domain.core.words import unknown_word
from appliance.domain.queries.rows import MODELS
from appliance.errors import BadInput
from appliance.formats.core.timestamp import parse_point
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.web.console.core.page import Page, PageValue, Query, Viewer, columns
from appliance.web.console.core.render import LogCondition, find_log_condition
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.operations.status import describe_witness
from appliance.workflows.queries.questions import state_as_of


class CheckpointPage(PageValue):
    """The page of the last checkpoint."""

    log: LogCondition
    note: str
    size: int
    root: str
    quorum: int
    lifetime_s: int
    witnesses: tuple[WitnessRow, ...]
    log_keys: tuple[LogKey, ...]


def checkpoint(context: LedgerContext, viewer: Viewer, query: Query) -> CheckpointPage:
    """Return the last checkpoint, and what each witness has cosigned."""
    note = context.ledger.checkpoint()
    parsed = parse_checkpoint(parse_note(note).text)
    state = context.ledger.state
    now, rules = context.now(state), state.parameters
    return CheckpointPage(
        log=find_log_condition(context),
        note=note.decode("utf-8"),
        size=parsed.size,
        root=f"sha256:{parsed.root.hex()}",
        quorum=rules.witness_quorum,
        lifetime_s=rules.witness_lifetime_s,
        witnesses=tuple(describe_witness(state, vkey, now) for vkey in rules.witnesses),
        log_keys=tuple(state.site.log_keys),
    )


CHECKPOINT_PAGE = Page("/checkpoint", "Log checkpoint", checkpoint, columns("witnesses"), group="Audit", symbol="seal")


MOST_ROWS = 20
"""Number of objects on a page. Each is shown as a whole; an adapter has all of its reviews."""


class StateAtQuery(Query):
    """A moment `at`: an entry's number, a time, or the end of a day; without it, now.

    `after` is the last id on the previous page.
    """

    at: str | None = None
    kind: str = "release"
    after: str | None = None


class StateAtPage(PageValue):
    """The objects of one kind at a moment."""

    as_of: int
    time: str
    size: int
    kind: str
    kinds: tuple[str, ...]
    rows: tuple[StateRow, ...]
    next: str | None


def state_at(context: LedgerContext, viewer: Viewer, query: StateAtQuery) -> StateAtPage:
    """Return the objects of a kind as they were at a moment.

    Raises: BadInput for an unknown kind or an unreadable moment.
    """
    kinds = tuple(sorted(MODELS))
    if query.kind not in kinds:
        raise BadInput(unknown_word("kind", query.kind, kinds, "a kind of object"))
    at = parse_point(query.at, "at", context.clock(), end_of_day=True)
    found = state_as_of(context, at, (query.kind,), past=query.after or "", limit=MOST_ROWS + 1)
    rows = found.rows
    return StateAtPage(
        as_of=found.as_of,
        time=found.time,
        size=context.ledger.state.size,
        kind=query.kind,
        kinds=kinds,
        rows=rows[:MOST_ROWS],
        next=rows[MOST_ROWS - 1].id if len(rows) > MOST_ROWS else None,
    )


_COLUMNS = ("kind", "id", "since")
"""Columns of the table of objects."""
STATE_AT_PAGE = Page(
    "/past", "State at a time", state_at, columns("rows", *_COLUMNS), group="Audit", symbol="past", is_search=True
)
