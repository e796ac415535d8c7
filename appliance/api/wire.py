"""Bytes, disclosures and envelopes as JSON has them, and the parsing of a response."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema

from appliance.domain.core.names import explain
from appliance.errors import BadInput, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure as _Disclosure
from appliance.formats.core.commitment import disclosure_value, parse_disclosure_value
from appliance.formats.core.fields import encode_base64, parse_base64
from appliance.formats.signatures.dsse import Envelope as _Envelope
from appliance.formats.signatures.dsse import envelope_value, parse_envelope

T = TypeVar("T")


def parser(kind: type[T], parse: Callable[[Any], T]) -> PlainValidator:
    """Return a validator that parses JSON with a parser of `formats`, and accepts a value that was parsed already."""

    def validate(value: Any) -> T:
        try:
            return value if isinstance(value, kind) else parse(value)
        except BadInput as error:
            raise ValueError(error.message) from None

    return PlainValidator(validate)


Bytes = Annotated[
    bytes,
    parser(bytes, lambda value: parse_base64(value, "base64")),
    PlainSerializer(encode_base64, return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes, in JSON as standard base64."""

Disclosure = Annotated[
    _Disclosure,
    parser(_Disclosure, parse_disclosure_value),
    PlainSerializer(disclosure_value, return_type=dict),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("commitment", "salt", "text")},
            "required": ["commitment", "salt", "text"],
        }
    ),
]
"""A text and the salt that open a commitment (`formats.core.commitment`)."""


Envelope = Annotated[
    _Envelope,
    parser(_Envelope, lambda value: parse_envelope(encode_canonical(value))),
    PlainSerializer(envelope_value, return_type=dict),
    WithJsonSchema({"type": "object", "description": "A DSSE envelope (docs/formats/order.md)."}),
]
"""A signed statement (DSSE)."""


_adapter_of: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def parse_response(model: type[T], data: bytes, what: str) -> T:
    """Parse a response of the service. Unknown fields are refused: the service is then of another build.

    Raises: Unavailable if the response has another form.
    """
    try:
        parsed: T = _adapter_of(model).validate_json(data)
    except ValidationError as error:
        raise Unavailable(
            f"service, {what}: expected a response of this build, got {explain(error)[:300]}; compare the versions of "
            "appliance --version and appliance status",
            code="another-build",
        ) from None
    return parsed


def json_value(value: object) -> Any:
    """Return a request or a response, or a part of one, as a value that `json.dumps` writes."""
    return _adapter_of(type(value)).dump_python(value, mode="json", by_alias=True)
