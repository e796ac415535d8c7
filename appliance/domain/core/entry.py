"""Entries of the ledger: the value and its only encoding, and refusals as entries record them.

An entry is canonical JSON (RFC 8785) and a leaf of the RFC 6962 tree. `prev` is the leaf hash of the previous entry;
for index 0 it is 32 zero bytes. Documents are stored beside the entry, which contains their digests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from appliance.domain.core.names import (
    SERVICE,
    Canonical,
    Code,
    Commitment,
    Digest,
    RecordClass,
    Time,
    explain,
    write_canonical,
)
from appliance.errors import REFUSAL_CODES, BadInput, Refusal, RefusalValue, Rejected, TooLarge
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.merkle import hash_leaf

MAX_ENTRY_BYTES = 65_535
"""Largest size of an entry in bytes: an entry bundle of C2SP tlog-tiles prefixes each entry with a uint16 length."""
MAX_SUBJECTS = 32
"""Largest number of subjects under which one entry is indexed."""

Outcome = Literal["success", "failure", "denied", "pending", "interrupted"]


class Entry(Canonical):
    """One entry of the ledger: type, time, source, outcome and identity of an event (NIST 800-53 AU-3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ignored_types=(cached_property,))

    actor: str = Field(max_length=64)
    body: dict[str, Any]
    documents: dict[str, Digest]
    index: int = Field(ge=0)
    outcome: Outcome
    prev: Digest
    source: str = Field(max_length=128)
    subjects: tuple[str, ...] = Field(max_length=MAX_SUBJECTS)
    time: Time
    type: str = Field(max_length=64)
    v: Literal[1]

    @cached_property
    def encoded(self) -> bytes:
        """Return the entry's bytes. A parsed entry keeps the bytes that it was read from, which are the same."""
        return write_canonical(self)

    @cached_property
    def leaf(self) -> bytes:
        """Return the RFC 6962 leaf hash, 32 bytes."""
        return hash_leaf(self.encoded)

    @cached_property
    def link(self) -> Digest:
        """Return the leaf hash in the form in which the next entry's `prev` contains it."""
        return f"sha256:{self.leaf.hex()}"


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class EntryDraft:
    """An entry to which the ledger has not yet given an index, a time and a predecessor."""

    type: str
    actor: str = SERVICE
    source: str = "service"
    subjects: tuple[str, ...] = ()
    outcome: Outcome = "success"
    documents: Mapping[str, bytes] = field(default_factory=dict)
    body: Canonical | Mapping[str, Any] = field(default_factory=dict)
    """The event itself, or its fields as a mapping. Passing the event is cheaper: the entry then holds it unchanged."""
    disclosures: tuple[Disclosure, ...] = ()
    erased: tuple[str, ...] = ()
    """Commitments whose texts the append of this entry erases."""


def encode_entry(entry: Entry) -> bytes:
    """Return the entry's canonical bytes.

    Raises: TooLarge beyond 65,535 bytes.
    """
    if "encoded" not in entry.__dict__:
        _cache_bytes(entry, write_canonical(entry))
    data = entry.encoded
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry {entry.index} ({entry.type}): expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    return data


