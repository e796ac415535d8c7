"""Published advisories about libraries: records of the OSV schema (https://ossf.github.io/osv-schema/, 1.7).

Only what decides whether a version is affected is read; other fields are left out.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from appliance.domain.core.names import explain
from appliance.errors import BadInput
from appliance.formats.core.canonical import parse_json
from appliance.formats.core.fields import show

MOST_VALUES = 500_000
"""Largest number of JSON values in one record, or in a file of several."""
_MOST_SUMMARY = 200


class _Part(BaseModel):
    """A part of a record. Fields that it does not declare are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class AffectedPackage(_Part):
    """The name of a library. Both fields are empty if the advisory is about commits alone."""

    ecosystem: str = ""
    name: str = ""


class RangeEvent(_Part):
    """A version at which a range begins or ends. One of the fields is set."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None

    @model_validator(mode="after")
    def _check_versions(self) -> Self:
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("expected a version as text, got null")
        return self


class CommitRange(_Part):
    """A range of commits, whose events are not read."""

    type: Literal["GIT"]


class VersionRange(_Part):
    """A range of versions."""

    events: tuple[RangeEvent, ...]


class AffectedLibrary(_Part):
    """A library that an advisory is about."""

    package: AffectedPackage = AffectedPackage()
    versions: tuple[str, ...] = ()
    ranges: tuple[Annotated[CommitRange | VersionRange, Field(union_mode="left_to_right")], ...] = ()

    @property
    def version_ranges(self) -> list[tuple[RangeEvent, ...]]:
        """Return the events of each range of versions."""
        return [one.events for one in self.ranges if isinstance(one, VersionRange)]


def _parse_time(value: Any) -> datetime:
    """Parse a time of RFC 3339. Pydantic would also take seconds since 1970."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError(f"expected a time of RFC 3339, got {show(value)}")
    return time


class Advisory(_Part):
    """One advisory."""

    id: str
    aliases: tuple[str, ...] = ()
    modified: Annotated[datetime, BeforeValidator(_parse_time)]
    withdrawn: Any = None
    summary: str | None = None
    details: str | None = None
    affected: tuple[AffectedLibrary, ...] = ()

    @property
    def title(self) -> str:
        """Return the first line of the summary, or of the details if there is no summary."""
        return (self.summary or self.details or "").strip().partition("\n")[0][:_MOST_SUMMARY]


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Parse one record, or an array of records."""
    value = parse_json(data, "advisories", MOST_VALUES)
    return tuple(_parse_record(record) for record in (value if isinstance(value, list) else [value]))


def _parse_record(record: Any) -> Advisory:
    try:
        return Advisory.model_validate_json(json.dumps(record))
    except ValidationError as error:
        name = record.get("id") if isinstance(record, dict) else record
        raise BadInput(f"advisories, {show(name)}: {explain(error)}") from None
