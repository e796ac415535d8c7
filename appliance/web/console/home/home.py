"""The first page: the viewer's pending items, what they can do, and the condition of the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from appliance.domain.core.state import State
from appliance.domain.governance.passkeys import list_passkeys
from appliance.domain.queries import pending
from appliance.domain.queries.alarms import Alarm, find_alarms
from appliance.domain.queries.pending import PendingItem, list_pending
from appliance.domain.releases.approval import find_release_blockers
from appliance.domain.releases.reviews import list_delegations
from appliance.web.console.core.page import EVERYBODY, PAGE_ROWS, Page, PageValue, Query, Viewer
from appliance.web.console.core.render import link
from appliance.web.operations.notifications import Waiting
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.measures import measure

LISTS = {
    pending.ORDER: "/orders",
    pending.INVITED: "/people",
    pending.AUTHORISE: "/runs?status=waiting",
    pending.REVIEW: "/reviews",
    pending.FINDING: "/home",
    pending.DECISION: "/home",
    pending.READY: "/candidates",
    pending.RELEASE: "/releases",
    pending.SUSPENSION: "/home",
    pending.ENDING: "/releases",
    pending.RENEW: "/home",
    pending.KEY: "/home",
    pending.FAILED: "/runs?status=failed",
    pending.PREVIEW: "/home",
}
"""Path of the page that lists all items of a kind. It contains no name."""


ALARM = "Alarm"
"""Kind of the items that are alarms."""
ALARMED = ("administrator", "operator")
"""Roles whose people see the alarms here and are notified of them."""


class Task(PageValue):
    """A line with the page where it is done. `urgent` marks one that keeps something from working."""

    kind: str
    text: str
    path: str
    urgent: bool = False


class HomeQuery(NamedTuple):
    """The state, time and viewer for which items are computed."""

    state: State
    now: str
    viewer: Viewer


def tasks_of(query: HomeQuery, most: int | None = None) -> Iterator[Task]:
    """Yield the viewer's pending items, at most `most` of each kind."""
    for item in list_pending(query.state, query.now, query.viewer.name, most):
        yield Task(kind=item.kind, text=item.text, path=path_of(item), urgent=item.urgent)


def alarm_tasks(context: LedgerContext, viewer: Viewer) -> Iterator[Task]:
    """Yield the alarms that are on, for administrators and operators."""
    if viewer.has(*ALARMED):
        for one in find_alarms(measure(context))[:_SHOWN]:
            yield Task(kind=ALARM, text=one.text, path="/health", urgent=one.severity == "critical")


def path_of(item: PendingItem) -> str:
    """Return the address of the page where an item is done."""
    kind, _, name = item.subject.partition(":")
    if item.kind == pending.READY:
        return link("/candidates", unit=item.unit)
    if item.kind == pending.INVITED:
        return "/people#invitations"
    if item.kind == pending.FINDING:
        return link(f"/adapters/{name}", tab="findings")
    return f"/orders#{name[7:19]}" if kind == "order" else f"{_PATHS[kind]}{name}"


_PATHS = {
    "adapter": "/adapters/",
    "preview": "/previews/",
    "principal": "/people/",
    "release": "/releases/",
    "run": "/runs/",
}
"""Beginning of the address of the page about a subject."""


def waiting_for_all(state: State, now: str, alarms: Iterable[Alarm] = ()) -> Iterator[tuple[str, list[Waiting]]]:
    """Yield each enrolled principal with their alarms and pending items, of which only the kind and list are sent."""
    raised = [Waiting(ALARM, "/health", f"{one.code} {one.subject}") for one in alarms]
    for principal in state.principals.values():
        if principal.revoked is None:
            items = [Waiting(one.kind, LISTS[one.kind], _key(one)) for one in list_pending(state, now, principal.name)]
            yield principal.name, (raised if any(map(principal.has, ALARMED)) else []) + items


def _key(item: PendingItem) -> str:
    """Return the identity of an item without its progress, so that a further approval does not make it new."""
    return f"{item.subject} {item.text.partition(':')[0]}"


