"""The comparison of installed libraries with a file of published advisories (OSV)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from appliance.client.support.files import read_file, replace_private
from appliance.client.support.osv import Advisory, AffectedLibrary, RangeEvent, parse_advisories
from appliance.client.support.session import state_folder
from appliance.errors import BadInput, NotFound, TooLarge
from appliance.formats.core.fields import parse_decimal, show

ECOSYSTEM = "PyPI"
_MAX_BYTES = 256 * 2**20
_MAX_RECORD_BYTES = 8 * 2**20
_MAX_RECORDS = 500_000


@dataclass(frozen=True)
class Match:
    """An advisory that affects an installed library, or that cannot be compared with it."""

    package: str
    version: str
    advisory: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str
    comparable: bool
    """False if the advisory names no versions that can be compared. A person must read it."""


@dataclass(frozen=True)
class AdvisoryComparison:
    """The outcome of the comparison of the installed libraries with a file of advisories."""

    advisories: int
    """Number of records about Python's libraries that are not withdrawn."""
    newest: datetime
    """Time of the newest record of the file."""
    matches: tuple[Match, ...]


def list_installed() -> dict[str, str]:
    """Return the version of each installed library by its normalised name, without the appliance itself."""
    found: dict[str, str] = {}
    for one in distributions():
        if one.name:
            found.setdefault(canonicalize_name(one.name), one.version)  # the first is the one that is imported
    return {name: version for name, version in sorted(found.items()) if name != "appliance"}


def compare(path: Path, installed: dict[str, str]) -> AdvisoryComparison:
    """Compare the installed libraries with the advisories of the file.

    Raises: BadInput for a file that is no export of OSV records, or has none about Python's libraries.
    """
    records, relevant, newest, matches = 0, 0, datetime.min.replace(tzinfo=UTC), []
    for advisory in read_advisories(path):
        records += 1
        newest = max(newest, advisory.modified)
        listed = () if advisory.withdrawn is not None else advisory.affected
        affected = [one for one in listed if one.package.ecosystem.partition(":")[0] == ECOSYSTEM]
        relevant += bool(affected)
        for one in affected:
            name = canonicalize_name(one.package.name)
            if name in installed and (verdict := is_affected(installed[name], one)) is not False:
                matches.append(_describe(advisory, one, name, installed[name], comparable=verdict is True))
    if not relevant:
        got = f"{records} records without one"
        raise BadInput(f"advisories, {path}: expected OSV records of the ecosystem {ECOSYSTEM}, got {got}")
    return AdvisoryComparison(
        relevant, newest, tuple(sorted(matches, key=lambda match: (match.package, match.advisory)))
    )


def count_path() -> Path:
    """Return the path of the file that stores the largest number of advisories in a checked file."""
    return state_folder() / "advisories.count"


def read_largest_count() -> int | None:
    """Return the largest number of advisories that a checked file had, or None before the first check."""
    what = f"advisories, {count_path()}"
    try:
        data = read_file(count_path(), what, 20)
    except NotFound:
        return None
    return parse_decimal(data.decode("ascii", "replace").strip(), what)


def store_largest_count(count: int) -> None:
    """Store the number of advisories of a checked file for later checks."""
    replace_private(count_path(), f"{count}\n".encode(), "advisories")


def _describe(advisory: Advisory, affected: AffectedLibrary, name: str, version: str, *, comparable: bool) -> Match:
    fixed = tuple(event.fixed for events in affected.version_ranges for event in events if event.fixed is not None)
    return Match(name, version, advisory.id, advisory.aliases, fixed, advisory.title, comparable)


def read_advisories(path: Path) -> Iterator[Advisory]:
    """Yield the records of an export: a ZIP with a JSON file for each record, one record, or an array of records."""
    if not zipfile.is_zipfile(path):
        yield from parse_advisories(read_file(path, "advisories", _MAX_BYTES))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(".json")]
            if len(members) > _MAX_RECORDS:
                raise TooLarge(f"advisories, {path}: expected at most {_MAX_RECORDS} records, got {len(members)}")
            for member in members:
                with archive.open(member) as file:
                    data = file.read(_MAX_RECORD_BYTES + 1)
                if len(data) > _MAX_RECORD_BYTES:
                    what = f"advisories, {show(member.filename)}"
                    raise TooLarge(f"{what}: expected at most {_MAX_RECORD_BYTES} bytes, got more")
                yield from parse_advisories(data)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadInput(f"advisories, {path}: expected a whole ZIP without a password, got: {error}") from None


def is_affected(version: str, affected: AffectedLibrary) -> bool | None:
    """Return True if the version is affected, False if it is not, and None if they cannot be compared.

    A local part, such as `+cpu`, names a build of the same version, so it is left out.
    """
    if version in affected.versions:
        return True
    ranges = affected.version_ranges
    try:
        own = _public(version)
        if any(_public(one) == own for one in affected.versions if _is_version(one)):
            return True
        if any(_is_in_range(own, events) for events in ranges):
            return True
    except ValueError:  # InvalidVersion, or a number of more digits than Python converts
        return None
    can_compare = all(any(event.introduced is not None for event in events) for events in ranges)
    return False if can_compare and (ranges or affected.versions) else None


def _is_in_range(own: Version, events: Sequence[RangeEvent]) -> bool:
    """Evaluate the events of a range in the order of their versions, as the OSV schema says."""
    limits = [event.limit for event in events if event.limit is not None]
    if limits and not any(text == "*" or own < _public(text) for text in limits):
        return False
    within = False
    bounds = [
        (_public(version), kind)
        for event in events
        for kind in ("introduced", "fixed", "last_affected")
        if (version := getattr(event, kind)) is not None
    ]
    for bound, kind in sorted(bounds):
        if kind == "introduced" and own >= bound:
            within = True
        elif (kind == "fixed" and own >= bound) or (kind == "last_affected" and own > bound):
            within = False
    return within


def _public(text: str) -> Version:
    """Return the version without its local part. The schema's version 0 is before every other one."""
    return Version("0.dev0") if text == "0" else Version(Version(text).public)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except ValueError:
        return False
    return True
