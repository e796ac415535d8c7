"""The vocabulary that every statement, entry and rule is spelled in."""

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

from appliance.domain.core.words import form, problems
from appliance.errors import BadInput
from appliance.formats.core.canonical import MAX_DEPTH, MAX_INTEGER, encode_canonical, ordered
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import check_time, encode_time, parse_time

IDENTIFIER = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NO_DIGEST = "sha256:" + "0" * 64
SERVICE = "service"
"""The actor of what the appliance does by itself; no person or unit can have this name."""

_NAME = "lower-case letters, digits and hyphens, at most 63, beginning and ending with a letter or digit"


def _correct_name(typed: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", typed.lower())[:63].strip("-")


Identifier = Annotated[str, form(rf"^{IDENTIFIER}$", _NAME, _correct_name)]
"""A name people type: a principal, base, dataset, adapter, unit, task or field."""


def check_name(what: str, text: str) -> None:
    """BadInput unless it is an Identifier."""
    if re.fullmatch(IDENTIFIER, text) is None:
        near = _correct_name(text)
        raise BadInput(f"{what}: expected {_NAME}, got {text!r:.80}" + (f"; did you mean {near!r}?" if near else ""))


VersionedName = Annotated[str, form(rf"^{IDENTIFIER}@[1-9][0-9]{{0,8}}$", "NAME@VERSION such as clauses@1")]
"""`NAME@VERSION`, versions counted from 1."""

RunId = Annotated[str, form(r"^r-[0-9]{6,}$", "a run such as r-000001")]

Digest = Annotated[str, form(r"^sha256:[0-9a-f]{64}$", "a digest: sha256: and 64 hexadecimal digits")]

Commitment = Annotated[str, form(r"^hmac-sha256:[0-9a-f]{64}$", "a commitment: hmac-sha256: and 64 hexadecimal digits")]
"""Binds a text without showing it (formats.commitment); text and salt travel beside and can be erased."""


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
"""UTC to the millisecond, a time that exists; of constant width, so that text order is time order."""

Token = Annotated[
    str,
    form(
        r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$",
        "one word of at most 64 letters, digits and . + _ -, such as Apache-2.0",
    ),
]
"""A word of a closed vocabulary of others: an SPDX licence, a classification."""

Decimal = Annotated[str, form(r"^(?:0|[1-9][0-9]{0,8})\.[0-9]{1,12}$", "a decimal fraction such as 0.2")]
"""A non-negative decimal fraction in text, since nothing signed holds a float (RFC 8785)."""


def _check_base64(text: str) -> str:
    try:
        parse_base64(text, "base64")
    except BadInput as error:
        raise ValueError(error.message) from None
    return text


Nonce = Annotated[str, form(r"^[0-9a-f]{32}$", "32 hexadecimal digits")]

Base64 = Annotated[str, StringConstraints(min_length=1, max_length=16384), AfterValidator(_check_base64)]
"""Standard base64 in its one spelling, so that decoding it later cannot fail."""

Role = Annotated[
    str,
    form(
        rf"^(?:administrator|operator|auditor|unit|validator|reviewer:{IDENTIFIER}|release-owner:{IDENTIFIER})$",
        "administrator, operator, auditor, unit, validator, reviewer:FIELD such as reviewer:privacy, "
        "or release-owner:UNIT such as release-owner:legal",
    ),
]
"""What a principal may do; a reviewer's field and a release owner's unit follow the colon."""

EXCLUSIVE_ROLES = ("administrator", "auditor", "unit")
"""Roles that cannot be combined: people who enrol, audit or consume do not also train or approve."""
PARTED_ROLES = ("operator", "validator")
"""Roles that one person does not have both of: who trains does not choose the rows that judge it."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _canonical(schema: Any, depth: int) -> Any:
    """The schema with its fields sorted and what is open in it put in order; `depth`: how many levels are left."""
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
        case "model" | "model-field" | "nullable" | "function-after":
            return schema | {"schema": _canonical(schema["schema"], depth)}
        case "str" | "bool" | "none" | "literal" | "definition-ref":  # the last: a canonical value
            return schema
        case kind:
            raise TypeError(f"schema {kind}: expected one that has a canonical form")


class Canonical(Value):
    """A value that pydantic's own serialiser writes as canonical JSON, in one pass.

    It escapes as RFC 8785 does; here fields are sorted too, and what is open (an object, any value) is put in order
    when the value is made: BadInput for what has no canonical form. Values in it are canonical themselves.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return _canonical(handler(source), MAX_DEPTH)


V = TypeVar("V", bound=Value)


def encode_value(value: Value) -> bytes:
    """The value's canonical bytes (RFC 8785)."""
    return encode_canonical(value.model_dump(mode="json"))


def write_canonical(value: Canonical) -> bytes:
    """The same bytes as `encode_value`, in one pass."""
    try:
        return value.__pydantic_serializer__.to_json(value)
    except ValueError as error:
        raise BadInput(f"{type(value).__name__}: expected Unicode, got a lone surrogate ({error})") from None


def parse_value(model: type[V], data: bytes, what: str) -> V:
    """The value of canonical bytes: decoded, encoded again, compared. BadInput names the field that does not fit."""
    try:
        value = model.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"{what}: {explain(error)}") from None
    if encode_value(value) != data:
        raise BadInput(f"{what}: expected canonical JSON (RFC 8785) with every field, got a different encoding")
    return value


def list_problems(error: ValidationError) -> list[str]:
    """Each of a pydantic error's findings in plain words: where, what was expected, what was got."""
    return list(problems(dict(item) for item in error.errors(include_url=False)))


def explain(error: ValidationError) -> str:
    """The same as one line."""
    return "; ".join(list_problems(error))


def add_seconds(time: str, seconds: int) -> str:
    """The time that many seconds later, to the same millisecond; BadInput past the year 9999."""
    try:
        return encode_time(parse_time(time) + timedelta(seconds=seconds))
    except OverflowError:
        raise BadInput(f"time: expected one before the year 10000, got {seconds} s after {time}") from None


def versioned(name: str, version: int) -> str:
    return f"{name}@{version}"


def split_version(text: str) -> tuple[str, int]:
    """`clauses@3` as ("clauses", 3); the text has been checked against VersionedName."""
    name, _, version = text.rpartition("@")
    return name, int(version)


OtherEngine = Literal["vllm"]
"""What answers units in place of the appliance's own engine."""
