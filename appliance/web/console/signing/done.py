"""The page after an order was signed: what it did, what happens next, and who is needed."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.order import Order
from appliance.domain.data.imports import ImportDataset, ImportValidationSet
from appliance.domain.governance.countersignature import Countersign, list_countersigners, list_waiting_orders
from appliance.domain.governance.invitations import EnrolWithPasskey, Invite
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.queries.pending import list_pending
from appliance.domain.releases.adapters import AdapterOrder
from appliance.domain.runs.control import Resume
from appliance.domain.runs.training import Train
from appliance.errors import NotFound
from appliance.formats.core.fields import MAX_DECIMAL
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.page import Page, PageValue, Query, Viewer
from appliance.web.console.home.home import path_of
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.people import find_effect, find_withdrawal

_PAGES = {
    "adapter": "/adapters/",
    "run": "/runs/",
    "dataset": "/datasets/",
    "validation-set": "/validation-sets/",
    "base": "/bases/",
    "principal": "/people/",
}
"""Beginning of the address of the page about a subject of an entry, by the subject's kind."""
_AFTER = {
    ImportDataset.action: ("Imports", "/imports"),
    ImportValidationSet.action: ("Imports", "/imports"),
    AdoptPolicy.action: ("Policy", "/policy"),
}
"""Title and address of the page on which the work of an action is followed."""
_READING = "The service now reads and checks the file. Imports shows when it has finished. "
_IMPORTED = {
    ImportDataset.action: _READING + "Then the new version is listed under Bases and datasets, and runs can be trained "
    "on it.",
    ImportValidationSet.action: _READING + "Then the new version is listed under Bases and datasets. Its page says how "
    "an operator has runs evaluated on it.",
}
"""Work of the service that follows the order of an import, by its action."""
_RUN_FOLLOWS = {
    "waiting": "The run starts when it is authorised.",
    "queued": "The run starts by itself when the runs before it have ended. Its page shows how far it is.",
    "running": "The run has started. Its page shows how far it is.",
}
"""Work that follows an order to train or to resume, by the status of its run."""


class SignedQuery(Query):
    """The entry of a signed order."""

    index: int = Field(ge=0, le=MAX_DECIMAL)


class NextStep(PageValue):
    """A step that comes next: its kind and words, the page where it is done, and the people who can do it."""

    kind: str
    text: str
    path: str
    people: tuple[str, ...]


class OpenAddress(PageValue):
    """The invitation whose address the script shows to its signer once. `secret` is the digest of the secret."""

    secret: str
    name: str
    until: str


class OrderResult(PageValue):
    """A signed order: what it did, and what waits because of it.

    `waits` is true for an order that needs a second administrator, `waits_until` is set while one can sign, and
    `countersigners` are those who can.
    """

    index: int
    title: str
    signer: str
    meaning: str
    about: tuple[str, ...]
    """Subjects of the order, such as `adapter clauses@1`."""
    waits: bool
    effect: int | None
    """The entry by which an order that waited took effect."""
    withdrawn: int | None
    """The entry by which its signer withdrew it."""
    waits_until: str | None
    countersigners: tuple[str, ...]
    invitation: OpenAddress | None
    countersigned: str | None
    """Title of the order of the other administrator, if this one countersigned it."""
    follows: str
    """Work that the service does because of it, or ""."""
    next: tuple[NextStep, ...]
    pages: tuple[tuple[str, str], ...]
    """Subjects of the order that have a page, with its address."""


def signed(context: LedgerContext, viewer: Viewer, query: SignedQuery) -> OrderResult:
    """Return the page about a signed order.

    Raises: NotFound if the entry is not that of an accepted order.
    """
    state = context.ledger.state
    if query.index >= state.size:
        raise NotFound(f"entry {query.index}: expected one of the log's {state.size} entries, got none")
    entry = parse_entry(context.ledger.entry_bytes(query.index))
    order = _order_of(context, entry, "order")
    other = _order_of(context, entry, "countersigned") if isinstance(order, Countersign) else None
    meant, now = other or order, context.now(state)
    waiting = {one.index: one for one in list_waiting_orders(state, now)}.get(entry.index)
    return OrderResult(
        index=entry.index,
        title=ACTIONS[meant.action].title,
        signer=order.signer,
        meaning=ACTIONS[meant.action].explain(meant),
        about=tuple(_name_subject(one) for one in meant.about() if "sha256:" not in one),
        waits=entry.outcome == "pending",
        effect=find_effect(context, _digest_of(entry)) if entry.outcome == "pending" else None,
        withdrawn=find_withdrawal(context, _digest_of(entry)) if entry.outcome == "pending" else None,
        waits_until=None if waiting is None else waiting.expires_at,
        countersigners=list_countersigners(state, order) if waiting is not None else (),
        invitation=_open_address(order, viewer),
        countersigned=None if other is None else other.signer,
        follows="" if entry.outcome == "pending" else _describe_work(context, meant, entry),
        next=_next_steps(context, meant, entry, now),
        pages=() if entry.outcome == "pending" else _pages(context, meant, entry),
    )


