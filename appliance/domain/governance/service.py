"""The service's own entries: the first one, its starts and ends, and its heartbeat."""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import SERVICE, Base64, Canonical, Digest, Identifier
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records import LogKey, Site
from appliance.domain.core.verb import EventRule, unchanged
from appliance.domain.core.words import form
from appliance.domain.governance.people import enrolled_person
from appliance.domain.governance.policies import check_witnesses
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.note import parse_vkey
from appliance.formats.signatures.keys import keyid_of, parse_spki


class Administrator(Canonical):
    name: Identifier
    key: Base64
    keyid: Digest


class Initialized(Event):
    type = "appliance.initialized"
    documents = ("policy",)
    origin: Annotated[
        str,
        form(
            r"^[a-z0-9][a-z0-9./-]{0,200}$",
            "lower-case letters, digits and . / -, at most 201, such as bank.example/log",
        ),
    ]
    log_key: str = Field(max_length=400)
    adapter_key: Base64
    administrators: tuple[Administrator, ...] = Field(min_length=1, max_length=8)
    single_administrator: bool


class ServiceStarted(Event):
    type = "service.started"
    version: str
    code: Digest
    layers: dict[str, bool]


class ServiceStopped(Event):
    type = "service.stopped"
    reason: str


class Heartbeat(Event):
    type = "heartbeat"


def initialized(case: Case) -> Changes:
    """The log's first entry: its keys, its administrators, its first policy set."""
    body = case.of(Initialized)
    names = [person.name for person in body.administrators]
    keyids = [person.keyid for person in body.administrators]
    case.require(len(set(names)) == len(names), "administrators", "different names", names)
    case.require(len(set(keyids)) == len(keyids), "administrators", "different keys", keyids)
    case.require(SERVICE not in names, "administrators", "other names than the appliance's own actor", names)
    case.require(
        body.single_administrator == (len(names) == 1), "administrators", "two, or one declared as single", len(names)
    )
    log_name = parse_vkey(body.log_key).name
    case.require(log_name == body.origin, "log key", f"the key of {body.origin}", log_name)
    parse_spki(base64.b64decode(body.adapter_key))
    policy = parse_policy(case.documents["policy"])
    check_witnesses([body.log_key], policy)
    site = Site(
        origin=body.origin,
        log_keys=(LogKey(vkey=body.log_key, since=0),),
        adapter_key=body.adapter_key,
        single_administrator=body.single_administrator,
        policy=digest_bytes(case.documents["policy"]),
        parameters=policy.parameters,
    )
    changes: Changes = [(case.state.sites, "site", site)]
    for person in body.administrators:
        case.require(keyid_of(base64.b64decode(person.key)) == person.keyid, "key", person.keyid, "another key")
        changes += enrolled_person(case, person.name, None, ("administrator",), person.key, person.keyid)
    return changes


def service_started(case: Case) -> Changes:
    """A new process holds no slot; requests and runs that a crash left open are closed by entries of their own."""
    return [(case.state.slots, key, None) for key, _ in case.state.slots.items()]


EVENTS = (
    EventRule(Initialized, initialized),
    EventRule(ServiceStarted, service_started),
    EventRule(ServiceStopped, unchanged),
    EventRule(Heartbeat, unchanged),
)
