"""The types of names, digests, times and other values that statements, entries and rules consist of."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
)

from appliance.domain.core.words import form, items_of, problems
from appliance.errors import BadInput
from appliance.formats.core.canonical import MAX_DEPTH, MAX_INTEGER, check_values, encode_canonical, ordered, parse_json
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import check_time, encode_time, parse_time

IDENTIFIER = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NO_DIGEST = "sha256:" + "0" * 64
"""The digest of 32 zero bytes, where no digest exists."""
SERVICE = "service"
"""The actor of the service's own entries. No person or unit can have this name."""

_NAME = "lower-case letters, digits and hyphens, at most 63, beginning and ending with a letter or digit"


def _correct_name(typed: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", typed.lower())[:63].strip("-")


Identifier = Annotated[str, form(rf"^{IDENTIFIER}$", _NAME, _correct_name)]
"""A name that people type: of a principal, base, dataset, adapter, unit, served model or review function."""


def check_name(what: str, text: str) -> None:
    """Raise BadInput unless the text is an Identifier."""
    if re.fullmatch(IDENTIFIER, text) is None:
        near = _correct_name(text)
        raise BadInput(f"{what}: expected {_NAME}, got {text!r:.80}" + (f"; did you mean {near!r}?" if near else ""))


VersionedName = Annotated[str, form(rf"^{IDENTIFIER}@[1-9][0-9]{{0,8}}$", "NAME@VERSION such as clauses@1")]
"""A name and a version, `NAME@VERSION`. Versions are counted from 1."""

RunId = Annotated[str, form(r"^r-[0-9]{6,}$", "a run such as r-000001")]

Digest = Annotated[str, form(r"^sha256:[0-9a-f]{64}$", "a digest: sha256: and 64 hexadecimal digits")]

Commitment = Annotated[str, form(r"^hmac-sha256:[0-9a-f]{64}$", "a commitment: hmac-sha256: and 64 hexadecimal digits")]
"""A keyed digest that binds a text without revealing it (formats.commitment).

Text and salt are stored beside the log and can be erased.
"""


def _check_time(text: str) -> str:
    try:
        return check_time(text)
    except BadInput as error:
        raise ValueError(error.message) from None


Time = Annotated[
    str,
    form(
        r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
        "a time such as 2026-11-24T10:30:00.000Z",
    ),
    AfterValidator(_check_time),
]
"""A valid UTC time to the millisecond. The width is constant, so that text order is time order."""

Token = Annotated[
    str,
    form(
        r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$",
        "one word of at most 64 letters, digits and . + _ -, such as Apache-2.0",
    ),
]
"""A word of a vocabulary that others define: an SPDX licence or a classification."""

Decimal = Annotated[str, form(r"^(?:0|[1-9][0-9]{0,8})\.[0-9]{1,12}$", "a decimal fraction such as 0.2")]
"""A non-negative decimal fraction as text, since signed JSON has no floats here (RFC 8785)."""


def _check_base64(text: str) -> str:
    try:
        parse_base64(text, "base64")
    except BadInput as error:
        raise ValueError(error.message) from None
    return text


Nonce = Annotated[str, form(r"^[0-9a-f]{32}$", "32 hexadecimal digits")]

Code = Annotated[str, form(r"^[a-z][a-z0-9-]{0,63}$", "an error code, such as not-found")]

Base64 = Annotated[str, StringConstraints(min_length=1, max_length=16384), AfterValidator(_check_base64)]
"""Canonical standard base64. It is checked once, so that later decoding cannot fail."""

Role = Annotated[
    str,
    form(
        rf"^(?:administrator|operator|auditor|unit|validator|recovery|reviewer:{IDENTIFIER}|release-owner:{IDENTIFIER})$",
        "administrator, operator, auditor, unit, validator, recovery, reviewer:FUNCTION such as reviewer:privacy, "
        "or release-owner:UNIT such as release-owner:legal",
    ),
]
"""A role of a principal. A colon separates it from a reviewer's review function or a release owner's unit."""

EXCLUSIVE_ROLES = ("administrator", "auditor", "unit", "recovery")
"""Roles that exclude every other role: people who enrol, audit or use adapters do not also train or approve them.

A recovery key stays in a safe, so it has no other use."""
PARTED_ROLES = ("operator", "validator")
"""Roles that exclude each other: a person who trains adapters does not choose the rows that evaluate them."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields and implicit conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _canonical(schema: Any, depth: int) -> Any:
    """Return the schema with its fields sorted and its open values (objects, any value) put into canonical order.

    `depth` is the number of levels that may still follow.
    """
    match schema["type"]:
        case "any" | "dict":
            function = {"type": "no-info", "function": lambda value: ordered(value, depth)}
            return {"type": "function-after", "function": function, "schema": schema}
        case "int":
            least, most = schema.get("ge", -MAX_INTEGER), schema.get("le", MAX_INTEGER)
            return schema | {"ge": max(least, -MAX_INTEGER), "le": min(most, MAX_INTEGER)}
        case "model-fields":
            fields = sorted(schema["fields"].items())
            return schema | {"fields": {name: _canonical(field, depth - 1) for name, field in fields}}
        case "tuple":
            return schema | {"items_schema": [_canonical(item, depth - 1) for item in schema["items_schema"]]}
        case "union":
            return schema | {"choices": [_canonical(choice, depth) for choice in schema["choices"]]}
        case "model" | "model-field" | "nullable" | "function-after":
            return schema | {"schema": _canonical(schema["schema"], depth)}
        case "str" | "bool" | "none" | "literal" | "definition-ref":  # the last: a canonical value
            return schema
        case kind:
            raise TypeError(f"schema {kind}: expected one that has a canonical form")


class Canonical(Value):
    """A value that pydantic's own serialiser writes as canonical JSON, in one pass.

    The serialiser escapes as RFC 8785 does. The schema sorts the fields, and open values (an object, any value) are put
    into canonical order when the value is made. Nested values are Canonical, too.

    Raises: BadInput for an open value that has no canonical form.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return _canonical(handler(source), MAX_DEPTH)


V = TypeVar("V", bound=Value)
M = TypeVar("M", bound=BaseModel)


def encode_value(value: Value) -> bytes:
    """Return the value's canonical bytes (RFC 8785)."""
    return encode_canonical(value.model_dump(mode="json"))


def write_canonical(value: Canonical) -> bytes:
    """Return the same bytes as `encode_value`, in one pass.

    Raises: BadInput for a lone surrogate.
    """
    try:
        return value.__pydantic_serializer__.to_json(value)
    except ValueError as error:
        raise BadInput(f"{type(value).__name__}: expected Unicode, got a lone surrogate ({error})") from None


def parse_value(model: type[V], data: bytes, what: str) -> V:
    """Parse canonical bytes: decode, encode again, compare.

    Raises: BadInput, which names the malformed field.
    """
    value = validate_json(model, data, what)
    if encode_value(value) != data:
        raise BadInput(f"{what}: expected canonical JSON (RFC 8785) with every field, got a different encoding")
    return value


def validate_json(model: type[M], data: bytes, what: str) -> M:
    """Parse JSON in any encoding.

    Raises: BadInput, which names the malformed fields, or reports that there are too many values.
    """
    check_values(data, what)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"{what}: {explain(error)}") from None


