"""The service's own entries: the first one, its starts and ends, and its heartbeat."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from appliance.domain.core.case import Case, Change, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import SERVICE, Base64, Canonical, Digest, Identifier, Time
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records.serving import ServiceProcess
from appliance.domain.core.records.site import LogKey, Site
from appliance.domain.core.verb import EventRule, unchanged
from appliance.domain.core.words import form
from appliance.domain.governance.people import enrolled_person
from appliance.domain.governance.policies import check_witnesses
from appliance.errors import Denied
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
    """`process`: its name, where several processes serve the log; `epoch`: how often that name was taken or taken away,
    which grows with each start."""

    type = "service.started"
    version: str
    code: Digest
    layers: dict[str, bool]
    process: Identifier | None
    epoch: int | None = Field(ge=1)

    def about(self) -> tuple[str, ...]:
        return () if self.process is None else (f"process:{self.process}",)


class ServiceStopped(Event):
    type = "service.stopped"
    reason: str
    process: Identifier | None

    def about(self) -> tuple[str, ...]:
        return () if self.process is None else (f"process:{self.process}",)


class ProcessLost(Event):
    """Another process has seen no sign of life of it since `last_contact`, by the database's clock, and has taken its
    epoch away: from here on it appends nothing. It answers nothing later than five seconds after its last contact."""

    type = "process.lost"
    outcomes = ("interrupted",)
    process: Identifier
    epoch: int = Field(ge=1)
    last_contact: Time

    def about(self) -> tuple[str, ...]:
        return (f"process:{self.process}",)


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
    """A new process holds no slot; requests and runs that a crash left open are closed by entries of their own.

    One without a name is the only one. One with a name empties its own slots, and those of one without.
    """
    body, state = case.of(ServiceStarted), case.state
    case.require((body.process is None) == (body.epoch is None), "epoch", "one beside a process's name", body.epoch)
    if body.process is None or body.epoch is None:
        return [*_emptied(case), *(_ended(case, row) for row in state.processes.values() if row.ended is None)]
    before = state.processes.get(body.process)
    least = 1 if before is None else before.epoch + 1
    case.require(body.epoch >= least, "epoch", f"at least {least}", body.epoch)
    row = ServiceProcess(name=body.process, epoch=body.epoch, since=case.entry.index)
    return [*_emptied(case, (None, body.process)), (state.processes, body.process, row)]


def service_stopped(case: Case) -> Changes:
    body = case.of(ServiceStopped)
    ended = [] if body.process is None else [_ended(case, _running(case, body.process))]
    return [*ended, *_emptied(case, (body.process,))]


def process_lost(case: Case) -> Changes:
    """Once for each life of a process."""
    body = case.of(ProcessLost)
    row = _running(case, body.process)
    case.require(body.epoch == row.epoch, "epoch", row.epoch, body.epoch)
    case.require(body.last_contact <= case.entry.time, "last contact", f"at most {case.entry.time}", body.last_contact)
    return [_ended(case, row), *_emptied(case, (body.process,))]


def _running(case: Case, process: str) -> ServiceProcess:
    row = case.state.processes.get(process)
    if row is None or row.ended is not None:
        raise Denied(f"{case.place}: process: expected one that runs, got {process}")
    return row


def _ended(case: Case, row: ServiceProcess) -> Change:
    return case.state.processes, row.name, row.model_copy(update={"ended": case.entry.index})


def _emptied(case: Case, processes: Collection[str | None] | None = None) -> Changes:
    """Slots of these processes, or all; what they were answering can end, but not well."""
    state = case.state
    slots: Changes = [
        (state.slots, key, None) for key, slot in state.slots.items() if processes is None or slot.process in processes
    ]
    cut: Changes = [
        (state.requests, request.id, request._replace(cut=True))
        for request in state.requests.values()
        if processes is None or request.process in processes
    ]
    return [*slots, *cut]


EVENTS = (
    EventRule(Initialized, initialized),
    EventRule(ServiceStarted, service_started),
    EventRule(ServiceStopped, service_stopped),
    EventRule(ProcessLost, process_lost),
    EventRule(Heartbeat, unchanged),
)
