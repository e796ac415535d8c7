"""What waits for the person who looks, by role; what they can do here; and whether the log is as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from appliance.domain.releases.approval import barred
from appliance.web.console.core.page import EVERYBODY, PAGE_ROWS, Page, Query, Value, Viewer
from appliance.web.console.home.starts import starts_of
from appliance.web.console.home.tasks import Asked, Task, tasks_of
from appliance.workflows.core.context import Context

_SHOWN = 8
"""Of each kind; the page behind it lists all of them."""


class Home(Value):
    tasks: tuple[Task, ...]
    going: tuple[Task, ...]
    """What is under way, which nobody has to do anything about; of a unit, what is released to it and answers."""
    starts: tuple[Task, ...]
    """What they can do here."""


def home(context: Context, viewer: Viewer, query: Query) -> Home:
    state = context.ledger.state
    asked = Asked(state, context.now(state), viewer)
    tasks = [task for kind in tasks_of(asked) for task in islice(kind, _SHOWN)]
    return Home(tasks=tuple(tasks), going=tuple(_going(asked)), starts=tuple(starts_of(asked)))


def _going(asked: Asked) -> Iterator[Task]:
    if asked.viewer.is_unit:
        yield from _released(asked)
        return
    runs = asked.state.runs.values()
    for run in islice((run for run in runs if run.status in ("running", "trained", "queued", "waiting")), _SHOWN):
        yield Task(kind="Run", text=f"{run.id}, {run.name}: {run.status}", path=f"/runs/{run.id}")
    requested = (one for one in asked.state.imports.values() if one.status == "requested")
    for one in islice(requested, _SHOWN):
        yield Task(kind="Import", text=one.subject, path="/imports")


def _released(asked: Asked) -> Iterator[Task]:
    """What answers the unit now."""
    own = (one for one in asked.state.releases.values() if one.unit == asked.viewer.name)
    for release in islice(own, PAGE_ROWS):
        adapter = asked.state.adapters.get(release.current.adapter)
        if adapter is not None and not barred(asked.state, release, adapter, asked.now):
            path = f"/releases/{release.unit}/{release.task}"
            yield Task(kind="Task", text=f"{release.task}, answered by {release.current.adapter}", path=path)


PAGE = Page("/home", "Home", EVERYBODY, Query, home, "home/home.html", group="", symbol="home")
