"""Orders, the requests that people sign: their common fields, their encoding, and their parser.

An order is the payload of a DSSE envelope: an in-toto Statement v1 whose predicate is the order and whose subjects
name, by digest, what the order is about. The parser derives the subjects from the predicate and compares them. An order
is identified by the digest of its PAE, never by a signature. Each kind of order is declared in the file of its subject;
`actions` collects them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from appliance.domain.core.names import Commitment, Identifier, Nonce, Time, Value, encode_value, parse_value
from appliance.errors import BadInput
from appliance.formats.core.canonical import check_values, encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import Statement, encode_statement, parse_statement

PREFIX = "urn:appliance:order:"
MAX_VALUES = 2_000
"""Largest number of JSON values in an order. The validator can report an error for each, and blocks other threads."""

_COMMITMENT = re.compile(r"hmac-sha256:[0-9a-f]{64}")

Subjects = tuple[tuple[str, str], ...]


def derived(**constraints: Any) -> Any:
    """Return the declaration of a field that `Action.complete` fills. No form asks for it."""
    return Field(json_schema_extra={"derived": True}, **constraints)


def entered(
    hint: str = "",
    *,
    label: str = "",
    kind: str = "",
    first: str = "",
    needed: str = "",
    part: str = "",
    optional: bool = False,
    **constraints: Any,
) -> Any:
    """Return the declaration of a field that a person enters, with its hint and label in forms.

    A form shows the description if there is no hint. `kind` is the kind of input where the field's type does not tell
    it, such as a document, an uploaded file, or the name of something new. `first` is the value that a form begins
    with. An optional text can be empty. `needed` says for what a field that can be empty is required. `part` is the
    title of the folded part of the form in which the field is.
    """
    words = {"hint": hint, "kind": kind, "first": first, "needed": needed, "part": part}
    extra: dict[str, Any] = {name: text for name, text in words.items() if text}
    if optional:
        extra["optional"] = True
    return Field(title=label or None, json_schema_extra=extra or None, **constraints)


class Order(Value):
    """A signed request. This base class has the fields that all orders share."""

    action: ClassVar[str]
    keeps_texts: ClassVar[bool] = True
    """True if the order's own entry keeps the texts that the order names.

    It is False for an erasure, which destroys them.
    """
    sets_time: ClassVar[bool] = False
    """True if the order's entry sets the log's time back.

    While such an order is pending, the log's entries have later times than the time at which it was signed.
    """

    origin: str = Field(max_length=255, description="the log this order is for")
    signer: Identifier
    nonce: Nonce
    issued_at: Time
    expires_at: Time
    reason: Commitment | None = Field(default=None, description="why, in your words; it can be erased later")

    def subjects(self) -> Subjects:
        """Return (name, digest) of each thing that the order is about; at least one."""
        raise NotImplementedError

    def about(self) -> tuple[str, ...]:
        """Return the subjects under which the ledger indexes the order."""
        return tuple(name for name, _ in self.subjects())

    def commitments(self) -> dict[str, str]:
        """Return the commitments of all texts that the order binds, by the name of their field."""
        values = self.__dict__.items()
        return {name: value for name, value in values if isinstance(value, str) and _COMMITMENT.fullmatch(value)}

    def _self(self, name: str) -> Subjects:
        """Return the subject of an order about something that has no bytes: its digest is that of the predicate."""
        return ((name, digest_bytes(encode_value(self))),)


def encode_order(order: Order) -> bytes:
    """Return the payload to sign: an in-toto statement in canonical JSON."""
    predicate = order.model_dump(mode="json")
    return encode_statement(Statement(order.subjects(), f"{PREFIX}{order.action}:v1", predicate))


def parse_order(payload: bytes, models: Mapping[str, type[Order]]) -> Order:
    """Parse a statement's bytes as an order of one of `models` (by action).

    Raises: BadInput for more than MAX_VALUES values, for an unknown action, for a malformed field, and for subjects
    that differ from those that follow from the predicate.
    """
    check_values(payload, "order", MAX_VALUES)
    statement = parse_statement(payload)
    action, _, version = statement.predicate_type.removeprefix(PREFIX).rpartition(":")
    model = models.get(action)
    if model is None or version != "v1" or not statement.predicate_type.startswith(PREFIX):
        raise BadInput(f"order: expected a predicateType {PREFIX}ACTION:v1, got {statement.predicate_type[:120]!r}")
    order = parse_value(model, encode_canonical(statement.predicate), f"order {action}")
    if order.subjects() != statement.subjects:
        raise BadInput(f"order {action}: expected subjects {order.subjects()}, got {statement.subjects}")
    return order
