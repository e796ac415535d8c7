"""Entries of the ledger as events of the Open Cybersecurity Schema Framework (OCSF 1.8.0), for a SIEM.

An event has the fields of an entry that are in clear by design (docs/formats/ledger.md): names, codes, numbers, times
and digests. It has no text, no document and no commitment. Long and nested values are left out, so that an event fits
into one syslog message; the entry in the ledger has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from appliance.domain.core.entry import Entry
from appliance.domain.core.names import SERVICE
from appliance.formats.core.timestamp import parse_time

VERSION = "1.8.0"
"""Version of the schema."""
AUTHENTICATION, ENTITY, LIFECYCLE, API = 3002, 3004, 6002, 6003
"""Classes of the schema that are used."""
OTHER = 99
"""Activity of an event whose own name says what it is."""
CLASS_NAMES = {
    AUTHENTICATION: "Authentication",
    ENTITY: "Entity Management",
    LIFECYCLE: "Application Lifecycle",
    API: "API Activity",
}
ACTIVITIES: Mapping[int, Mapping[int, str]] = {
    AUTHENTICATION: {1: "Logon", 2: "Logoff"},
    ENTITY: {
        1: "Create",
        2: "Read",
        3: "Update",
        4: "Delete",
        9: "Disable",
        10: "Activate",
        11: "Deactivate",
        12: "Suspend",
        13: "Resume",
    },
    LIFECYCLE: {3: "Start", 4: "Stop", 8: "Update", OTHER: "Other"},
    API: {1: "Create", 2: "Read", 3: "Update"},
}
"""Activities of each class that are used, with their names."""
SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
"""Severities that are used."""
MAX_CHARACTERS = 256
"""Most characters of a value in `unmapped`."""
MAX_ITEMS = 16
"""Most items of a list in `unmapped`."""
_COMMITMENT = "hmac-sha256:"
_STATUS = {
    "success": (1, "Success"),
    "failure": (2, "Failure"),
    "denied": (2, "Failure"),
    "interrupted": (2, "Failure"),
}
_ENTITY_TYPES = {"principal": 2, "policy": 5}


class OcsfKind(NamedTuple):
    """The class, activity and severity of a type of entries. An outcome other than success is at least `Low`."""

    class_uid: int
    activity_id: int
    severity_id: int = 1


KINDS: Mapping[str, OcsfKind] = {
    "appliance.initialized": OcsfKind(LIFECYCLE, 8),
    "service.started": OcsfKind(LIFECYCLE, 3),
    "service.stopped": OcsfKind(LIFECYCLE, 4),
    "process.lost": OcsfKind(LIFECYCLE, 4, 3),
    "heartbeat": OcsfKind(LIFECYCLE, OTHER),
    "checkpoint.cosigned": OcsfKind(LIFECYCLE, OTHER),
    "artifacts.checked": OcsfKind(LIFECYCLE, OTHER),
    "clock.reset": OcsfKind(LIFECYCLE, 8, 4),
    "rules.raised": OcsfKind(LIFECYCLE, 8, 3),
    "log-key.rotated": OcsfKind(LIFECYCLE, 8, 3),
    "log.restored": OcsfKind(LIFECYCLE, 8, 4),
    "post-quantum-keys.added": OcsfKind(LIFECYCLE, 8, 3),
    "session.opened": OcsfKind(AUTHENTICATION, 1),
    "session.closed": OcsfKind(AUTHENTICATION, 2),
    "auth.refused": OcsfKind(AUTHENTICATION, 1, 3),
    "principal.enrolled": OcsfKind(ENTITY, 1, 2),
    "principal.enrolled-with-passkey": OcsfKind(ENTITY, 1, 2),
    "principals.enrolled": OcsfKind(ENTITY, 1, 2),
    "principal.invited": OcsfKind(ENTITY, 1),
    "invitation.accepted": OcsfKind(ENTITY, 3),
    "invitation.withdrawn": OcsfKind(ENTITY, 4, 2),
    "principal.granted": OcsfKind(ENTITY, 3, 2),
    "principal.role-removed": OcsfKind(ENTITY, 3, 2),
    "principal.revoked": OcsfKind(ENTITY, 9, 2),
    "key.enrolled": OcsfKind(ENTITY, 1, 2),
    "key.revoked": OcsfKind(ENTITY, 4, 2),
    "passkey.enrolled": OcsfKind(ENTITY, 1, 2),
    "identity.bound": OcsfKind(ENTITY, 3, 2),
    "identity.unbound": OcsfKind(ENTITY, 3, 2),
    "administrator.recovered": OcsfKind(ENTITY, 1, 4),
    "application.enrolled": OcsfKind(ENTITY, 1, 2),
    "token.issued": OcsfKind(ENTITY, 1),
    "tokens.revoked": OcsfKind(ENTITY, 4, 2),
    "policy.adopted": OcsfKind(ENTITY, 3, 3),
    "order.pending": OcsfKind(ENTITY, 1),
    "order.withdrawn": OcsfKind(ENTITY, 4, 2),
    "order.refused": OcsfKind(ENTITY, 1, 3),
    "review.delegated": OcsfKind(ENTITY, 3),
    "text.erased": OcsfKind(ENTITY, 4, 3),
    "hold.placed": OcsfKind(ENTITY, 3, 2),
    "hold.lifted": OcsfKind(ENTITY, 3, 3),
    "log.archived": OcsfKind(ENTITY, 4, 3),
    "import.requested": OcsfKind(ENTITY, 1),
    "import.failed": OcsfKind(ENTITY, 1),
    "import.cancelled": OcsfKind(ENTITY, 4),
    "base.imported": OcsfKind(ENTITY, 1),
    "base.quarantined": OcsfKind(ENTITY, 11, 4),
    "base.revoked": OcsfKind(ENTITY, 11, 3),
    "dataset.imported": OcsfKind(ENTITY, 1),
    "dataset.revoked": OcsfKind(ENTITY, 11, 3),
    "validation-set.imported": OcsfKind(ENTITY, 1),
    "validation-set.revoked": OcsfKind(ENTITY, 11, 3),
    "run.requested": OcsfKind(ENTITY, 1),
    "run.authorised": OcsfKind(ENTITY, 3),
    "run.refused": OcsfKind(ENTITY, 4),
    "run.cancelled": OcsfKind(ENTITY, 4),
    "run.started": OcsfKind(ENTITY, 10),
    "run.checkpointed": OcsfKind(ENTITY, 3),
    "run.finished": OcsfKind(ENTITY, 11),
    "run.failed": OcsfKind(ENTITY, 11),
    "run.resumed": OcsfKind(ENTITY, 13),
    "resume.requested": OcsfKind(ENTITY, 13),
    "replay.requested": OcsfKind(ENTITY, 2),
    "replay.finished": OcsfKind(ENTITY, 2),
    "replay.failed": OcsfKind(ENTITY, 2),
    "adapter.sealed": OcsfKind(ENTITY, 1),
    "adapter.exported": OcsfKind(ENTITY, 2, 2),
    "adapter.quarantined": OcsfKind(ENTITY, 11, 4),
    "adapter.revoked": OcsfKind(ENTITY, 11, 3),
    "adapter.admitted": OcsfKind(ENTITY, 10),
    "adapter.loaded": OcsfKind(ENTITY, 10),
    "adapter.unloaded": OcsfKind(ENTITY, 11),
    "admission.refused": OcsfKind(ENTITY, 10, 3),
    "finding.added": OcsfKind(ENTITY, 3, 2),
    "finding.closed": OcsfKind(ENTITY, 3),
    "review.recorded": OcsfKind(ENTITY, 3),
    "release.requested": OcsfKind(ENTITY, 3),
    "request.withdrawn": OcsfKind(ENTITY, 3),
    "release.activated": OcsfKind(ENTITY, 10, 2),
    "release.emergency": OcsfKind(ENTITY, 10, 4),
    "release.rolled-back": OcsfKind(ENTITY, 3, 3),
    "release.suspended": OcsfKind(ENTITY, 12, 3),
    "release.resumed": OcsfKind(ENTITY, 13, 2),
    "samples.requested": OcsfKind(ENTITY, 2),
    "samples.shown": OcsfKind(ENTITY, 2),
    "try.requested": OcsfKind(ENTITY, 2),
    "try.finished": OcsfKind(ENTITY, 2),
    "request.admitted": OcsfKind(API, 1),
    "request.finished": OcsfKind(API, 3),
    "request.refused": OcsfKind(API, 1, 2),
}
"""The kind of each type of entries. A test compares it with the registry of events."""


def encode_event(entry: Entry, origin: str, version: str, *, archived: int = 0) -> dict[str, Any]:
    """Return an entry as an OCSF event.

    `origin`: the log's name. `version`: the build. `archived`: the number of entries between this one and the one
    before it in the feed, which an archive removed.
    """
    kind = KINDS[entry.type]
    status_id, status = _STATUS.get(entry.outcome, (99, entry.outcome))
    severity = kind.severity_id if entry.outcome in ("success", "pending") else max(2, kind.severity_id)
    event = {
        "activity_id": kind.activity_id,
        "activity_name": entry.type if kind.activity_id == OTHER else ACTIVITIES[kind.class_uid][kind.activity_id],
        "category_uid": kind.class_uid // 1000,
        "class_uid": kind.class_uid,
        "class_name": CLASS_NAMES[kind.class_uid],
        "type_uid": kind.class_uid * 100 + kind.activity_id,
        "severity_id": severity,
        "severity": SEVERITIES[severity],
        "status_id": status_id,
        "status": status,
        "status_code": entry.outcome,
        "time": _milliseconds(entry.time),
        "message": entry.type,
        "metadata": {
            "version": VERSION,
            "product": {"name": "appliance", "version": version},
            "log_name": origin,
            "event_code": entry.type,
            "uid": f"{origin}/{entry.index}",
            "sequence": entry.index,
            "original_time": entry.time,
        },
        "unmapped": {
            "leaf": entry.link,
            "prev": entry.prev,
            "archived": archived,
            "subjects": _list_subjects(entry)[:MAX_ITEMS],
            "body": _list_clear(entry.body),
        },
    }
    code = entry.body.get("code")
    if isinstance(code, str):
        event["status_detail"] = code
    return event | _list_own(entry, kind.class_uid, origin)


def _list_own(entry: Entry, class_uid: int, origin: str) -> dict[str, Any]:
    """Return the fields that the event's class has beside those of all classes."""
    actor = {"app_name": "appliance"} if entry.actor == SERVICE else {"user": {"name": entry.actor}}
    if class_uid == LIFECYCLE:
        return {"app": {"name": "appliance", "uid": origin}}
    fields: dict[str, Any] = {"actor": actor, "src_endpoint": _locate(entry.source)}
    if class_uid == AUTHENTICATION:
        names = entry.body.get("principals") or [entry.body.get("principal", entry.actor)]
        fields |= {"user": {"name": str(names[0])}, "service": {"name": "appliance", "uid": origin}}
        if "since" in entry.body:
            fields |= {"count": entry.body["count"], "start_time": _milliseconds(entry.body["since"])}
            fields["end_time"] = _milliseconds(entry.time)
        return fields
    if class_uid == API:
        return fields | {"api": {"operation": entry.type}}
    kind, _, name = _find_subject(entry, origin).partition(":")
    entity: dict[str, Any] = {"name": name or kind, "type": kind}
    if kind in _ENTITY_TYPES:
        entity["type_id"] = _ENTITY_TYPES[kind]
    return fields | {"entity": entity}


