"""A page is a row: its address, who may see it, the value that it shows, and the template that shows it.

The value is one frozen model. A browser gets it as HTML; `PATH.json` and, where it has a table, `PATH.csv` give the
same value under the same rights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import QueryParams

from appliance.domain.core.decisions import Opened
from appliance.domain.core.names import IDENTIFIER
from appliance.errors import BadInput, Denied
from appliance.web.core.errors import Malformed
from appliance.workflows.core.context import Context

PEOPLE = ("administrator", "auditor", "operator", "release-owner", "reviewer", "validator")
"""Every role but a unit's."""
EVERYBODY = (*PEOPLE, "unit")
PAGE_ROWS = 50
"""Of a list: the rest is on the next pages."""

VERSIONED = rf"^{IDENTIFIER}@[1-9][0-9]{{0,8}}$"


class Value(BaseModel):
    """What a page shows, whole: a template reads nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Query(BaseModel):
    """What stands in a page's address: parts of its path and parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Table(NamedTuple):
    """A page's rows as CSV has them."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Viewer:
    """Who looks: a person or unit with a session in this browser."""

    name: str
    roles: tuple[str, ...]
    until: str
    csrf: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its roles without what follows a colon."""
        return tuple(dict.fromkeys(role.partition(":")[0] for role in self.roles))

    @property
    def is_unit(self) -> bool:
        return self.kinds == ("unit",)

    def has(self, *kinds: str) -> bool:
        return any(kind in self.kinds for kind in kinds)

    def places(self, kind: str) -> tuple[str, ...]:
        """What follows the colon of its roles of this kind: fields of a reviewer, units of a release owner."""
        return tuple(role.partition(":")[2] for role in self.roles if role.partition(":")[0] == kind)


@dataclass(frozen=True)
class Page:
    """`value` is called with the context, the viewer and the parsed query. `group` and `symbol`: where the navigation
    lists it; a page without a group is reached from another one. `opens`: of a value, and whether it goes out whole,
    the adapter whose review page it shows and the parts of it that it shows."""

    path: str
    title: str
    seen_by: tuple[str, ...]
    query: type[Query]
    value: Callable[[Context, Viewer, Any], Value]
    template: str
    table: Callable[[Any], Table] | None = None
    group: str = ""
    symbol: str = ""
    opens: Callable[[Any, bool], tuple[str, tuple[Opened, ...]]] | None = None

    def check(self, viewer: Viewer) -> None:
        """Denied unless the viewer has one of the roles."""
        if not viewer.has(*self.seen_by):
            held = ", ".join(viewer.roles) or "none"
            wanted = " or ".join(self.seen_by)
            raise Denied(
                f"page {self.path}, which none of your roles opens",
                reasons=(f"role: expected {viewer.name} to be {wanted}, got {held}",),
            )


def parse_query(model: type[Query], path: dict[str, Any], parameters: QueryParams) -> Query:
    """The address as a value. A parameter without text counts as absent: a form sends all of its fields."""
    given: dict[str, Any] = {}
    for name in parameters:
        field = model.model_fields.get(name)
        texts = [text for text in parameters.getlist(name) if text]
        if not texts:
            continue
        if field is not None and get_origin(field.annotation) is tuple:
            given[name] = texts
        elif len(texts) > 1:
            raise BadInput(f"address, {name}: expected one, got {len(texts)}")
        else:
            given[name] = texts[0]
    if both := sorted(given.keys() & path.keys()):
        raise BadInput(f"address, {both[0]}: expected it in the path alone, got it as a parameter too")
    try:
        return model.model_validate({**given, **path})
    except ValidationError as error:
        raise Malformed([{**item, "loc": ("address", *item["loc"])} for item in error.errors()]) from None
