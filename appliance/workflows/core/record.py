"""Functions that append events to the ledger, and the effects that the service performs for an order."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack

from appliance.domain.actions.apply import Signed, parse_body, subjects_of
from appliance.domain.core.entry import EntryDraft, Event, Outcome
from appliance.domain.core.order import Order
from appliance.domain.core.state import State
from appliance.errors import Conflict
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.store.ledger.queue import AppendedEntry, Guard
from appliance.workflows.core.context import Context, LedgerContext

MAX_MESSAGE = 2_000
"""Most characters of a concealed text."""


class EntryFields(TypedDict, total=False):
    """Fields of an entry beside its body, given where they differ from the default."""

    actor: str
    source: str
    outcome: Outcome
    documents: Mapping[str, bytes]
    orders: tuple[Signed, ...]
    disclosures: tuple[Disclosure, ...]
    erased: tuple[str, ...]


def draft_of(body: Event, **fields: Unpack[EntryFields]) -> EntryDraft:
    """Return a draft of an entry for the event, filed under all subjects of the event and its orders."""
    return EntryDraft(
        type=body.type,
        actor=body.actor or fields.get("actor", "service"),
        source=fields.get("source", "service"),
        subjects=subjects_of(body, fields.get("orders", ())),
        outcome=fields.get("outcome", body.outcomes[0]),
        documents=fields.get("documents", {}),
        body=body,
        disclosures=fields.get("disclosures", ()),
        erased=fields.get("erased", ()),
    )


def append(
    context: LedgerContext, body: Event, *, guard: Guard | None = None, **fields: Unpack[EntryFields]
) -> AppendedEntry:
    """Append one entry durably and return it.

    Raises:
        Denied: The rules refuse the entry; nothing is written.
    """
    (appended,) = append_all(context, [draft_of(body, **fields)], guard=guard)
    return appended


def append_all(
    context: LedgerContext, drafts: Sequence[EntryDraft], *, guard: Guard | None = None
) -> list[AppendedEntry]:
    """Append all entries in one durable commit, or none."""
    context.contact.check()
    if context.process is not None:
        drafts = [_name_source(draft, context.process) for draft in drafts]
    appended = context.ledger.append_all(drafts, guard=guard)
    for item in appended:
        context.appended(item.entry, parse_body(item.entry))
    return appended


class LogMoved(Conflict):
    """An error: other entries were appended between a proof over the log and the entry that has it."""


_ATTEMPTS = 100
"""Most attempts to append an entry with a proof while other entries come in between."""


def append_at_head(context: LedgerContext, what: str, add: Callable[[int], AppendedEntry]) -> AppendedEntry:
    """Call `add` with the size of the log until no other entry comes in between.

    `add` appends an entry under the guard `require_size`.

    Raises:
        Conflict: Other entries kept coming in between.
    """
    for _ in range(_ATTEMPTS):
        with suppress(LogMoved):
            return add(context.ledger.state.size)
    raise Conflict(f"{what}: expected no other entry in between, got some; try again")


def require_size(state: State, size: int) -> None:
    """Raise LogMoved if the log has another size."""
    if state.size != size:
        raise LogMoved(f"log: expected size {size}, got {state.size}")


def _name_source(draft: EntryDraft, process: str) -> EntryDraft:
    """Name this process as the source of an entry that the service makes by itself."""
    return replace(draft, source=f"service:{process}") if draft.source == "service" else draft


def conceal(text: str) -> Disclosure:
    """Return the text with a fresh salt, so that an entry can hold its commitment and the text can be erased.

    A worker chooses the names of its files, and a person chooses the field names of uploaded rows. So the text may
    contain invalid Unicode or NUL characters, which databases refuse. They are replaced, because a failure must always
    be recorded.
    """
    plain = text[:MAX_MESSAGE].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
    return disclose(plain, secrets.token_bytes(32))


@dataclass(frozen=True)
class Effect:
    """The work that the service does for an order besides recording it."""

    order: type[Order]
    ready: Callable[[Context, Any, str], None] | None = None
    """Function of (context, order, order's digest). It raises if the service lacks what the order needs. It is called
    before the lock of orders is taken, because it may read the disk. Its error is raised once the order is decided.
    """
    attached: Callable[[Context, Any, bytes], None] | None = None
    """Function of (context, order, document). It raises if the document beside the order could not take effect here.
    It is called once before the lock of orders is taken and once under it, so the second call has to be quick.
    """
    fields: Callable[[LedgerContext, Any, int], Mapping[str, object]] | None = None
    """Function of (context, order, size). It returns the fields of the order's event that only the ledger has, for a
    log of that size.
    """
    start: Callable[[Context, Any, str], None] | None = None
    """Function of (context, order, order's digest). It is called after the append and starts the ordered work."""
    local: bool = False
    """True if the process that received the order does the work, since only that process has the files sent for it."""


def lease_of(order: str) -> str:
    """Return the name of the lease of the process that does the work of this order."""
    return f"order:{order}"
