"""The page of each listener, made from its OpenAPI document."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from appliance.web.console import pages as console_document
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.openapi import FORM
from appliance.web.operations import health
from appliance.web.people.api import people_app
from appliance.web.people.parsing import describe as describe_people_app
from appliance.web.units import openai as units_openai
from appliance.workflows.core.context import Context
from scripts.references.tables import table

WIDTH = 98
"""Columns of a line."""

_PEOPLE = """# The people's API

The command line uses this API at the Unix socket or over TLS; units use another one
([units.md](../guides/units.md)). Bodies are JSON in UTF-8, and bytes are standard base64 in it. A
request with a body has the header `Content-Type: application/json`.

A session is needed for each address that says so: `Authorization: Bearer TOKEN`. A response of
another status than 200 has `error` with a `code` ([errors.md](errors.md)), a `message` and
`reasons`. The service answers `GET /v1/openapi.json` with the OpenAPI document of this page.

Service and clients share the types (`appliance/api`). Both refuse a field that a type does not
have, so upgrade clients with the service
([service.md](../operations/service.md#an-upgrade)). The service's word is no proof: a client checks
entries, documents and texts by their proofs and digests before it uses them
([formats/ledger.md](../formats/ledger.md)).

This page is written by `scripts/reference` from the models.

## Addresses

"""


_UNITS = """# The units' API

The clients of units use this API. It is the part of OpenAI's that [units.md](../guides/units.md)
describes: responses have OpenAI's form. The listener answers `GET /v1/openapi.json` with the
OpenAPI document of this page.

A token is needed for each address that says so: `Authorization: Bearer TOKEN`. An application
without one signs a challenge and sends it as a DSSE envelope
([formats/envelope.md](../formats/envelope.md)). A response of another status than 200 has `error`
with OpenAI's fields and `appliance_code` ([errors.md](errors.md)).

This page is written by `scripts/reference` from the models.

## Addresses

"""

_OPERATIONS = """# The operations listener

Probes, scrapers and the reader of the feed use this listener
([monitoring.md](../operations/monitoring.md)). It answers nothing else. Its OpenAPI document is
[operations-openapi.json](operations-openapi.json).

Metrics and feed each need the token of their own: `Authorization: Bearer TOKEN`.

This page is written by `scripts/reference` from the models.

## Addresses

"""

_CONSOLE = """# Addresses of the console

People use the console with a browser ([console.md](../guides/console.md)). A page is also JSON at
its address with `.json`, and its table is CSV at its address with `.csv`, for everybody who may see
the page. The OpenAPI document of these addresses is [console-openapi.json](console-openapi.json).

The session is a cookie. A form in a session has the field `csrf` of the page that shows it. The
fields of `POST /sign/{action}` are those of the action ([actions.md](actions.md)).

This page is written by `scripts/reference` from the models.

## Addresses

"""


def describe_people() -> dict[str, Any]:
    """Return the document of the people's API, which the service also serves."""
    unbuilt = cast(Context, None)
    return describe_people_app(people_app(unbuilt, CallerAuthenticator(unbuilt)))


DOCUMENTS: Mapping[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "people": (_PEOPLE, describe_people),
    "units": (_UNITS, units_openai.describe),
    "operations": (_OPERATIONS, health.describe),
    "console": (_CONSOLE, console_document.describe),
}
"""Each listener's page, up to its addresses, and its OpenAPI document."""


def render_listener(name: str) -> str:
    """Return the page of a listener."""
    text, describe = DOCUMENTS[name]
    document = describe()
    addresses = table(("request", "session", "body", "response"), _list_addresses(document))
    schemas = document["components"]["schemas"]
    types = [_describe(name, schemas[name]) for name in sorted(schemas) if name != "HTTPValidationError"]
    return f"{text}{addresses}\n" + ("\n## Types\n\n" + "\n".join(types) if types else "")


def render_document(name: str) -> str:
    """Return the OpenAPI document of a listener that does not serve it."""
    _, describe = DOCUMENTS[name]
    return json.dumps(describe(), indent=1, sort_keys=True) + "\n"


def _list_addresses(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            query = [one["name"] for one in operation["parameters"] if one["in"] == "query"]
            address = f"`{method.upper()} {path}`" + (f" with {', '.join(query)}" if query else "")
            yield (
                address,
                "yes" if "security" in operation else "no",
                _name_body(operation),
                _name_response(operation["responses"]["200"]["content"]),
            )


def _name_body(operation: Mapping[str, Any]) -> str:
    ((media, content),) = operation.get("requestBody", {"content": {"": None}})["content"].items()
    if content is None:
        return ""
    if media == FORM:
        return f"form of {', '.join(content['schema']['properties'])}"
    return _type(content["schema"])


_MEDIA = {"application/json": "JSON", "application/octet-stream": "bytes", "text/html": "page"}


def _name_response(content: Mapping[str, Any]) -> str:
    ((media, found),) = content.items()
    return _type(found["schema"]) if "schema" in found else _MEDIA.get(media, f"`{media}`")


def _describe(name: str, schema: Mapping[str, Any]) -> str:
    """Return a type with its meaning and fields as an item of a list."""
    meaning = str(schema.get("description", "")).partition("\n\n")[0].replace("\n", " ")
    fields = [f"`{field}` {_type(one)}" for field, one in schema.get("properties", {}).items()]
    text = f"**{_short(name)}.** {meaning}".strip() + (f" Fields: {', '.join(fields)}." if fields else "")
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _short(name: str) -> str:
    """Return the name of a type; two types of one name keep their module's last part."""
    *_, module, short = ("", *name.split("__")[-2:]) if "__" in name else ("", name)
    return f"{short} ({module})" if module else short


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type in words."""
    if "$ref" in schema:
        return _short(schema["$ref"].rpartition("/")[2])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[union]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems")
        return f"list of {_type(schema['items'])}" if "items" in schema else f"({', '.join(map(_type, items or ()))})"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    words = {"string": "text", "integer": "number", "number": "number", "boolean": "true or false", "null": "null"}
    if schema.get("contentEncoding") == "base64":
        return "base64"
    return words.get(str(schema.get("type", "")), "object" if schema.get("type") == "object" else "any value")
