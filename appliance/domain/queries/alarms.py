"""Alarms: conditions that a person must act on before something stops, or because it has stopped.

`RULES` is the only definition of an alarm. `appliance status`, `appliance doctor`, the console, notifications, metrics,
the rules for Prometheus and the page docs/reference/alarms.md are made from it. The values are measured elsewhere
(`workflows/queries/measures.py`), so that a rule is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from appliance.domain.core.names import Value, add_seconds
from appliance.domain.queries.measures import DiskSpace, Measures, seconds_between
from appliance.formats.core.text import show_bytes

Severity = Literal["warning", "critical"]
"""`warning`: something will stop unless a person acts. `critical`: something has stopped or is about to."""

LOW_FACTOR = 4
"""Multiple of the bytes that the ledger needs, below which free space is low."""
CERTIFICATE_DAYS = 30
"""Days before the end of a certificate from which on it ends soon."""
LONGEST_PAUSE_DAYS = 31
"""Most days between two entries, unless an administrator of the machine confirms that the pause was longer."""
HEARTBEAT_LATE_S = 180
"""Seconds without an entry after which the heartbeat, which is due every minute, is late."""
GROWTH_DAYS = 30
"""Days in which the log, at the pace of the last day, fills the disk, below which it grows too fast."""
_DAY_S = 86_400


class Alarm(Value):
    """An alarm that is on. `subject` is what it is about, `text` the measured values, `action` what to do."""

    code: str
    subject: str
    severity: Severity
    text: str
    action: str


Found = Iterator[tuple[str, str]]
"""Pairs of subject and text, one for each thing that is wrong."""


@dataclass(frozen=True)
class AlarmRule:
    """The definition of an alarm.

    `check` is the check of `appliance doctor` that shows it. `meaning` says in one sentence what is wrong. `threshold`
    is the value that is expected instead.
    """

    code: str
    check: str
    severity: Severity
    meaning: str
    threshold: str
    action: str
    find: Callable[[Measures], Found]


def find_alarms(measures: Measures) -> tuple[Alarm, ...]:
    """Return the alarms that are on, critical ones first."""
    found = [
        Alarm(code=rule.code, subject=subject, severity=rule.severity, text=text, action=rule.action)
        for rule in RULES
        for subject, text in rule.find(measures)
    ]
    return tuple(sorted(found, key=lambda alarm: alarm.severity != "critical"))


def _find_low_disk(measures: Measures) -> Found:
    disk = measures.disk
    if disk is not None and not disk.error and disk.needed <= disk.free < LOW_FACTOR * disk.needed:
        yield disk.folder, _describe_free_space(disk)


def _find_full_disk(measures: Measures) -> Found:
    disk = measures.disk
    if disk is not None and not disk.error and disk.free < disk.needed:
        yield disk.folder, _describe_free_space(disk)


def _describe_free_space(disk: DiskSpace) -> str:
    return f"{show_bytes(disk.free)} of {show_bytes(disk.total)} are free on the disk of {disk.folder}."


def _find_released_reserve(measures: Measures) -> Found:
    disk = measures.disk
    if disk is not None and not disk.error and disk.is_reserve_released:
        yield disk.folder, f"The disk reserve {disk.folder}/reserve is empty. {_describe_free_space(disk)}"


def _find_unreadable_disk(measures: Measures) -> Found:
    if measures.disk is not None and measures.disk.error:
        yield measures.disk.folder, f"The free space of {measures.disk.folder} cannot be read: {measures.disk.error}."


def _find_fast_growth(measures: Measures) -> Found:
    disk, growth = measures.disk, measures.growth
    if disk is None or disk.error or growth is None or not growth.is_local or growth.bytes <= 0:
        return
    days = (disk.free - disk.needed) / growth.bytes
    if 0 <= days < GROWTH_DAYS:
        pace = f"{growth.entries:,} entries in the last day, about {show_bytes(growth.bytes)}"
        yield "log", f"The log grew by {pace}. The disk has room for {days:.0f} more days."


def _find_ended_certificates(measures: Measures) -> Found:
    for one in measures.certificates:
        if one.until <= measures.now:
            yield one.subject, f"The certificate {one.subject} ended at {one.until}."


def _find_ending_certificates(measures: Measures) -> Found:
    for one in measures.certificates:
        if measures.now < one.until <= add_seconds(measures.now, CERTIFICATE_DAYS * _DAY_S):
            yield one.subject, f"The certificate {one.subject} ends at {one.until}."


def _find_ending_approvals(measures: Measures) -> Found:
    for one in measures.ending_approvals:
        yield one.subject, f"An approval of {one.subject} ends at {one.until}."


def _find_ended_approvals(measures: Measures) -> Found:
    for one in measures.ended_approvals:
        yield one.subject, f"{one.subject} does not respond: an approval ended at {one.until}."


def _find_ending_keys(measures: Measures) -> Found:
    for one in measures.ending_keys:
        yield one.subject, f"The replaced key of {one.subject} ends at {one.until}."


def _find_recoveries(measures: Measures) -> Found:
    for one in measures.recoveries:
        when = f"It can be countersigned from {one.since} to {one.until}."
        yield one.signer, f"The recovery key {one.signer} ordered to make {one.about} an administrator. {when}"


def _find_few_administrators(measures: Measures) -> Found:
    names = measures.insufficient_administrators
    if names is not None:
        yield "administrators", f"who can sign: {', '.join(names) or 'nobody'}"


def _find_old_witnesses(measures: Measures) -> Found:
    limit = measures.witness_lifetime_s * 3 // 4
    for one in measures.witnesses:
        if one.age_s is None:
            yield one.name, f"The witness {one.name} has cosigned nothing."
        elif one.age_s > limit:
            age = f"{one.age_s:,} s old; it is fresh for {measures.witness_lifetime_s:,} s"
            yield one.name, f"The last cosignature of the witness {one.name} is {age}."


def _find_missing_quorum(measures: Measures) -> Found:
    if measures.fresh_witnesses < measures.witness_quorum:
        yield "quorum", f"{measures.fresh_witnesses} witnesses are fresh; policy needs {measures.witness_quorum}."


def _find_loss(measures: Measures) -> Found:
    for number, text in enumerate(measures.missing, start=1):
        yield f"loss {number}", f"{text}."


def _find_clock_behind(measures: Measures) -> Found:
    last = measures.last_entry
    if last is not None and add_seconds(measures.now, measures.clock_skew_s) < last:
        yield "clock", f"The host's clock says {measures.now}; the last entry is of {last}."


def _find_clock_ahead(measures: Measures) -> Found:
    last = measures.last_entry
    if last is not None and add_seconds(last, LONGEST_PAUSE_DAYS * _DAY_S) < measures.now:
        yield "clock", f"The host's clock says {measures.now}; the last entry is of {last}."


def _find_late_heartbeat(measures: Measures) -> Found:
    last, since = measures.last_entry, measures.serving_since
    if measures.stalled:
        yield "heartbeat", "The heartbeat has not ended for more than a minute."
    elif last is not None and since is not None and not any(_find_clock_ahead(measures)):
        age = seconds_between(max(last, since), measures.now)
        if age > HEARTBEAT_LATE_S:
            yield "heartbeat", f"No entry was recorded for {age:,} s."


def _find_lost_contact(measures: Measures) -> Found:
    if measures.has_lost_contact:
        age = "" if measures.contact_age_s is None else f" for {measures.contact_age_s:.0f} s"
        yield "database", f"This process has not read the database{age}."


def _find_changed_schema(measures: Measures) -> Found:
    for text in measures.schema:
        yield text.partition(":")[0], text


def _find_unreadable_backups(measures: Measures) -> Found:
    if measures.backups is not None and measures.backups.error:
        yield measures.backups.folder, f"The folder of backups cannot be read: {measures.backups.error}."


def _find_old_backup(measures: Measures) -> Found:
    found = measures.backups
    if found is None or found.error:
        return
    if found.newest is None:
        yield found.folder, f"There is no valid backup in {found.folder}."
    elif add_seconds(found.newest, found.days * _DAY_S) < measures.now:
        yield found.folder, f"The newest backup in {found.folder} is of {found.newest}."


def _find_expired_backups(measures: Measures) -> Found:
    found = measures.backups
    if found is not None:
        for name in found.expired:
            yield name, f"The backup {name} is older than {found.keep_days} days."


RULES = (
    AlarmRule(
        "disk-full",
        "disk",
        "critical",
        "The free space of the home's disk is below what the ledger needs, so workers are ended.",
        "more than 1 GiB free, or a twentieth of a disk below 20 GiB",
        "Make room: `appliance storage` lists what uses the disk. Then resume the ended runs: `appliance run resume`.",
        _find_full_disk,
    ),
    AlarmRule(
        "disk-low",
        "disk",
        "warning",
        "The free space of the home's disk is less than four times what the ledger needs.",
        "more than 4 GiB free, or a fifth of a disk below 20 GiB",
        "Make room before workers are ended: `appliance storage` lists what uses the disk.",
        _find_low_disk,
    ),
    AlarmRule(
        "disk-reserve-released",
        "disk",
        "critical",
        "The disk was full and the ledger uses the space of the disk reserve, or there was no room to make it.",
        "a reserve of the size of the setting disk_reserve",
        "Make room at once: `appliance storage` lists what uses the disk. The service then makes the reserve again.",
        _find_released_reserve,
    ),
    AlarmRule(
        "disk-unreadable",
        "disk",
        "critical",
        "The free space of the home's disk cannot be read.",
        "a disk that can be read",
        "Check the disk, its mount and the rights of the home.",
        _find_unreadable_disk,
    ),
    AlarmRule(
        "log-grows",
        "growth of the log",
        "warning",
        "At the pace of the last day, the log fills the disk in less than 30 days.",
        "room for at least 30 days",
        "Find out what writes: `appliance ledger log --since TIME`. Make room or use a larger disk.",
        _find_fast_growth,
    ),
    AlarmRule(
        "certificate-ended",
        "certificates",
        "critical",
        "A certificate of the service has ended, so clients refuse its listeners.",
        "a certificate that has not ended",
        "Have your CA issue a new one and put it in place. Then reload the service: systemctl reload appliance. "
        "If it does not run, start it: systemctl start appliance.",
        _find_ended_certificates,
    ),
    AlarmRule(
        "certificate-ends",
        "certificates",
        "warning",
        "A certificate of the service ends within 30 days.",
        "at least 30 days before its end",
        "Have your CA issue a new one and put it in place. Then reload the service: systemctl reload appliance.",
        _find_ending_certificates,
    ),
    AlarmRule(
        "approval-ended",
        "approvals",
        "critical",
        "A release does not respond because an approval ended.",
        "approvals that have not ended",
        "Have a reviewer approve the adapter again, or activate another one: `appliance release activate`.",
        _find_ended_approvals,
    ),
    AlarmRule(
        "approval-ends",
        "approvals",
        "warning",
        "An approval of an active release ends within 14 days.",
        "at least 14 days before its end",
        "Have a reviewer approve the adapter again: `appliance review list`.",
        _find_ending_approvals,
    ),
    AlarmRule(
        "key-ends",
        "keys that end",
        "warning",
        "A replaced key of a person or unit ends within 14 days.",
        "the new key in use everywhere",
        "Have its owner use the new key wherever the replaced one is still configured.",
        _find_ending_keys,
    ),
    AlarmRule(
        "too-few-administrators",
        "administrators",
        "critical",
        "Too few administrators can sign, so nobody can be enrolled and no policy set can be adopted.",
        "at least two administrators with a valid key; one at a site for trials",
        "Have a recovery key enrol an administrator: docs/operations/runbooks/lost-administrator.md.",
        _find_few_administrators,
    ),
    AlarmRule(
        "recovery-waiting",
        "recovery keys",
        "critical",
        "A recovery key was used: an order to enrol a new administrator waits for its countersignature.",
        "recovery keys that nobody uses",
        "If nobody of you took the key from its safe, revoke it at once: `appliance principal revoke`.",
        _find_recoveries,
    ),
    AlarmRule(
        "backup-old",
        "backups",
        "warning",
        "The newest valid backup is older than the setting backup_days allows, or there is none.",
        "a backup within the days of the setting backup_days",
        "Make one: `appliance backup create FOLDER`. Find out why the timer made none.",
        _find_old_backup,
    ),
    AlarmRule(
        "backup-expired",
        "backups",
        "warning",
        "A backup is kept longer than the setting backup_keep_days allows; it may have texts that were erased since.",
        "no backup older than the setting backup_keep_days",
        "Remove it: `appliance backup remove FOLDER NAME`.",
        _find_expired_backups,
    ),
    AlarmRule(
        "backup-unreadable",
        "backups",
        "warning",
        "The folder of backups cannot be read.",
        "a folder that can be read",
        "Mount its disk, or correct the setting backup_folder.",
        _find_unreadable_backups,
    ),
    AlarmRule(
        "log-lost",
        "witnesses",
        "critical",
        "A witness has seen entries that the log does not hold.",
        "every entry that witnesses have seen",
        "Restart and restore nothing. Call an auditor; no adapter is served until the log is restored.",
        _find_loss,
    ),
    AlarmRule(
        "witness-quorum",
        "witnesses",
        "critical",
        "Fewer witnesses are fresh than policy needs, so no adapter is admitted.",
        "as many fresh cosignatures as the quorum of policy",
        "Carry a request to each witness: `appliance witness request NAME`.",
        _find_missing_quorum,
    ),
    AlarmRule(
        "witness-old",
        "witnesses",
        "warning",
        "The last cosignature of a witness is missing, or older than three quarters of its lifetime.",
        "a cosignature within three quarters of its lifetime",
        "Ask it for a cosignature: `appliance witness request NAME`.",
        _find_old_witnesses,
    ),
    AlarmRule(
        "clock-behind",
        "clock",
        "critical",
        "The host's clock is behind the log, so nothing is recorded.",
        "a time after the last entry's",
        "Set the clock. If it is right, two administrators reset the log's time: `appliance clock reset`.",
        _find_clock_behind,
    ),
    AlarmRule(
        "clock-ahead",
        "clock",
        "critical",
        "The host's clock is more than 31 days ahead of the last entry, so nothing is recorded.",
        "at most 31 days after the last entry",
        "Set the clock. If it is right, start once with: `appliance serve --after-pause`.",
        _find_clock_ahead,
    ),
    AlarmRule(
        "heartbeat-late",
        "heartbeat",
        "critical",
        "No entry was recorded for three minutes, although a heartbeat is due every minute.",
        "an entry every minute",
        "Look for ALARM lines in the service's log, then check the disk and the database.",
        _find_late_heartbeat,
    ),
    AlarmRule(
        "database-lost",
        "database",
        "critical",
        "This process has no contact with the database, so it serves and records nothing.",
        "a read of the database in the last five seconds",
        "Check the database server and the network to it. The process continues by itself.",
        _find_lost_contact,
    ),
    AlarmRule(
        "database-changed",
        "database",
        "critical",
        "The database holds something that the migrations do not make, or lacks something.",
        "tables, triggers and rights as the migrations make them",
        "Find out who did it. The section When it does not start of docs/operations/service.md says how to repair it.",
        _find_changed_schema,
    ),
)
CODES = tuple(rule.code for rule in RULES)
"""The codes of all alarms."""