def parse_file(model: type[M], data: bytes, what: str) -> M:
    """Parse JSON that people wrote. The layout is free, keys must be unique, and missing fields get their defaults."""
    parse_json(data, what)
    return validate_json(model, data, what)


def list_problems(error: ValidationError) -> list[str]:
    """Return the first problems of a pydantic error in plain words, and the number of the others."""
    return list(problems(items_of(error)))


def explain(error: ValidationError) -> str:
    """Return the problems of a pydantic error as one line."""
    return "; ".join(list_problems(error))


def add_seconds(time: str, seconds: int) -> str:
    """Return the time that many seconds later, to the same millisecond.

    Raises: BadInput past the year 9999.
    """
    try:
        return encode_time(parse_time(time) + timedelta(seconds=seconds))
    except OverflowError:
        raise BadInput(f"time: expected one before the year 10000, got {seconds} s after {time}") from None


def versioned(name: str, version: int) -> str:
    return f"{name}@{version}"


def split_version(text: str) -> tuple[str, int]:
    """Split `clauses@3` into ("clauses", 3). The text must be a valid VersionedName."""
    name, _, version = text.rpartition("@")
    return name, int(version)


RecordClass = Literal["previews", "refusals", "replays", "requests"]
"""A class of records that may be archived: sample views and trials, refusals, replays of training, and requests with
their responses."""
FinishReason = Literal["stop", "tool_calls", "length", "cancelled", "classified", "failure", "interrupted"]
"""Reason for which a response ended: the engine's, or the outcome where the engine gave none."""

OtherEngine = Literal["vllm"]
"""An engine that can serve units in place of the service's own engine."""
