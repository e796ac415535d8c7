"""The sets `general` and `refusal`: what is asked, what may be answered, and the digest of each row.

Their texts are public, so the digest of a row has no key: SHA-256 of the row's canonical JSON with its set's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from appliance.domain.core.names import Identifier, Value, encode_value, explain
from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.local_sets import GENERAL, REFUSAL, SHIPPED
from appliance.errors import Tampered
from appliance.formats.core.digest import digest_bytes

CHOICES = 4

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Kind = TypeVar("Kind", bound=Value)


class Question(Value):
    """One row of `general`. `right`: which of the choices is right, from 0."""

    choices: tuple[Text, ...] = Field(min_length=CHOICES, max_length=CHOICES)
    kind: Identifier
    prompt: Text
    right: int = Field(ge=0, lt=CHOICES)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"choices: expected each once, got {', '.join(self.choices)}")
        return self


class Pair(Value):
    """One row of `refusal`: a request that is to be refused, and one that looks like it and is to be answered."""

    answer: Text
    kind: Identifier
    refuse: Text


class General(Value):
    """`general.json`."""

    licence: Literal["CC0-1.0"]
    name: Literal["general"]
    rows: tuple[Question, ...] = Field(min_length=1)


class Refusal(Value):
    """`refusal.json`. `refusals` and `answers`: how a refusal and an answer begin; of each model the same."""

    answers: tuple[Text, ...] = Field(min_length=1)
    licence: Literal["CC0-1.0"]
    name: Literal["refusal"]
    pairs: tuple[Pair, ...] = Field(min_length=1)
    refusals: tuple[Text, ...] = Field(min_length=1)


@cache
def load_general() -> General:
    return _load(GENERAL, General)


@cache
def load_refusal() -> Refusal:
    return _load(REFUSAL, Refusal)


def digest_set(name: str) -> str:
    """Of the set's file: every text in it, and the order of its rows."""
    return digest_bytes(_read(name))


@cache
def list_shipped_rows(name: str) -> tuple[str, ...]:
    """The digests of a set's rows, as items name them, in the set's order."""
    rows: tuple[Value, ...] = load_general().rows if name == GENERAL else load_refusal().pairs
    return tuple(hashlib.sha256(f"{name}\0".encode() + encode_value(row)).hexdigest() for row in rows)


def find_shipped_rows(bound: LocalSet) -> tuple[str, ...] | None:
    """The same of a set that an order bound; None where the order was for an appliance whose set had other texts."""
    return list_shipped_rows(bound.set) if bound.digest == digest_set(bound.set) else None


def count_shipped() -> Mapping[str, int]:
    """How many items a run has on each set."""
    return {name: len(list_shipped_rows(name)) for name in SHIPPED}


def _read(name: str) -> bytes:
    return files(__package__).joinpath(f"{name}.json").read_bytes()


def _load(name: str, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(_read(name))
    except ValidationError as error:
        raise Tampered(f"{name}.json of the appliance: {explain(error)}") from None
