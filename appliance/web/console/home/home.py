"""What waits for whoever looks, by role, and whether the log can be rested on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from appliance.domain.core.state import State
from appliance.domain.governance.endorsement import waiting_orders
from appliance.domain.releases.approval import barred
from appliance.web.console.core.page import EVERYBODY, Page, Query, Value, Viewer
from appliance.web.console.reviewers.queue import QueueQuery, waiting_for
from appliance.workflows.core.context import Context

_SHOWN = 8
"""Of each kind; the page behind it lists all of them."""


class Task(Value):
    """One thing that waits. `urgent`: it keeps something from working."""

    kind: str
    text: str
    path: str
    urgent: bool = False


class Home(Value):
    tasks: tuple[Task, ...]
    going: tuple[Task, ...]
    """What is under way, which nobody has to do anything about."""


def home(context: Context, viewer: Viewer, query: Query) -> Home:
    state = context.ledger.state
    now = context.now(state)
    asked = _Asked(state, now, viewer)
    tasks = [*_orders(asked), *_reviews(asked), *_releases(asked), *_failed(asked)]
    return Home(tasks=tuple(tasks), going=tuple(_going(asked)))


class _Asked(NamedTuple):
    state: State
    now: str
    viewer: Viewer


def _orders(asked: _Asked) -> Iterator[Task]:
    if not asked.viewer.has("administrator"):
        return
    for order in islice(waiting_orders(asked.state, asked.now, asked.viewer.name), _SHOWN):
        yield Task(
            kind="Order to endorse", text=f"{order.verb} by {order.signer}", path=f"/orders#{order.digest[7:19]}"
        )


def _reviews(asked: _Asked) -> Iterator[Task]:
    if not asked.viewer.has("reviewer"):
        return
    for one in islice(waiting_for(asked.state, asked.now, asked.viewer, QueueQuery()), _SHOWN):
        about = f"{one.adapter} for {one.unit}" if one.unit else one.adapter
        tier = f", tier {one.tier}" if one.tier else ""
        yield Task(
            kind="Review",
            text=f"{about}{tier}: {one.approvals} of {one.needed} approvals",
            path=f"/adapters/{one.adapter}",
        )


def _releases(asked: _Asked) -> Iterator[Task]:
    """Releases of one's own units that answer nothing now."""
    state, viewer = asked.state, asked.viewer
    units = (viewer.name,) if viewer.is_unit else viewer.places("release-owner")
    for release in state.releases.values():
        adapter = state.adapters.get(release.current.adapter)
        if release.unit not in units or adapter is None:
            continue
        if reasons := barred(state, release, adapter, asked.now):
            yield Task(
                kind="Release that does not answer",
                text=f"{release.unit}/{release.task}: {reasons[0]}",
                path=f"/releases/{release.unit}/{release.task}",
                urgent=True,
            )


def _failed(asked: _Asked) -> Iterator[Task]:
    """An operator's last runs, where they failed."""
    own = [run for run in asked.state.runs.values() if run.ordered_by == asked.viewer.name]
    for run in reversed(own[-_SHOWN:]):
        if run.status == "failed":
            yield Task(kind="Run that failed", text=f"{run.id}, {run.name}", path=f"/runs/{run.id}")


def _going(asked: _Asked) -> Iterator[Task]:
    if asked.viewer.is_unit:
        return
    runs = asked.state.runs.values()
    for run in islice((run for run in runs if run.status in ("running", "trained", "queued")), _SHOWN):
        yield Task(kind="Run", text=f"{run.id}, {run.name}: {run.status}", path=f"/runs/{run.id}")
    requested = (one for one in asked.state.imports.values() if one.status == "requested")
    for one in islice(requested, _SHOWN):
        yield Task(kind="Import", text=one.subject, path="/imports")


PAGE = Page("/home", "Home", EVERYBODY, Query, home, "home/home.html", group="", symbol="home")
