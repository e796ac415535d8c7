"""The values that alarms compare, and those that are computed from the state.

The others are measured elsewhere (`workflows/queries/measures.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.records.people import Key
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Release
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import has_valid_key
from appliance.domain.governance.policies import refuse_too_few_signers
from appliance.domain.queries.pending import SOON_S, find_approval_end, find_release_end
from appliance.domain.releases.approval import (
    EMERGENCY_ENDED,
    FUNCTION_MISSING,
    TOO_FEW_APPROVALS,
    TOO_FEW_FUNCTIONS,
    find_release_blockers,
    list_latest_reviews,
)
from appliance.formats.core.timestamp import parse_time

_DAY_S = 86_400


class DiskSpace(NamedTuple):
    """The bytes of the home's disk: all, free, and those that the ledger needs free.

    While the reserve is released, its bytes do not count as free. `error`: why the disk is unreadable.
    """

    folder: str
    total: int = 0
    free: int = 0
    needed: int = 0
    is_reserve_released: bool = False
    error: str = ""


class WitnessAge(NamedTuple):
    """A witness of policy, and the age of its last cosignature in seconds, or None if it never cosigned."""

    name: str
    age_s: int | None


class Expiry(NamedTuple):
    """Something that ends, or has ended, at a time."""

    subject: str
    until: Time


class Recovery(NamedTuple):
    """An order of a recovery key to enrol an administrator. It can be countersigned from `since` until `until`."""

    signer: str
    about: str
    since: Time
    until: Time


class Growth(NamedTuple):
    """The growth of the log: entries and bytes of the last day. `is_local`: the database is on the home's disk."""

    entries: int
    bytes: int
    is_local: bool


class BackupAges(NamedTuple):
    """The backups in the folder of the settings.

    `days` and `keep_days` are the limits of the settings. `newest`: the time of the newest signed backup. `expired`:
    the names of those that are kept too long. `error`: why the folder cannot be read.
    """

    folder: str
    days: int
    keep_days: int
    newest: Time | None = None
    expired: tuple[str, ...] = ()
    error: str = ""

    def is_expired(self, made_at: Time, now: Time) -> bool:
        """Return True if a backup of this time is kept longer than the settings allow."""
        return (parse_time(now) - parse_time(made_at)).total_seconds() > self.keep_days * _DAY_S


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The values that the rules compare, at one time. What was not measured is None or empty."""

    now: Time
    """The time of the host's clock."""
    disk: DiskSpace | None = None
    certificates: tuple[Expiry, ...] = ()
    """The configured certificates, each with the earliest end in its file."""
    last_entry: Time | None = None
    clock_skew_s: int = 0
    serving_since: Time | None = None
    """Start of the service that measured. Only a running service appends a heartbeat."""
    stalled: bool = False
    """True if a heartbeat hangs."""
    contact_age_s: float | None = None
    """Seconds since this process read the database, if others share it."""
    has_lost_contact: bool = False
    witnesses: tuple[WitnessAge, ...] = ()
    witness_quorum: int = 0
    witness_lifetime_s: int = 0
    missing: tuple[str, ...] = ()
    """Losses that a witness's checkpoint shows."""
    schema: tuple[str, ...] = ()
    """Findings about tables, triggers and rights of the database."""
    growth: Growth | None = None
    ending_approvals: tuple[Expiry, ...] = ()
    """Releases of which an approval ends soon."""
    ended_approvals: tuple[Expiry, ...] = ()
    """Releases that stopped because an approval ended."""
    ending_keys: tuple[Expiry, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    """Recoveries that wait for a countersignature."""
    insufficient_administrators: tuple[str, ...] | None = None
    """Administrators with a valid key, if they are too few to sign together."""
    backups: BackupAges | None = None

    @property
    def fresh_witnesses(self) -> int:
        """Return the number of witnesses whose last cosignature is fresh."""
        return sum(one.age_s is not None and one.age_s <= self.witness_lifetime_s for one in self.witnesses)

    @property
    def entry_age_s(self) -> int | None:
        """Return the seconds since the last entry; negative while the host's clock is behind the log."""
        return None if self.last_entry is None else seconds_between(self.last_entry, self.now)


def seconds_between(earlier: Time, later: Time) -> int:
    return round((parse_time(later) - parse_time(earlier)).total_seconds())


_APPROVAL_CODES = {one.name for one in (TOO_FEW_APPROVALS, TOO_FEW_FUNCTIONS, FUNCTION_MISSING, EMERGENCY_ENDED)}
"""Codes of the blockers that the end of an approval or of an emergency release causes."""


def list_ending_approvals(state: State, now: Time) -> Iterator[Expiry]:
    """Yield the active releases of which an approval ends soon, with its end."""
    soon = add_seconds(now, SOON_S)
    for release, adapter in _list_released(state):
        end = find_release_end(state, release, adapter, now)
        if end is not None and now < end <= soon and not find_release_blockers(state, release, adapter, now):
            yield Expiry(_name_release(release), end)


def list_ended_approvals(state: State, now: Time) -> Iterator[Expiry]:
    """Yield the releases that stopped only because an approval or an emergency release ended, with its end."""
    for release, adapter in _list_released(state):
        approvals = [one for one in list_latest_reviews(state, adapter, release.unit) if one.approves]
        dates = [*(find_approval_end(state, adapter, one) for one in approvals), release.current.until]
        past = [date for date in dates if date is not None and date <= now]
        if not past:
            continue
        codes = {blocker.code for blocker in find_release_blockers(state, release, adapter, now)}
        if codes and codes <= _APPROVAL_CODES:
            yield Expiry(_name_release(release), max(past))


def _list_released(state: State) -> Iterator[tuple[Release, Adapter]]:
    for release in state.releases.values():
        adapter = state.adapters.get(release.current.adapter)
        if adapter is not None:
            yield release, adapter


def _name_release(release: Release) -> str:
    return f"{release.unit}/{release.served_model}, {release.current.adapter}"


def list_ending_keys(state: State, now: Time) -> Iterator[Key]:
    """Yield the replaced keys that may still sign and end soon."""
    soon = add_seconds(now, SOON_S)
    for key in state.keys.values():
        if key.revoked is None and key.until is not None and now < key.until <= soon:
            yield key


def find_insufficient_administrators(state: State, now: Time) -> tuple[str, ...] | None:
    """Return the administrators who can sign, if they are too few to enrol a person or to change the policy."""
    people = state.principals.values()
    able = [one for one in people if one.has("administrator") and has_valid_key(state, one.name, now)]
    return tuple(one.name for one in able) if refuse_too_few_signers(state, able) else None
