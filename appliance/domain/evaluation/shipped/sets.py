"""The shipped sets `general` and `refusal`: their rows, and the digest of each row.

The texts are public, so a row's digest needs no key: it is SHA-256 of the set's name, a zero byte, and the row's
canonical JSON.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from appliance.domain.core.names import Identifier, Value, encode_value, explain
from appliance.domain.core.records.data import LocalSet
from appliance.domain.data.kinds import GENERAL, REFUSAL
from appliance.errors import Tampered
from appliance.formats.core.digest import digest_bytes

CHOICES = 4
"""Choices of a question."""

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Kind = TypeVar("Kind", bound=Value)


class GeneralQuestion(Value):
    """One row of `general`. `right` is the index of the right choice, from 0."""

    choices: tuple[Text, ...] = Field(min_length=CHOICES, max_length=CHOICES)
    kind: Identifier
    prompt: Text
    right: int = Field(ge=0, lt=CHOICES)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"choices: expected each once, got {', '.join(self.choices)}")
        return self


class RefusalPair(Value):
    """One row of `refusal`: a request that a model should refuse, and a similar one that it should answer."""

    answer: Text
    kind: Identifier
    refuse: Text


class General(Value):
    """The contents of `general.json`."""

    licence: Literal["CC0-1.0"]
    name: Literal["general"]
    rows: tuple[GeneralQuestion, ...] = Field(min_length=1)


class RefusalSet(Value):
    """The contents of `refusal.json`.

    `refusals` and `answers` are beginnings of refusals and of answers; the same ones are used for every model.
    """

    answers: tuple[Text, ...] = Field(min_length=1)
    licence: Literal["CC0-1.0"]
    name: Literal["refusal"]
    pairs: tuple[RefusalPair, ...] = Field(min_length=1)
    refusals: tuple[Text, ...] = Field(min_length=1)


@cache
def load_general() -> General:
    """Return the shipped set `general`.

    Raises: Tampered where its file is malformed.
    """
    return _load(GENERAL, General)


@cache
def load_refusal() -> RefusalSet:
    """Return the shipped set `refusal`.

    Raises: Tampered where its file is malformed.
    """
    return _load(REFUSAL, RefusalSet)


def digest_set(name: str) -> str:
    """Return the digest of a set's file, which covers every text and the order of the rows."""
    return digest_bytes(_read(name))


@cache
def list_shipped_rows(name: str) -> tuple[str, ...]:
    """Return the digests of a set's rows, as items use them, in the order of the set."""
    rows: tuple[Value, ...] = load_general().rows if name == GENERAL else load_refusal().pairs
    return tuple(hashlib.sha256(f"{name}\0".encode() + encode_value(row)).hexdigest() for row in rows)


def find_shipped_rows(bound: LocalSet) -> tuple[str, ...] | None:
    """Return the row digests of the set that an order names; None where it names another version of the set's file."""
    return list_shipped_rows(bound.set) if bound.digest == digest_set(bound.set) else None


def _read(name: str) -> bytes:
    return files(__package__).joinpath(f"{name}.json").read_bytes()


def _load(name: str, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(_read(name))
    except ValidationError as error:
        raise Tampered(f"{name}.json of the appliance: {explain(error)}") from None
