"""Each alarm is on from its threshold, names the measured value, and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.queries.alarms import CODES, RULES, find_alarms
from appliance.domain.queries.measures import (
    BackupAges,
    DiskSpace,
    Expiry,
    Growth,
    Measures,
    Recovery,
    WitnessAge,
    find_insufficient_administrators,
    list_ended_approvals,
    list_ending_approvals,
    list_ending_keys,
)
from scripts.kit.log_builder import stage

NOW = "2026-11-24T12:00:00.000Z"
DAY_S = 86_400
GIB = 1 << 30


def at(seconds: int) -> str:
    return add_seconds(NOW, seconds)


def disk(free: int, total: int = 100 * GIB) -> DiskSpace:
    return DiskSpace("/srv/appliance", total, free, min(GIB, total // 20))


def codes(**values: Any) -> list[str]:
    return [alarm.code for alarm in find_alarms(Measures(now=NOW, **values))]


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"disk": disk(4 * GIB)}, []),
    ({"disk": disk(4 * GIB - 1)}, ["disk-low"]),
    ({"disk": disk(GIB)}, ["disk-low"]),
    ({"disk": disk(GIB - 1)}, ["disk-full"]),
    ({"disk": disk(52 << 20, GIB)}, ["disk-low"]),
    ({"disk": disk(51 << 20, GIB)}, ["disk-full"]),
    ({"disk": disk(4 * GIB)._replace(is_reserve_released=True)}, ["disk-reserve-released"]),
    ({"disk": DiskSpace("/srv/appliance", error="Stale file handle")}, ["disk-unreadable"]),
    ({"disk": disk(31 * GIB), "growth": Growth(9, GIB, True)}, []),
    ({"disk": disk(30 * GIB), "growth": Growth(9, GIB, True)}, ["log-grows"]),
    ({"disk": disk(30 * GIB), "growth": Growth(9, GIB, False)}, []),
    ({"disk": disk(GIB - 1), "growth": Growth(9, GIB, True)}, ["disk-full"]),
    ({"disk": disk(30 * GIB), "growth": Growth(0, 0, True)}, []),
    ({"backups": BackupAges("/media", 2, 90, newest=at(-2 * DAY_S))}, []),
    ({"backups": BackupAges("/media", 2, 90, newest=at(-2 * DAY_S - 1))}, ["backup-old"]),
    ({"backups": BackupAges("/media", 2, 90)}, ["backup-old"]),
    ({"backups": BackupAges("/media", 2, 90, newest=NOW, expired=("a", "b"))}, ["backup-expired"] * 2),
    ({"backups": BackupAges("/media", 2, 90, error="No such device")}, ["backup-unreadable"]),
    ({"certificates": (Expiry("chain.pem", at(30 * DAY_S + 1)),)}, []),
    ({"certificates": (Expiry("chain.pem", at(30 * DAY_S)),)}, ["certificate-ends"]),
    ({"certificates": (Expiry("chain.pem", at(1)),)}, ["certificate-ends"]),
    ({"certificates": (Expiry("chain.pem", NOW),)}, ["certificate-ended"]),
    ({"ending_approvals": (Expiry("legal/labels, clauses@1", at(1)),)}, ["approval-ends"]),
    ({"ended_approvals": (Expiry("legal/labels, clauses@1", at(-1)),)}, ["approval-ended"]),
    ({"ending_keys": (Expiry("olga (key file …)", at(1)),)}, ["key-ends"]),
    ({"recoveries": (Recovery("vault", "carl", at(1), at(2)),)}, ["recovery-waiting"]),
    ({"insufficient_administrators": ("anna",)}, ["too-few-administrators"]),
    ({"insufficient_administrators": ()}, ["too-few-administrators"]),
    ({"missing": ("log: expected 9 entries, got 8",)}, ["log-lost"]),
    ({"witnesses": (WitnessAge("w1", 75),), "witness_lifetime_s": 100}, []),
    ({"witnesses": (WitnessAge("w1", 76),), "witness_lifetime_s": 100}, ["witness-old"]),
    ({"witnesses": (WitnessAge("w1", None),), "witness_lifetime_s": 100}, ["witness-old"]),
    ({"witnesses": (WitnessAge("w1", 100),), "witness_lifetime_s": 100, "witness_quorum": 1}, ["witness-old"]),
    (
        {"witnesses": (WitnessAge("w1", 101),), "witness_lifetime_s": 100, "witness_quorum": 1},
        ["witness-quorum", "witness-old"],
    ),
    ({"last_entry": at(60), "clock_skew_s": 60}, []),
    ({"last_entry": at(61), "clock_skew_s": 60}, ["clock-behind"]),
    ({"last_entry": at(-31 * DAY_S)}, []),
    ({"last_entry": at(-31 * DAY_S - 1)}, ["clock-ahead"]),
    ({"last_entry": at(-180), "serving_since": at(-999)}, []),
    ({"last_entry": at(-181), "serving_since": at(-999)}, ["heartbeat-late"]),
    ({"last_entry": at(-999), "serving_since": at(-180)}, []),
    ({"last_entry": at(-999), "serving_since": at(-181)}, ["heartbeat-late"]),
    ({"last_entry": at(-181)}, []),
    ({"last_entry": NOW, "stalled": True}, ["heartbeat-late"]),
    ({"last_entry": at(-32 * DAY_S), "serving_since": at(-181)}, ["clock-ahead"]),
    ({"contact_age_s": 6.0, "has_lost_contact": True}, ["database-lost"]),
    ({"schema": ("database, trigger steal: expected none, got one",)}, ["database-changed"]),
]


@pytest.mark.parametrize(("values", "expected"), CASES)
def test_an_alarm_is_on_at_its_threshold_and_not_before_it(values: dict[str, Any], expected: list[str]) -> None:
    assert codes(**values) == expected


def test_every_alarm_has_a_case_and_the_codes_are_unique() -> None:
    assert {code for _, found in CASES for code in found} == set(CODES)
    assert len(CODES) == len(set(CODES)) and all(rule.action and rule.meaning and rule.threshold for rule in RULES)


def test_an_alarm_names_what_it_measured() -> None:
    (alarm,) = find_alarms(Measures(now=NOW, certificates=(Expiry("chain.pem", at(DAY_S)),)))
    assert (alarm.subject, alarm.severity) == ("chain.pem", "warning")
    assert alarm.text == f"The certificate chain.pem ends at {at(DAY_S)}."
    (alarm,) = find_alarms(Measures(now=NOW, disk=disk(GIB - 1)))
    assert alarm.text == "1.07 GB of 107 GB are free on the disk of /srv/appliance."
    (alarm,) = find_alarms(Measures(now=NOW, missing=("log: expected 9 entries, got 8",)))
    assert alarm.text == "log: expected 9 entries, got 8."


def test_critical_alarms_are_first() -> None:
    measures = Measures(now=NOW, disk=disk(2 * GIB), schema=("database, trigger steal: expected none, got one",))
    assert [one.severity for one in find_alarms(measures)] == ["critical", "warning"]
    assert find_alarms(replace(measures, schema=()))[0].severity == "warning"


def test_an_approval_of_a_release_ends_soon_then_has_ended_until_it_is_renewed() -> None:
    site = stage("sealed")
    site.review("rita", "privacy", valid_until=add_seconds(site.now, 30 * DAY_S))
    end = add_seconds(site.now, 20 * DAY_S)
    site.review("raul", "model-risk", valid_until=end)
    late = add_seconds(end, 1)
    assert list(list_ended_approvals(site.state, late)) == [], "nothing is released that would end"
    site.activate()
    subject = "legal/labels, clauses@1"
    assert list(list_ending_approvals(site.state, site.now)) == []
    soon = add_seconds(site.now, 7 * DAY_S)
    assert list(list_ending_approvals(site.state, soon)) == [Expiry(subject, end)]
    assert list(list_ended_approvals(site.state, soon)) == []
    assert list(list_ending_approvals(site.state, late)) == []
    assert list(list_ended_approvals(site.state, late)) == [Expiry(subject, end)]
    site.review("raul", "model-risk", valid_until=add_seconds(site.now, 40 * DAY_S))
    assert list(list_ended_approvals(site.state, late)) == []


def test_a_release_that_a_person_stopped_is_no_alarm() -> None:
    site = stage("released")
    site.revoke("otto")
    assert list(list_ended_approvals(site.state, add_seconds(site.now, 400 * DAY_S))) == []


def test_a_replaced_key_ends_soon_until_its_end() -> None:
    site = stage("staffed")
    site.rotate("olga", add_seconds(site.now, 20 * DAY_S))
    (old,) = [key for key in site.state.keys.values() if key.until is not None]
    assert old.until is not None
    assert list(list_ending_keys(site.state, add_seconds(old.until, -15 * DAY_S))) == []
    assert list(list_ending_keys(site.state, add_seconds(old.until, -1))) == [old]
    assert list(list_ending_keys(site.state, old.until)) == []


def test_too_few_administrators_are_named_once_a_key_of_one_is_revoked() -> None:
    site = stage("imported").fork()
    assert find_insufficient_administrators(site.state, site.now) is None
    site.revoke_key("ben")
    assert find_insufficient_administrators(site.state, site.now) == ("anna",)
