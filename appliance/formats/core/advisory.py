"""Published advisories about libraries: records of the OSV schema (https://ossf.github.io/osv-schema/, 1.7).

Only what decides whether a version is affected is read; other fields are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.canonical import parse_json
from appliance.formats.core.fields import parse_list, parse_text, show

MOST_VALUES = 500_000
"""Largest number of JSON values in one record, or in a file of several."""
EVENTS = ("introduced", "fixed", "last_affected", "limit")
"""Kinds of events of a range."""
_MOST_SUMMARY = 200


@dataclass(frozen=True)
class RangeEvent:
    """A version at which a range begins or ends, by one of `EVENTS`."""

    kind: str
    version: str


@dataclass(frozen=True)
class AffectedLibrary:
    """A library that an advisory is about. `ranges` leaves out ranges of Git commits."""

    ecosystem: str
    name: str
    versions: tuple[str, ...]
    ranges: tuple[tuple[RangeEvent, ...], ...]


@dataclass(frozen=True)
class Advisory:
    """One advisory. `modified` has a time zone."""

    id: str
    aliases: tuple[str, ...]
    modified: datetime
    withdrawn: bool
    summary: str
    affected: tuple[AffectedLibrary, ...]


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Parse one record, or an array of records.

    Raises: BadInput for anything else.
    """
    value = parse_json(data, "advisories", MOST_VALUES)
    return tuple(_parse_record(one) for one in (value if isinstance(value, list) else [value]))


def _parse_record(value: Any) -> Advisory:
    record = _require_object(value, "advisories, record")
    name = parse_text(record.get("id"), "advisories, id")
    what = f"advisories, {show(name)}"
    affected = parse_list(record.get("affected", []), f"{what}, affected")
    text = record.get("summary") or record.get("details") or ""
    summary = parse_text(text, f"{what}, summary").strip().partition("\n")[0]
    return Advisory(
        id=name,
        aliases=_parse_texts(record.get("aliases", []), f"{what}, aliases"),
        modified=_parse_time(record.get("modified"), f"{what}, modified"),
        withdrawn=record.get("withdrawn") is not None,
        summary=summary[:_MOST_SUMMARY],
        affected=tuple(_parse_affected(one, f"{what}, affected") for one in affected),
    )


def _parse_affected(value: Any, what: str) -> AffectedLibrary:
    part = _require_object(value, what)
    package = _require_object(part.get("package", {}), f"{what}, package")
    ranges = [_require_object(one, f"{what}, ranges") for one in parse_list(part.get("ranges", []), f"{what}, ranges")]
    return AffectedLibrary(
        ecosystem=parse_text(package.get("ecosystem", ""), f"{what}, ecosystem"),
        name=parse_text(package.get("name", ""), f"{what}, name"),
        versions=_parse_texts(part.get("versions", []), f"{what}, versions"),
        ranges=tuple(_parse_events(one.get("events"), f"{what}, events") for one in ranges if one.get("type") != "GIT"),
    )


def _parse_events(value: Any, what: str) -> tuple[RangeEvent, ...]:
    events = [_require_object(one, what) for one in parse_list(value, what)]
    return tuple(
        RangeEvent(kind, parse_text(version, f"{what}, {kind}"))
        for event in events
        for kind, version in event.items()
        if kind in EVENTS
    )


def _parse_texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(parse_text(one, what) for one in parse_list(value, what))


def _parse_time(value: Any, what: str) -> datetime:
    text = parse_text(value, what)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise BadInput(f"{what}: expected a time of RFC 3339, got {show(text)}")
    return time


def _require_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{what}: expected an object, got {type(value).__name__}")
    return value
