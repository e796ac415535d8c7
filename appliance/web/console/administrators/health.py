"""The service: what it does, what is near its end, and what lies where."""

from __future__ import annotations

from typing import Any, Literal, get_args

from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.operations.findings import Finding
from appliance.workflows.operations.status import work
from appliance.workflows.operations.storage import storage

Tab = Literal["service", "storage", "checks"]


class Check(Value):
    check: str
    level: str
    found: str
    expected: str
    action: str


class Kind(Value):
    name: str
    bytes: int
    things: int
    largest: str | None


class HealthQuery(Query):
    """One tab at a time: to look at files or at the machine takes longer than to look at the service."""

    tab: Tab = "service"


class Health(Value):
    """What the chosen tab shows is filled."""

    tab: str
    tabs: tuple[str, ...]
    service: dict[str, Any]
    engine: dict[str, Any]
    jobs: tuple[dict[str, Any], ...]
    processes: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]
    kinds: tuple[Kind, ...]
    bytes: int
    disk_bytes: int
    free_bytes: int


def health(context: Context, viewer: Viewer, query: HealthQuery) -> Health:
    told = work(context) if query.tab == "service" else {}
    stored: dict[str, Any] = storage(context) if query.tab == "storage" else {"kinds": {}, "bytes": 0, "disk": {}}
    return Health(
        tab=query.tab,
        tabs=get_args(Tab),
        service=told.get("service", {}),
        engine=told.get("engine", {}),
        jobs=tuple(told.get("jobs", ())),
        processes=tuple(told.get("processes", ())),
        checks=tuple(_check(finding) for finding in context.examine()) if query.tab == "checks" else (),
        kinds=tuple(_kind(name, kind) for name, kind in stored["kinds"].items()),
        bytes=stored["bytes"],
        disk_bytes=stored["disk"].get("bytes", 0),
        free_bytes=stored["disk"].get("free_bytes", 0),
    )


def _check(finding: Finding) -> Check:
    return Check(**finding.value())


def _kind(name: str, kind: dict[str, Any]) -> Kind:
    largest = max(kind["things"], key=lambda thing: thing["bytes"], default=None)
    return Kind(
        name=name,
        bytes=kind["bytes"],
        things=len(kind["things"]),
        largest=None if largest is None else largest["name"],
    )


def _table(value: Health) -> Table:
    if value.tab == "storage":
        return Table(("kind", "bytes", "things", "largest"), [list(one.model_dump().values()) for one in value.kinds])
    headers = tuple(Check.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.checks])


PAGE = Page(
    "/health", "Health and storage", PEOPLE, HealthQuery, health, "administrators/health.html", _table, "Site", "health"
)