def _name_subject(subject: str) -> str:
    """Return a subject of an order in words, such as `validation set exam`."""
    kind, _, name = subject.removeprefix("principal:").partition(":")
    return f"{kind.replace('-', ' ')} {name}" if name else kind


def _describe_work(context: LedgerContext, order: Order, entry: Entry) -> str:
    """Return what the service does because of an accepted order, or whom to tell, or "" for neither."""
    if isinstance(order, EnrolWithPasskey):
        return f"Tell {order.principal} to open this console, to type the name {order.principal}, and to sign in."
    if order.action in _IMPORTED:
        row = context.ledger.state.imports.get(_digest_of(entry))
        return _IMPORTED[order.action] if row is None or row.status == "requested" else ""
    runs = [order.run] if isinstance(order, Resume) else _runs_of(context, entry)
    found = [context.ledger.state.runs.get(run) for run in runs]
    return next((_RUN_FOLLOWS.get(run.status, "") for run in found if run is not None), "")


def _open_address(order: Order, viewer: Viewer) -> OpenAddress | None:
    if not isinstance(order, Invite) or order.signer != viewer.name:
        return None
    return OpenAddress(secret=order.secret, name=order.principal, until=order.until)


def _order_of(context: LedgerContext, entry: Entry, role: str) -> Order:
    documents = context.ledger.documents_of(entry.index)
    if role not in documents or entry.outcome not in ("success", "pending"):
        raise NotFound(f"entry {entry.index}: expected one of an accepted order, got {entry.type}")
    return ORDERS.parse(parse_envelope(documents[role]).payload)


def _next_steps(context: LedgerContext, order: Order, entry: Entry, now: str) -> tuple[NextStep, ...]:
    """Return the pending items about the order's subjects, each with the people who have it on their first page.

    After an order that can stop releases they include those that do not serve.
    """
    state = context.ledger.state
    subjects = dict.fromkeys((*entry.subjects, *(f"run:{run}" for run in _runs_of(context, entry))))
    if entry.outcome == "success" and ACTIONS[order.action].recheck_slots:
        subjects |= dict.fromkeys(f"release:{key}" for key, _ in state.releases.items())
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in state.principals.values():
        for item in list_pending(state, now, row.name, subjects=subjects):
            found.setdefault((item.kind, item.text, path_of(item)), []).append(row.name)
    return tuple(
        NextStep(kind=kind, text=text, path=path, people=tuple(sorted(people)))
        for (kind, text, path), people in found.items()
    )


def _pages_of(context: LedgerContext, entry: Entry) -> list[tuple[str, str]]:
    """Return the pages about the entry's subjects, and about the run that the order asked for."""
    state = context.ledger.state
    # An invited person has no page yet, and a name without a version is that of an import.
    known: dict[str, Callable[[str], object]] = {
        "principal": state.principals.get,
        "dataset": state.datasets.get,
        "validation-set": state.validation_sets.get,
    }
    found = [
        (_name_subject(f"{kind}:{name}"), f"{_PAGES[kind]}{name}")
        for kind, _, name in (subject.partition(":") for subject in entry.subjects)
        if kind in _PAGES and (kind not in known or known[kind](name) is not None)
    ]
    return [*((f"run {run}", f"/runs/{run}") for run in _runs_of(context, entry)), *found]


def _runs_of(context: LedgerContext, entry: Entry) -> list[str]:
    """Return the run that the entry's order asked for, or nothing."""
    digest = _digest_of(entry)
    return [run.id for run in context.ledger.state.runs.values() if run.order == digest]


def _digest_of(entry: Entry) -> str:
    return next((one.removeprefix("order:") for one in entry.subjects if one.startswith("order:")), "")


def _list_releases(context: LedgerContext, order: Order) -> list[tuple[str, str]]:
    """Return the pages of the releases that the order's adapter serves for the order's unit."""
    unit, adapter = getattr(order, "unit", None), order.name if isinstance(order, AdapterOrder) else None
    return [
        (f"{one.served_model} for {one.unit}", f"/releases/{one.unit}/{one.served_model}")
        for one in context.ledger.state.releases.values()
        if (one.unit, one.current.adapter) == (unit, adapter)
    ]


def _pages(context: LedgerContext, order: Order, entry: Entry) -> tuple[tuple[str, str], ...]:
    found = [*_list_releases(context, order), *_pages_of(context, entry)]
    if isinstance(order, Train) and order.sweep is not None:
        found = [*found[:1], (f"sweep {order.sweep}", f"/sweeps/{order.sweep}"), *found[1:]]
    if order.action in _IMPORTED:
        made = _digest_of(entry)
        state = context.ledger.state
        versions = [("dataset", key) for key, one in state.datasets.items() if one.order == made]
        versions += [("validation-set", key) for key, one in state.validation_sets.items() if one.order == made]
        found = [*((_name_subject(f"{kind}:{name}"), f"{_PAGES[kind]}{name}") for kind, name in versions), *found]
    if order.action in _AFTER:
        found = [_AFTER[order.action], *found]
    return tuple(dict.fromkeys(found))


PAGE = Page("/signed/{index}", "Signed", signed)