_NO_BASE = Task(
    kind="Import a base",
    text="There is none yet. On the command line: appliance base import FILE --name NAME --licence LICENCE",
    path="/data",
)
_PASSKEY = Task(
    kind="Make a passkey",
    text="Without one, you can read here. With one, you can sign orders too.",
    path="/passkeys",
)
_BY_ROLE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "operator": (
        ("Import a dataset", "A file of rows to train on, up to 200 MB", "/sign/import-dataset"),
        ("Start training", "Choose a base and a dataset, and see the plan before you sign", "/sign/train"),
        ("Follow the runs", "The queue, and how far each run is", "/runs"),
    ),
    "validator": (
        ("Import a validation set", "Rows that adapters are evaluated on", "/sign/import-validation-set"),
        ("Look at adapters", "How each did on each set", "/adapters"),
    ),
    "reviewer": (
        ("Review", "Adapters that wait for a decision", "/reviews"),
        ("Look at adapters", "Every sealed adapter, with its decisions", "/adapters"),
    ),
    "release-owner": (
        ("Release", "What may be released, and what the rest still lacks", "/candidates"),
        ("Look at releases", "What serves each name, and until when", "/releases"),
    ),
    "administrator": (
        ("Invite a person", "They make a passkey in their browser; two administrators enrol it", "/sign/invite"),
        (
            "Add a person or unit",
            "With the proof of their key; a second administrator countersigns it",
            "/sign/enrol",
        ),
        ("Look at people", "Names, roles, keys and passkeys", "/people"),
        ("Change the policy", "Compare and try a policy set before you sign it", "/policy"),
        ("Check the service", "Its health, its storage, and what needs repair", "/health"),
    ),
    "recovery": (("Recover", "Name a new administrator, when too few have their keys", "/sign/recover-administrator"),),
    "auditor": (
        ("Search the log", "Every entry, with its documents and its proof", "/log"),
        ("See effective access", "What a unit could load at a time, and who approved it", "/effective-access"),
        ("Look at the checkpoint", "The signed state of the log, and its witnesses", "/checkpoint"),
    ),
    "unit": (
        ("Open the playground", "Send a text to an adapter that is released to you", "/ask"),
        ("Look at requests", "What was asked, and how each request ended", "/requests"),
        ("Look at limits", "What is left of your limits today", "/usage"),
    ),
}


def starts_of(query: HomeQuery) -> Iterator[Task]:
    """Yield what the viewer can do, with each address once."""
    viewer, state = query.viewer, query.state
    if viewer.has("operator") and not any(base.revoked is None for base in state.bases.values()):
        yield _NO_BASE
    rows = (row for kind in viewer.kinds for row in _BY_ROLE.get(kind, ()))
    for kind, text, path in {row[2]: row for row in rows}.values():
        yield Task(kind=kind, text=text, path=path)
    if not viewer.is_unit and not list_passkeys(state, viewer.name):
        yield _PASSKEY


_SHOWN = 8
"""Maximum items of a kind on this page. The linked page lists all of them."""


class Home(PageValue):
    """The first page."""

    tasks: tuple[Task, ...]
    current: tuple[Task, ...]
    """Work in progress, or, for a unit, its active releases. Nobody has to act on it."""
    starts: tuple[Task, ...]
    """Actions that the viewer can start here."""


def home(context: LedgerContext, viewer: Viewer, query: Query) -> Home:
    """Return the first page for the viewer."""
    state = context.ledger.state
    home_query = HomeQuery(state, context.now(state), viewer)
    tasks = (*alarm_tasks(context, viewer), *tasks_of(home_query, _SHOWN))
    return Home(tasks=tasks, current=tuple(_list_current(home_query)), starts=tuple(starts_of(home_query)))


def _list_current(query: HomeQuery) -> Iterator[Task]:
    if query.viewer.is_unit:
        yield from _list_active(query)
        return
    runs = query.state.runs.values()
    for run in islice((run for run in runs if run.status in ("running", "trained", "queued", "waiting")), _SHOWN):
        yield Task(kind="Run", text=f"{run.id}, {run.name}: {run.status}", path=f"/runs/{run.id}")
    requested = (one for one in query.state.imports.values() if one.status == "requested")
    for one in islice(requested, _SHOWN):
        yield Task(kind="Import", text=one.subject, path="/imports")
    for row in query.state.invitations.values():
        if query.viewer.has("administrator") and row.is_open(query.now) and row.name not in query.state.principals:
            text = f"{row.name}, by {row.invited_by}; the address works until {row.until[11:16]} UTC"
            yield Task(kind="Invitation", text=text, path="/people#invitations")
    for given in list_delegations(query.state, query.viewer.name, query.now):
        text = f"you decide for {given.delegator} as reviewer of {given.review_function} until {given.until[:10]}"
        yield Task(kind="Delegated to you", text=text, path=f"/people/{query.viewer.name}")


def _list_active(query: HomeQuery) -> Iterator[Task]:
    """Yield the unit's active releases."""
    own = (one for one in query.state.releases.values() if one.unit == query.viewer.name)
    for release in islice(own, PAGE_ROWS):
        adapter = query.state.adapters.get(release.current.adapter)
        if adapter is not None and not find_release_blockers(query.state, release, adapter, query.now):
            path = f"/releases/{release.unit}/{release.served_model}"
            yield Task(
                kind="Served model", text=f"{release.served_model}, served by {release.current.adapter}", path=path
            )


PAGE = Page("/home", "Home", home, seen_by=EVERYBODY, symbol="home")