def _list_subjects(entry: Entry) -> list[str]:
    """Return the subjects without texts, which are named by their commitments."""
    return [one for one in entry.subjects if _COMMITMENT not in one]


def _find_subject(entry: Entry, origin: str) -> str:
    """Return what the entry is about: the subject of its type's own kind, or the first one that is no order."""
    own = entry.type.partition(".")[0]
    subjects = sorted(_list_subjects(entry), key=lambda one: (not one.startswith(f"{own}:"), one.startswith("order:")))
    return subjects[0] if subjects else f"log:{origin}"


def _locate(source: str) -> dict[str, str]:
    """Return the source of an entry as an endpoint: an address, or the name of a local source."""
    kind, _, address = source.partition(":")
    return {"ip": address} if kind == "tcp" and address else {"name": source}


def _milliseconds(time: str) -> int:
    return round(parse_time(time).timestamp() * 1000)


def _list_clear(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the short values of an entry's body that are in clear by design."""
    clear: dict[str, Any] = {}
    for name, value in body.items():
        if _is_clear(value):
            clear[name] = value
        elif isinstance(value, list | tuple) and len(value) <= MAX_ITEMS and all(map(_is_clear, value)):
            clear[name] = list(value)
    return clear


def _is_clear(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS and _COMMITMENT not in value
    return isinstance(value, bool | int)
