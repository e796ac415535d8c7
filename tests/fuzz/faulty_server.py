"""A server with two defects, which `scripts/fuzz` must find: `python -m tests.fuzz.faulty_server FOLDER`."""

from __future__ import annotations

from typing import Any, NoReturn

from starlette.datastructures import QueryParams

from appliance.web.console.core import desk, page
from appliance.web.console.core.page import Query
from appliance.workflows.queries import people
from tests.fuzz import server


def fail(*_: object, **__: object) -> NoReturn:
    raise LookupError("a defect that the test put in")


def parse_query(model: type[Query], path: dict[str, Any], parameters: QueryParams) -> Query:
    return fail() if parameters else page.parse_query(model, path, parameters)


if __name__ == "__main__":
    desk.parse_query = parse_query
    people.clock = fail  # type: ignore[assignment]
    server.main()
