"""Bodies of the people's API: parsing after the caller's session was checked, and their OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool

from appliance.errors import BadInput
from appliance.formats.core.canonical import check_values
from appliance.web.core.errors import MalformedRequest
from appliance.web.core.openapi import REFERENCE

MAX_VALUES = 2_000
"""Maximum number of JSON values in a request. Documents and statements are base64 texts in it."""
MAX_PUBLIC_VALUES = 256
"""Maximum number of JSON values in a request that needs no session."""
T = TypeVar("T")


def body_of(model: type[T], max_values: int = MAX_VALUES) -> Any:
    """Return a route's dependency that parses the body as a value of this type.

    A route's own dependencies are resolved after its router's, which check the session. A body that does not fit is
    refused as MalformedRequest, which names the fields.
    """
    return Depends(BodyOf(model, max_values))


class BodyOf:
    """The parser of one type of body. Tests list the routes that use it."""

    def __init__(self, model: Any, max_values: int = MAX_VALUES) -> None:
        self.model, self._max_values = model, max_values
        self._adapter: TypeAdapter[Any] = TypeAdapter(model)

    async def __call__(self, request: Request) -> Any:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadInput("request: expected the Content-Type application/json, got another")
        return await run_in_threadpool(self.parse, await request.body())

    def parse(self, body: bytes) -> Any:
        """Return the body as a value.

        Raises: MalformedRequest if fields do not fit; BadInput if it has too many values or is not JSON.
        """
        check_values(body, "request", self._max_values)
        try:
            return self._adapter.validate_json(body)
        except ValidationError as error:
            raise MalformedRequest.of(error) from None


def list_routes(app: FastAPI) -> Iterator[APIRoute]:
    """Yield every route of the app, those of its routers included."""
    pending: list[Any] = list(app.routes)
    while pending:
        route = pending.pop(0)
        if isinstance(route, APIRoute):
            yield route
        else:
            pending += getattr(getattr(route, "original_router", route), "routes", [])


def find_body(route: APIRoute) -> Any:
    """Return the type of the route's body, or None."""
    bodies = [one.call.model for one in route.dependant.dependencies if isinstance(one.call, BodyOf)]
    return bodies[0] if bodies else None


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the document."""
    document, routes = app.openapi(), list(list_routes(app))
    bodies = {model.__name__: model for route in routes if (model := find_body(route)) is not None}
    _, made = models_json_schema([(model, "validation") for model in bodies.values()], ref_template=REFERENCE)
    components = document["components"]
    components["schemas"] = made["$defs"] | components["schemas"]
    components["securitySchemes"] = {"session": {"type": "http", "scheme": "bearer"}}
    for route in routes:
        for method in (route.methods or ()) if route.include_in_schema else ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["responses"].pop("422", None)
            if route.response_model is None:
                content = route.responses.get(200, {}).get("content", {"application/octet-stream": {}})
                operation["responses"]["200"]["content"] = content
            given = operation.pop("parameters", [])
            operation["parameters"] = [one for one in given if one["name"] != "authorization"]
            if len(operation["parameters"]) < len(given):
                operation["security"] = [{"session": []}]
            if (model := find_body(route)) is not None:
                schema = {"$ref": REFERENCE.format(model=model.__name__)}
                operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return document
