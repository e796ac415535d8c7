"""What waits for whom: for the first page of a person, and for the notices that they get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from appliance.domain.core.state import State
from appliance.domain.governance.endorsement import waiting_orders
from appliance.domain.releases.approval import barred
from appliance.domain.runs.authorisation import could_authorise
from appliance.web.console.core.page import Value, Viewer
from appliance.web.console.reviewers.queue import QueueQuery, waiting_for
from appliance.web.operations.notices import Waiting

ORDER, AUTHORISE, REVIEW = "Order to endorse", "Run to authorise", "Review"
RELEASE, FAILED = "Release that does not answer", "Run that failed"
LISTS = {
    ORDER: "/orders",
    AUTHORISE: "/runs?status=waiting",
    REVIEW: "/reviews",
    RELEASE: "/releases",
    FAILED: "/runs?status=failed",
}
"""Of each kind the page that lists all of them: it names none."""
MOST_FAILED = 8
"""So many of an operator's last runs are looked at."""


class Task(Value):
    """One thing that waits. `urgent`: it keeps something from working."""

    kind: str
    text: str
    path: str
    urgent: bool = False


class Asked(NamedTuple):
    state: State
    now: str
    viewer: Viewer


def tasks_of(asked: Asked) -> list[Iterator[Task]]:
    """Of each kind, one after another."""
    return [_orders(asked), _authorisations(asked), _reviews(asked), _releases(asked), _failed(asked)]


def waiting_for_all(state: State, now: str) -> Iterator[tuple[str, list[Waiting]]]:
    """Everybody who stands, and what waits for each: what is told of a task is its kind and the list that it is in."""
    for principal in state.principals.values():
        if principal.revoked is None:
            asked = Asked(state, now, Viewer(principal.name, principal.roles, "", ""))
            found = [task for tasks in tasks_of(asked) for task in tasks]
            yield principal.name, [Waiting(task.kind, LISTS[task.kind], _key(task)) for task in found]


def _key(task: Task) -> str:
    """What it is about, without how far it is: that an approval came makes no task a new one."""
    return f"{task.path} {task.text.partition(':')[0]}"


def _orders(asked: Asked) -> Iterator[Task]:
    if not asked.viewer.has("administrator"):
        return
    for order in waiting_orders(asked.state, asked.now, asked.viewer.name):
        yield Task(kind=ORDER, text=f"{order.verb} by {order.signer}", path=f"/orders#{order.digest[7:19]}")


def _authorisations(asked: Asked) -> Iterator[Task]:
    """Runs that a second person has to let begin, where the viewer can."""
    for run in asked.state.runs.values():
        if run.status == "waiting" and asked.viewer.name in could_authorise(asked.state, run):
            tier = f", tier {run.tier}" if run.tier else ""
            yield Task(kind=AUTHORISE, text=f"{run.id}, {run.name} by {run.ordered_by}{tier}", path=f"/runs/{run.id}")


def _reviews(asked: Asked) -> Iterator[Task]:
    if not asked.viewer.has("reviewer"):
        return
    for one in waiting_for(asked.state, asked.now, asked.viewer, QueueQuery()):
        about = f"{one.adapter} for {one.unit}" if one.unit else one.adapter
        tier = f", tier {one.tier}" if one.tier else ""
        yield Task(
            kind=REVIEW,
            text=f"{about}{tier}: {one.approvals} of {one.needed} approvals",
            path=f"/adapters/{one.adapter}",
        )


def _releases(asked: Asked) -> Iterator[Task]:
    """Releases of one's own units that answer nothing now."""
    state, viewer = asked.state, asked.viewer
    units = (viewer.name,) if viewer.is_unit else viewer.places("release-owner")
    for release in state.releases.values() if units else ():
        adapter = state.adapters.get(release.current.adapter)
        if release.unit not in units or adapter is None:
            continue
        if reasons := barred(state, release, adapter, asked.now):
            yield Task(
                kind=RELEASE,
                text=f"{release.unit}/{release.task}: {reasons[0]}",
                path=f"/releases/{release.unit}/{release.task}",
                urgent=True,
            )


def _failed(asked: Asked) -> Iterator[Task]:
    """An operator's last runs, where they failed."""
    if not asked.viewer.has("operator"):
        return
    own = [run for run in asked.state.runs.values() if run.ordered_by == asked.viewer.name]
    for run in reversed(own[-MOST_FAILED:]):
        if run.status == "failed":
            yield Task(kind=FAILED, text=f"{run.id}, {run.name}", path=f"/runs/{run.id}")
