"""Service and client read one definition of each request and response, and the OpenAPI document is made from it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from appliance.web.core.auth import CallerAuthenticator
from appliance.web.people.api import people_app
from appliance.web.people.parsing import describe, list_routes

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"get": "GET", "post": "POST", "put": "PUT"}


def _app() -> Any:
    unbuilt: Any = None
    return people_app(unbuilt, CallerAuthenticator(unbuilt))


def _name(kind: Any) -> str:
    """Return the type as the client writes it: `list[Run]` for a list or a tuple of one type."""
    args = get_args(kind)
    if get_origin(kind) in (list, tuple):
        return f"list[{args[0].__name__}]"
    if get_origin(kind) is dict:
        return f"dict[str, {args[1].__name__}]"
    return " | ".join(one.__name__ for one in args) if args else str(getattr(kind, "__name__", None))


def calls(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield method, address with `*` for each value, and expected type of the calls in a file of the client."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in METHODS:
            continue
        match node.args:
            case [ast.Constant(value=str(path)), kind, *_] if path.startswith("/v1/"):
                yield METHODS[node.func.attr], path, ast.unparse(kind)
            case [ast.JoinedStr(values=parts), kind, *_] if ast.unparse(node.args[0]).startswith("f'/v1/"):
                path = "".join(str(one.value) if isinstance(one, ast.Constant) else "*" for one in parts)
                yield METHODS[node.func.attr], path, ast.unparse(kind)


def test_each_call_of_the_client_expects_the_type_that_its_route_gives() -> None:
    given = {
        (method, re.sub(r"\{[^}]*\}", "*", route.path)): _name(route.response_model)
        for route in list_routes(_app())
        for method in route.methods or ()
    }
    found = [
        (f"{path.name}: {method} {address}", kind, given.get((method, address.replace("/ledger/0", "/ledger/*"))))
        for room in ("client", "cli")
        for path in (ROOT / "appliance" / room).rglob("*.py")
        for method, address, kind in calls(path.read_text(encoding="utf-8"))
        if address != "/v1/*s/*"  # a row of one of four kinds
    ]
    assert len(found) > 50, "the test looks at the wrong calls"
    unlike = [(where, kind, got) for where, kind, got in found if got is None or kind not in got]
    assert not unlike, unlike


@pytest.mark.parametrize("source", ["connection.get(f'/v1/runs/{run}', Run)", "connection.get('/v1/runs', list[Run])"])
def test_a_call_of_the_client_is_found(source: str) -> None:
    (found,) = calls(source)
    assert found[0] == "GET" and found[2] in ("Run", "list[Run]")


@pytest.mark.thorough
def test_the_document_has_every_address_with_its_types() -> None:
    app = _app()
    document = describe(app)
    paths = {route.path_format for route in list_routes(app) if route.include_in_schema}
    assert set(document["paths"]) == paths
    order = document["paths"]["/v1/orders"]["post"]
    assert order["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/OrderRequest")
    assert "security" not in order and document["paths"]["/v1/runs"]["get"]["security"] == [{"session": []}]
    named = set(re.findall(r"#/components/schemas/([\w.-]+)", str(document)))
    assert named <= set(document["components"]["schemas"])
