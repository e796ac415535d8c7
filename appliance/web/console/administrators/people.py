"""People and units: who they are, what they may do, and by which keys."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.names import IDENTIFIER
from appliance.errors import NotFound
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context


class PeopleQuery(Query):
    past: str | None = None


class PersonRow(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    enrolled: int
    revoked: int | None


class People(Value):
    people: tuple[PersonRow, ...]
    next: str | None


def people(context: Context, viewer: Viewer, query: PeopleQuery) -> People:
    rest = sorted(
        (one for one in context.ledger.state.principals.values() if query.past is None or one.name > query.past),
        key=lambda one: one.name,
    )
    shown = rest[:PAGE_ROWS]
    names = context.ledger.disclosures([one.printed_name for one in shown if one.printed_name])
    rows = tuple(
        PersonRow(
            name=one.name,
            printed_name=names[one.printed_name].text if one.printed_name in names else None,
            roles=one.roles,
            enrolled=one.enrolled,
            revoked=one.revoked,
        )
        for one in shown
    )
    return People(people=rows, next=shown[-1].name if len(rest) > PAGE_ROWS else None)


def _table(value: People) -> Table:
    headers = tuple(PersonRow.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.people])


class PersonQuery(Query):
    name: str = Field(pattern=rf"^{IDENTIFIER}$")


class KeyRow(Value):
    keyid: str
    enrolled: int
    enrolled_at: str
    until: str | None
    revoked: int | None
    distrusted: int | None
    stands: bool


class ApplicationRow(Value):
    name: str
    tasks: tuple[str, ...]
    enrolled: int
    revoked: int | None


class PersonPage(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    enrolled: int
    revoked: int | None
    keys: tuple[KeyRow, ...]
    applications: tuple[ApplicationRow, ...]


def person(context: Context, viewer: Viewer, query: PersonQuery) -> PersonPage:
    state = context.ledger.state
    found = state.principals.get(query.name)
    if found is None:
        raise NotFound(f"principal: expected an enrolled one, got {query.name}")
    now = context.now(state)
    names = context.ledger.disclosures([found.printed_name] if found.printed_name else [])
    keys = [key for key in state.keys.values() if key.principal == found.name]
    return PersonPage(
        name=found.name,
        printed_name=names[found.printed_name].text if found.printed_name in names else None,
        roles=found.roles,
        enrolled=found.enrolled,
        revoked=found.revoked,
        keys=tuple(
            KeyRow(
                keyid=key.keyid,
                enrolled=key.enrolled,
                enrolled_at=key.enrolled_at,
                until=key.until,
                revoked=key.revoked,
                distrusted=key.distrusted,
                stands=key.stands(now),
            )
            for key in keys
        ),
        applications=tuple(
            ApplicationRow(name=one.name, tasks=one.tasks, enrolled=one.enrolled, revoked=one.revoked)
            for one in state.applications.values()
            if one.unit == found.name
        ),
    )


def _keys_table(value: PersonPage) -> Table:
    headers = tuple(KeyRow.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.keys])


PAGE = Page(
    "/people", "People and units", PEOPLE, PeopleQuery, people, "administrators/people.html", _table, "Site", "people"
)
PERSON = Page("/people/{name}", "Person", PEOPLE, PersonQuery, person, "administrators/person.html", _keys_table)
