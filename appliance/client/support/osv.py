"""Published advisories about libraries: records of the OSV schema (https://ossf.github.io/osv-schema/, 1.7).

Only what decides whether a version is affected is read; other fields are left out.
"""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from appliance.domain.core.names import explain
from appliance.errors import BadInput
from appliance.formats.core.canonical import check_values

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
    """A version at which a range begins or ends: one of the fields is set."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class AffectedRange(_Part):
    """A range of versions, or of commits if its type is GIT."""

    type: str = ""
    events: tuple[RangeEvent, ...]


class AffectedLibrary(_Part):
    """A library that an advisory is about."""

    package: AffectedPackage = AffectedPackage()
    versions: tuple[str, ...] = ()
    ranges: tuple[AffectedRange, ...] = ()

    @property
    def version_ranges(self) -> list[tuple[RangeEvent, ...]]:
        """Return the events of each range of versions."""
        return [one.events for one in self.ranges if one.type != "GIT"]


class Advisory(_Part):
    """One advisory."""

    id: str
    aliases: tuple[str, ...] = ()
    modified: AwareDatetime
    withdrawn: Any = None
    summary: str | None = None
    details: str | None = None
    affected: tuple[AffectedLibrary, ...] = ()

    @property
    def title(self) -> str:
        """Return the first line of the summary, or of the details if there is no summary."""
        return (self.summary or self.details or "").strip().partition("\n")[0][:_MOST_SUMMARY]


_RECORDS = TypeAdapter(tuple[Advisory, ...])


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Parse one record, or an array of records."""
    check_values(data, "advisories", MOST_VALUES)
    try:
        if data.lstrip().startswith(b"["):
            return _RECORDS.validate_json(data)
        return (Advisory.model_validate_json(data),)
    except ValidationError as error:
        raise BadInput(f"advisories: {explain(error)}") from None