def parse_entry(data: bytes) -> Entry:
    """Parse canonical entry bytes.

    Raises: BadInput if they differ from the output of `encode_entry`; TooLarge beyond 65,535 bytes.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry: expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    try:
        entry: Entry = Entry.__pydantic_validator__.validate_json(data)
    except ValidationError as error:
        raise BadInput(f"entry: {explain(error)}") from None
    return entry_of(entry, data)


def entry_of(entry: E, data: bytes) -> E:
    """Attach to an entry the bytes that it was read from, and their hash.

    Raises: BadInput if the bytes are not the canonical encoding of the entry.
    """
    if write_canonical(entry) != data:
        raise BadInput("entry: expected canonical JSON (RFC 8785) with every field, got a different encoding")
    _cache_bytes(entry, data)
    return entry


def _cache_bytes(entry: Entry, data: bytes) -> None:
    """Fill all cached properties that follow from the bytes, since each cached property takes a lock of its own."""
    leaf = hash_leaf(data)
    entry.__dict__.update(encoded=data, leaf=leaf, link=f"sha256:{leaf.hex()}")


class Event(Canonical):
    """The body of an entry of one type, with the roles of the documents that the entry binds."""

    type: ClassVar[str]
    documents: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    outcomes: ClassVar[tuple[Outcome, ...]] = ("success",)
    actor_kind: ClassVar[str] = SERVICE
    """The actor of the entry: the service, `the unit` that the body names, or else a person whom a document names."""
    sets_time: ClassVar[bool] = False
    """True if an entry of this type may have an earlier time than the previous entry."""
    records: ClassVar[RecordClass | None] = None
    """The class of records to which an entry of this type belongs. None if the entry stays in the log for ever, since
    later entries, admission or the authority of a person depend on it."""
    part: ClassVar[Literal["whole", "opening", "end"]] = "whole"
    """The part of a record that the entry is.

    An opening and its end have the same first subject, and are archived together.
    """

    def about(self) -> tuple[str, ...]:
        """Return the subjects that the body itself names."""
        return ()

    def named(self) -> tuple[str, ...]:
        """Return the subjects of `about` without duplicates. They are computed once, since the value is frozen."""
        known: tuple[str, ...] | None = self.__dict__.get("_named")
        if known is None:
            known = self.__dict__["_named"] = tuple(dict.fromkeys(self.about()))
        return known

    @property
    def actor(self) -> str | None:
        """Return the required actor of the entry, or None if the rule takes the actor from a document."""
        if self.actor_kind == "the unit":
            unit: str = self.__dict__["unit"]
            return unit
        return SERVICE if self.actor_kind == SERVICE else None


class Failed(Event):
    """An event that records a failure.

    `message` is the commitment of the cause, a text of its own that can be erased.
    """

    outcomes = ("failure",)
    message: Commitment


class Ordered(Event):
    """An event that a person's signed order caused. `policy` is the digest of the policy set that allowed it."""

    documents: ClassVar[tuple[str, ...]] = ("order",)
    actor_kind = "signer"
    policy: Digest


class Countersigned(Ordered):
    """An event that needs two administrators: `order` countersigns the order in the document `countersigned`.

    On a site with a single administrator, `order` is the order itself and there is no `countersigned`.
    """

    optional = ("countersigned",)


MOST_RECORDED = 32
"""Largest number of refusals in one entry."""
_MOST_CHARACTERS = 200
"""Largest length of a recorded value. Of a longer one the length is recorded."""


class RecordedRefusal(Canonical):
    """A refusal in an entry: its code, the subject, and the values of its sentence.

    Values are known identifiers, words of a list, integers and times. Of a rejected value the length is recorded.
    """

    code: Code
    subject: str = Field(max_length=_MOST_CHARACTERS)
    values: dict[str, Any]


def record_refusals(refusals: Sequence[Refusal]) -> tuple[RecordedRefusal, ...]:
    """Return the first refusals in the form that an entry contains."""
    return tuple(
        RecordedRefusal(
            code=one.code, subject=one.subject, values={name: _record(value) for name, value in one.values.items()}
        )
        for one in refusals[:MOST_RECORDED]
    )


def _record(value: RefusalValue) -> int | str | list[str]:
    if isinstance(value, int):
        return value
    if isinstance(value, tuple):
        return [str(_record(one)) for one in value]
    if isinstance(value, Rejected) or len(value) > _MOST_CHARACTERS:
        return Rejected(value).recorded if not isinstance(value, Rejected) else value.recorded
    return value


def read_refusal(recorded: RecordedRefusal) -> Refusal:
    """Return the refusal of an entry with its sentence. A code of a later build has no sentence but itself."""
    values = {name: _read(value) for name, value in recorded.values.items()}
    declared = REFUSAL_CODES.get(recorded.code)
    if declared is None or declared.fields != values.keys():
        return Refusal(recorded.code, recorded.subject, values, "rule", f"{recorded.code} ({recorded.subject}).", "")
    return declared(recorded.subject, **values)


def _read(value: Any) -> RefusalValue:
    if isinstance(value, list):
        return tuple(map(str, value))
    return value if isinstance(value, int) else str(value)


_REFUSALS: TypeAdapter[tuple[Refusal, ...]] = TypeAdapter(tuple[Refusal, ...])


def parse_refusals(rows: object) -> tuple[Refusal, ...]:
    """Return the refusals of the API's JSON, which has their sentences.

    Raises: BadInput if they are malformed.
    """
    try:
        return _REFUSALS.validate_python(rows)
    except ValidationError as error:
        raise BadInput(f"refusals: {explain(error)}") from None
