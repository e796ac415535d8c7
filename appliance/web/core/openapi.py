"""OpenAPI documents of listeners with plain routes, from the typed models of their requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

REFERENCE = "#/components/schemas/{model}"
"""Template of a reference to a type."""
JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
FORM = "application/x-www-form-urlencoded"
_IN_PATH = re.compile(r"\{([a-z_]+)(?::path)?\}")


@dataclass(frozen=True)
class Operation:
    """An address of a listener, and what a request to it has.

    `body` is the type of a body in JSON, or `fields` are the fields of a form. `query` is the model of the values in
    the address, in its path and after it. `media` is the type of the response. `choices` are the possible values of
    parts of the path.
    """

    body: Any = None
    fields: Sequence[str] = ()
    query: Any = None
    media: str = JSON
    needs_session: bool = True
    choices: Mapping[str, Sequence[str]] | None = None


def describe_operations(title: str, operations: Mapping[str, Operation], session: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of these operations, which are named by method and path, such as `POST /v1/classify`.

    `session` is the security scheme.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for name, operation in operations.items():
        method, _, path = name.partition(" ")
        described = paths.setdefault(_IN_PATH.sub(r"{\1}", path), {})
        described[method.lower()] = _describe(path, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"session": dict(session)}},
    }


def _describe(path: str, operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return an operation, and add the types of its body to `schemas`."""
    responses = {
        "200": {"description": "Done", "content": {operation.media: {}}},
        "default": {"description": "Refused"},
    }
    found: dict[str, Any] = {"parameters": _list_parameters(path, operation), "responses": responses}
    if operation.needs_session:
        found["security"] = [{"session": []}]
    if operation.body is not None:
        schema = TypeAdapter(operation.body).json_schema(ref_template=REFERENCE)
        schemas |= schema.pop("$defs", {})
        if schema.get("title"):
            schemas[schema["title"]] = schema
            schema = {"$ref": REFERENCE.format(model=schema["title"])}
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    elif operation.fields:
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in operation.fields}}
        found["requestBody"] = {"required": True, "content": {FORM: {"schema": schema}}}
    return found


def _list_parameters(path: str, operation: Operation) -> list[dict[str, Any]]:
    query = {} if operation.query is None else TypeAdapter(operation.query).json_schema()
    properties, in_path, choices = query.get("properties", {}), _IN_PATH.findall(path), operation.choices or {}
    found = []
    for name in dict.fromkeys([*in_path, *properties]):
        schema = _resolve(properties.get(name, {"type": "string"}), query.get("$defs", {}))
        is_in_path = name in in_path
        found.append(
            {
                "name": name,
                "in": "path" if is_in_path else "query",
                "required": is_in_path or name in query.get("required", ()),
                "schema": {"type": "string", "enum": list(choices[name])} if name in choices else schema,
            }
        )
    return found


def _resolve(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema of a parameter with the types that it refers to in their places."""
    if isinstance(schema, list):
        return [_resolve(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolve(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _resolve(one, definitions) for name, one in schema.items()}
