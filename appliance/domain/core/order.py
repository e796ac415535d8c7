"""What a person signs: what every order carries, its encoding, and how its bytes are read.

An order is the payload of a DSSE envelope: an in-toto Statement v1 whose predicate is the order and whose subjects
name, by digest, what it is about. Subjects are derived from the predicate and compared when parsed. An order is
identified by the digest of its PAE, never by a signature. The verbs stand with their subjects; the rulebook collects
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from appliance.domain.core.names import Commitment, Identifier, Nonce, Time, Value, encode_value, parse_value
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.statement import Statement, encode_statement, parse_statement

PREFIX = "urn:appliance:order:"

_COMMITMENT = re.compile(r"hmac-sha256:[0-9a-f]{64}")

Subjects = tuple[tuple[str, str], ...]


class Order(Value):
    """What every order carries, whatever its verb."""

    verb: ClassVar[str]
    keeps_texts: ClassVar[bool] = True
    """Whether the order's own entry keeps the texts that it names; an erasure names one to destroy it."""
    sets_time: ClassVar[bool] = False
    """Whether its entry sets the log's time back. While it waits, entries are dated ahead of the time it is signed
    at."""

    origin: str = Field(max_length=255, description="the log this order is for")
    signer: Identifier
    nonce: Nonce
    issued_at: Time
    expires_at: Time
    reason: Commitment | None = Field(default=None, description="why, in the signer's words")

    def subjects(self) -> Subjects:
        """(name, digest) of what the order is about; at least one."""
        raise NotImplementedError

    def about(self) -> tuple[str, ...]:
        """The subjects under which the ledger files the order."""
        return tuple(name for name, _ in self.subjects())

    def commitments(self) -> dict[str, str]:
        """Every text that the order commits to: its member's name to the commitment."""
        values = self.__dict__.items()
        return {name: value for name, value in values if isinstance(value, str) and _COMMITMENT.fullmatch(value)}

    def _self(self, name: str) -> Subjects:
        """For what has no bytes of its own: the digest of the predicate itself."""
        return ((name, digest_bytes(encode_value(self))),)


def encode_order(order: Order) -> bytes:
    """The payload that is signed: an in-toto statement in canonical JSON."""
    predicate = order.model_dump(mode="json")
    return encode_statement(Statement(order.subjects(), f"{PREFIX}{order.verb}:v1", predicate))


def parse_order(payload: bytes, models: Mapping[str, type[Order]]) -> Order:
    """The order of a statement's bytes, as one of `models` (by verb).

    BadInput for a verb that is not among them, a member that does not fit, or other subjects.
    """
    statement = parse_statement(payload)
    verb, _, version = statement.predicate_type.removeprefix(PREFIX).rpartition(":")
    model = models.get(verb)
    if model is None or version != "v1" or not statement.predicate_type.startswith(PREFIX):
        raise BadInput(f"order: expected a predicateType {PREFIX}VERB:v1, got {statement.predicate_type[:120]!r}")
    order = parse_value(model, encode_canonical(statement.predicate), f"order {verb}")
    if order.subjects() != statement.subjects:
        raise BadInput(f"order {verb}: expected subjects {order.subjects()}, got {statement.subjects}")
    return order
