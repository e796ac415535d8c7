"""One entry of the ledger: the value and its only encoding.

An entry is canonical JSON (RFC 8785) and a leaf of the RFC 6962 tree. `prev` is the leaf hash of the entry before; for
index 0 it is 32 zero bytes. Documents lie beside the entry and are bound by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from appliance.domain.names import Digest, Time, Value, explain
from appliance.errors import BadInput, TooLarge
from appliance.formats.canonical import MAX_DEPTH, MAX_INTEGER, ordered
from appliance.formats.commitment import Disclosure
from appliance.formats.merkle import hash_leaf

MAX_ENTRY_BYTES = 65_535
"""An entry bundle of C2SP tlog-tiles prefixes each entry with a uint16 length."""

Outcome = Literal["success", "failure", "denied", "pending", "interrupted"]

_ORDERED = AfterValidator(lambda value: ordered(value, MAX_DEPTH - 1))


class Entry(Value):
    """What happened, in the field's own words (NIST 800-53 AU-3: type, time, source, outcome, identity).

    The fields stand in the order of their names: so pydantic, which escapes as RFC 8785 does, writes canonical JSON.
    What is open is put in order when the entry is made; BadInput for what has no canonical form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ignored_types=(cached_property,))

    actor: str = Field(max_length=64)
    body: Annotated[dict[str, Any], _ORDERED]
    documents: Annotated[dict[str, Digest], _ORDERED]
    index: int = Field(ge=0, le=MAX_INTEGER)
    outcome: Outcome
    prev: Digest
    source: str = Field(max_length=128)
    subjects: tuple[str, ...] = Field(max_length=32)
    time: Time
    type: str = Field(max_length=64)
    v: Literal[1]

    @cached_property
    def encoded(self) -> bytes:
        """The entry's bytes; parsing keeps the bytes it was given, which re-encode to the same."""
        return _encode(self)

    @cached_property
    def leaf(self) -> bytes:
        """RFC 6962 leaf hash, 32 bytes."""
        return hash_leaf(self.encoded)

    @cached_property
    def link(self) -> Digest:
        """The leaf hash as the next entry's `prev` names it."""
        return f"sha256:{self.leaf.hex()}"


@dataclass(frozen=True)
class Draft:
    """An entry before the ledger has given it an index, a time and a predecessor."""

    type: str
    actor: str = "service"
    source: str = "service"
    subjects: tuple[str, ...] = ()
    outcome: Outcome = "success"
    documents: Mapping[str, bytes] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    disclosures: tuple[Disclosure, ...] = ()


def encode_entry(entry: Entry) -> bytes:
    """The entry's canonical bytes; TooLarge beyond 65,535."""
    data = entry.encoded
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry {entry.index} ({entry.type}): expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    return data


def parse_entry(data: bytes) -> Entry:
    """The value of canonical entry bytes; BadInput when they are not exactly what encode_entry would write."""
    if len(data) > MAX_ENTRY_BYTES:
        raise TooLarge(f"entry: expected at most {MAX_ENTRY_BYTES} bytes, got {len(data)}")
    try:
        entry = _validate(data)
    except ValidationError as error:
        raise BadInput(f"entry: {explain(error)}") from None
    if _encode(entry) != data:
        raise BadInput("entry: expected canonical JSON (RFC 8785) with every field, got another encoding of it")
    leaf = hash_leaf(data)
    entry.__dict__.update(encoded=data, leaf=leaf, link=f"sha256:{leaf.hex()}")
    return entry


def _encode(entry: Entry) -> bytes:
    try:
        return _serialize(entry)
    except PydanticSerializationError as error:
        raise BadInput(f"entry: expected Unicode text, got a lone surrogate ({error})") from None


_validate: Callable[[bytes], Entry] = Entry.__pydantic_validator__.validate_json
_serialize: Callable[[Entry], bytes] = Entry.__pydantic_serializer__.to_json
