"""The definition of a page: its address, who may see it, the value that it shows, and its template.

The value is one frozen model. A browser gets it as HTML. `PATH.json` and, for pages with a table, `PATH.csv` give the
same value under the same rights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from appliance.domain.core.decisions import OpenedPagePart
from appliance.domain.core.names import IDENTIFIER
from appliance.domain.core.roles import refuse_role
from appliance.errors import BadInput, Denied
from appliance.web.core.errors import MalformedRequest
from appliance.workflows.core.context import Context

PEOPLE = ("administrator", "auditor", "operator", "recovery", "release-owner", "reviewer", "validator")
"""All roles except a unit's."""
EVERYBODY = (*PEOPLE, "unit")
"""All roles."""
PAGE_ROWS = 50
"""Rows of a list on one page."""

VERSIONED = rf"^{IDENTIFIER}@[1-9][0-9]{{0,8}}$"
"""Pattern of NAME@VERSION."""


R = TypeVar("R")


class PageValue(BaseModel):
    """The whole content of a page. Templates read nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FormLink(PageValue):
    """An action that the viewer can order, and the address of its form."""

    title: str
    path: str


class Query(BaseModel):
    """The values in a page's address: parts of its path and parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BeforeQuery(Query):
    """`before` is the entry of the last row on the previous page."""

    before: int | None = Field(default=None, ge=0)

    def list_newest(self, rows: Sequence[Any]) -> Iterator[Any]:
        """Yield the records after the previous page, the newest first. The last of `rows` is the newest."""
        return (one for one in reversed(rows) if self.before is None or one.index < self.before)


class NameQuery(Query):
    """The name of a base, person or unit."""

    name: str = Field(pattern=rf"^{IDENTIFIER}$")


class ListPage(PageValue, Generic[R]):
    """A page of a list. `next` identifies its last row, after which the next page begins; None on the last page."""

    rows: tuple[R, ...]
    next: int | str | None = None

    @classmethod
    def of(cls, rows: Iterable[R], key: Callable[[R], int | str] = attrgetter("entry"), **others: Any) -> Self:
        """Return the page that begins with these rows. `others` are the fields that it has beside them.

        `key` identifies the place of a row in the list. Rows of the same place are on the same page.
        """
        shown: list[R] = []
        following = None
        for one in rows:
            if len(shown) >= PAGE_ROWS and key(one) != key(shown[-1]):
                following = key(shown[-1])
                break
            shown.append(one)
        return cls(rows=tuple(shown), next=following, **others)


class CsvTable(NamedTuple):
    """A page's rows for CSV."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]


def columns(field: str = "rows", *names: str) -> Callable[[Any], CsvTable]:
    """Return a function that makes the table of a page from the rows in a field of its value.

    The columns are the named fields of the rows, or all of them. `run.id` names the field `id` of the field
    `run`.
    """

    def table(value: PageValue) -> CsvTable:
        kind = get_args(type(value).model_fields[field].annotation)[0]
        read = [attrgetter(name) for name in names or kind.model_fields]
        headers = [name.rpartition(".")[2] for name in names or kind.model_fields]
        return CsvTable(headers, [[get(one) for get in read] for one in getattr(value, field)])

    return table


@dataclass(frozen=True)
class Viewer:
    """The person or unit whose session the browser has."""

    name: str
    roles: tuple[str, ...]
    until: str
    csrf: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The roles without the part after the colon."""
        return tuple(dict.fromkeys(role.partition(":")[0] for role in self.roles))

    @property
    def is_unit(self) -> bool:
        """Return True if the viewer is a unit."""
        return self.kinds == ("unit",)

    def has(self, *kinds: str) -> bool:
        """Return True if the viewer has a role of one of these kinds."""
        return any(kind in self.kinds for kind in kinds)

    def require(self, what: str, kinds: Sequence[str]) -> None:
        """Raise Denied if the viewer has no role of these kinds. `what` is the refused thing."""
        if not self.has(*kinds):
            raise Denied(what, refusals=(refuse_role(self.name, self.roles, kinds),))

    def may_sign(self, signers: Sequence[str]) -> bool:
        """Return True if the viewer has a role of these signers of an action. Relations to the thing do not count."""
        kinds = {signer.partition(":")[0] for signer in signers}
        return self.has(*kinds) or ("any reviewer" in kinds and self.has("reviewer"))

    def places(self, kind: str) -> tuple[str, ...]:
        """Return the parts after the colon of roles of this kind: a reviewer's functions, a release owner's units."""
        return tuple(role.partition(":")[2] for role in self.roles if role.partition(":")[0] == kind)


@dataclass(frozen=True)
class Page:
    """A page of the console.

    `value` is called with the context, the viewer and the parsed query. The template has the name of
    this function, in the folder of its module.
    `group` and `symbol` place the page in the navigation; one without a group is linked from other pages. `opens` takes
    a value and whether all of it is sent, and returns the adapter whose review page is shown and the parts that are
    shown.
    """

    path: str
    title: str
    value: Callable[[Context, Viewer, Any], PageValue]
    table: Callable[[Any], CsvTable] | None = None
    seen_by: tuple[str, ...] = PEOPLE
    group: str = ""
    symbol: str = ""
    opens: Callable[[Any, bool], tuple[str, tuple[OpenedPagePart, ...]]] | None = None
    is_search: bool = False
    """True if the page also shows a query with an unreadable field, in place of a refusal.

    The value is then that of an empty query. The template receives the message as `problem`, shows it beside the field
    that it begins with, and shows no results.
    """

    @cached_property
    def query(self) -> type[Query]:
        """The model of the values in the page's address."""
        found: type[Query] = get_type_hints(self._function)["query"]
        return found

    @property
    def template(self) -> str:
        """The name of the page's template, such as `operators/runs.html`."""
        function = self._function
        return f"{function.__module__.split('.')[-2]}/{function.__name__}.html"

    @property
    def _function(self) -> Any:
        return self.value.func if isinstance(self.value, partial) else self.value

    def check(self, viewer: Viewer) -> None:
        """Raise Denied if the viewer has none of the page's roles."""
        viewer.require(f"page {self.path}, which none of your roles opens", self.seen_by)


def parse_query(model: type[Query], path: dict[str, Any], parameters: QueryParams) -> Query:
    """Return the values of an address. An empty parameter counts as absent, because forms send all of their fields.

    Raises: MalformedRequest or BadInput for values that do not fit.
    """
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
        raise MalformedRequest.of(error) from None
