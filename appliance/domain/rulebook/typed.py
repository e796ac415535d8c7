"""Entries read with their bodies typed, in one pass over the bytes: how a whole log is read.

For each type of entry a model is built whose body is that type's; the bytes say which. It takes nothing that
`parse_entry` and `apply.parse_body` would refuse, and whatever it does not take is given to them, who say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, ValidationError, create_model

from appliance.domain.core.entry import MAX_ENTRY_BYTES, Entry, entry_of, parse_entry
from appliance.domain.core.event import Event
from appliance.domain.rulebook.registry import EVENTS


def _typed(model: type[Event]) -> Any:
    fields: dict[str, Any] = {"body": (model, ...), "type": (Literal[model.type], ...)}
    return create_model(model.type, __base__=Entry, **fields)


_ANY: Any = Annotated[Union[tuple(map(_typed, EVENTS.values()))], Field(discriminator="type")]  # noqa: UP007
_TYPED: TypeAdapter[Entry] = TypeAdapter(_ANY)


def make_typed(fields: Mapping[str, Any]) -> Entry:
    """The entry of these fields, whose `body` is a value of the type's own class; ValidationError where it is not."""
    entry: Entry = _TYPED.validator.validate_python(fields)
    return entry


def parse_typed(data: bytes) -> Entry:
    """The entry with its typed body where it has the body of its type; else as `parse_entry` reads or refuses it."""
    try:
        entry = _TYPED.validator.validate_json(data)
    except ValidationError:
        return parse_entry(data)
    return parse_entry(data) if len(data) > MAX_ENTRY_BYTES else entry_of(entry, data)
