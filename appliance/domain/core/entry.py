"""One entry of the ledger: the value and its only encoding.

An entry is canonical JSON (RFC 8785) and a leaf of the RFC 6962 tree. `prev` is the leaf hash of the entry before; for
index 0 it is 32 zero bytes. Documents lie beside the entry and are bound by digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from appliance.domain.core.names import SERVICE, Canonical, Digest, Time, explain, write_canonical
from appliance.errors import BadInput, TooLarge
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.merkle import hash_leaf

MAX_ENTRY_BYTES = 65_535
"""An entry bundle of C2SP tlog-tiles prefixes each entry with a uint16 length."""
MAX_SUBJECTS = 32
"""Under which an entry is found."""

Outcome = Literal["success", "failure", "denied", "pending", "interrupted"]


class Entry(Canonical):
    """What happened, in the field's own words (NIST 800-53 AU-3: type, time, source, outcome, identity)."""

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
        """The entry's bytes; parsing keeps the bytes it was given, which re-encode to the same."""
        return write_canonical(self)

    @cached_property
    def leaf(self) -> bytes:
        """RFC 6962 leaf hash, 32 bytes."""
        return hash_leaf(self.encoded)

    @cached_property
    def link(self) -> Digest:
        """The leaf hash as the next entry's `prev` names it."""
        return f"sha256:{self.leaf.hex()}"


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Draft:
    """An entry before the ledger has given it an index, a time and a predecessor."""

    type: str
    actor: str = SERVICE
    source: str = "service"
    subjects: tuple[str, ...] = ()
    outcome: Outcome = "success"
    documents: Mapping[str, bytes] = field(default_factory=dict)
    body: Canonical | Mapping[str, Any] = field(default_factory=dict)
    """The value itself, of the type's own class, costs less than its members; the entry then holds it."""
    disclosures: tuple[Disclosure, ...] = ()
    erased: tuple[str, ...] = ()
    """Commitments whose texts go with this entry."""


def encode_entry(entry: Entry) -> bytes:
    """The entry's canonical bytes; TooLarge beyond 65,535."""
    if "encoded" not in entry.__dict__:
        _keep(entry, write_canonical(entry))
    data = entry.encoded
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry {entry.index} ({entry.type}): expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    return data


def parse_entry(data: bytes) -> Entry:
    """The value of canonical entry bytes; BadInput when they are not exactly what encode_entry would write."""
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry: expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    try:
        entry: Entry = Entry.__pydantic_validator__.validate_json(data)
    except ValidationError as error:
        raise BadInput(f"entry: {explain(error)}") from None
    return entry_of(entry, data)


def entry_of(entry: E, data: bytes) -> E:
    """The entry with the bytes that it was read from and their hash; BadInput when it is written otherwise."""
    if write_canonical(entry) != data:
        raise BadInput("entry: expected canonical JSON (RFC 8785) with every field, got a different encoding")
    _keep(entry, data)
    return entry


def _keep(entry: Entry, data: bytes) -> None:
    """All that follows from the bytes at once: a cached property takes a lock for each."""
    leaf = hash_leaf(data)
    entry.__dict__.update(encoded=data, leaf=leaf, link=f"sha256:{leaf.hex()}")
