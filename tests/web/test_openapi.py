"""Each listener's OpenAPI document has its routes and no other, and the types that its requests are parsed as."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from appliance.web.console import pages
from appliance.web.console.app import console_app
from appliance.web.console.core.events import RecentEntries
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.openapi import Operation, describe_operations
from appliance.web.operations import health
from appliance.web.operations.health import OperationsTokens, operations_app
from appliance.web.units import openai
from appliance.web.units.openai import CHALLENGE, TOKENS, _Routes, units_app
from scripts.references.listeners import DOCUMENTS
from tests.fuzz.server import _unit_token
from tests.kit.console import console

NONE: Any = None


def operations_of(routes: Iterable[Any]) -> set[str]:
    return {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"HEAD"}}


def test_the_units_document_has_its_routes() -> None:
    routes = operations_of(_Routes(NONE, NONE, NONE, NONE).listed())
    assert routes | {f"POST {CHALLENGE}", f"POST {TOKENS}"} == openai.OPERATIONS.keys() | {"GET /v1/openapi.json"}
    assert all(one.body for name, one in openai.OPERATIONS.items() if name.startswith("POST") and name[5:] != CHALLENGE)


def test_the_operations_document_has_its_routes() -> None:
    app = operations_app(NONE, NONE, NONE, OperationsTokens(b"", b""))
    assert operations_of(app.routes) == health.OPERATIONS.keys()


def test_the_console_s_document_has_its_routes_and_the_parameters_of_its_pages() -> None:
    app: Any = console_app(NONE, CallerAuthenticator(NONE), "http://localhost:8330", RecentEntries())
    assert operations_of(app._app.routes) == pages.list_operations().keys()
    log = pages.describe()["paths"]["/log"]["get"]["parameters"]
    assert {"type", "actor", "before"} <= {one["name"] for one in log}
    (index,) = pages.describe()["paths"]["/log/{index}"]["get"]["parameters"]
    assert (index["in"], index["required"], index["schema"]["type"]) == ("path", True, "integer")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_refers_to_the_types_that_it_has(name: str) -> None:
    found = DOCUMENTS[name][1]()
    referred: set[str] = set()

    def look(value: Any) -> None:
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(one)
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            referred.add(value["$ref"].rpartition("/")[2])

    look(found)
    assert referred <= found["components"]["schemas"].keys()


def test_an_operation_has_its_form_and_the_choices_of_its_path() -> None:
    operation = Operation(fields=("a", "b"), choices={"action": ("grant",)}, needs_session=False)
    found = describe_operations("x", {"POST /sign/{action}/{rest:path}": operation}, {})
    made = found["paths"]["/sign/{action}/{rest}"]["post"]
    assert [one["schema"] for one in made["parameters"]] == [{"type": "string", "enum": ["grant"]}, {"type": "string"}]
    (form,) = made["requestBody"]["content"].values()
    assert list(form["schema"]["properties"]) == ["a", "b"] and "security" not in made


def test_a_unit_reads_the_document_of_its_listener_and_nobody_else_does(tmp_path: Path) -> None:
    with console("serving", tmp_path / "home") as desk:
        app = units_app(desk.answers.serving, desk.authenticator, desk.answers.quotas, NONE)
        units = TestClient(app, raise_server_exceptions=False)
        assert units.get("/v1/openapi.json").status_code == 401
        answer = units.get("/v1/openapi.json", headers={"Authorization": f"Bearer {_unit_token(desk)}"})
    assert answer.json() == openai.describe()
