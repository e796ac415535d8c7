"""Events of the service itself: the log's first entry, starts and stops of processes, and the heartbeat."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from appliance.domain.core.action import EventRule, leave_unchanged
from appliance.domain.core.case import Case, Change, Changes
from appliance.domain.core.entry import Event
from appliance.domain.core.names import SERVICE, Base64, Canonical, Digest, Identifier, Time
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records.serving import ServiceProcess
from appliance.domain.core.records.site import AdapterKey, LogKey, Site
from appliance.domain.core.words import form
from appliance.domain.governance.people import make_enrolment_changes
from appliance.domain.governance.policies import require_foreign_witnesses
from appliance.domain.governance.post_quantum import PostQuantumKeys, is_post_quantum_adapter_key
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.note import is_post_quantum, parse_vkey
from appliance.formats.signatures.keys import keyid_of, parse_spki


class Administrator(Canonical):
    """An administrator of the log's first entry."""

    name: Identifier
    key: Base64
    keyid: Digest


Origin = Annotated[
    str,
    form(
        r"^[a-z0-9][a-z0-9./-]{0,200}$",
        "lower-case letters, digits and . / -, at most 201, such as bank.example/log",
    ),
]
"""The permanent name of a log."""


class Initialized(Event):
    """The log's first event: its origin, keys, administrators and policy set."""

    type = "appliance.initialized"
    documents = ("policy",)
    origin: Origin
    log_key: str = Field(max_length=400)
    adapter_key: Base64
    post_quantum: PostQuantumKeys | None
    administrators: tuple[Administrator, ...] = Field(min_length=1, max_length=8)
    single_administrator: bool


class ServiceStarted(Event):
    """The event of a start of a service process.

    `process` is the name of the process if several processes serve the log, otherwise None. `epoch` is given with the
    name. It is higher at each start under the same name.
    """

    type = "service.started"
    version: str
    code: Digest
    layers: dict[str, bool]
    process: Identifier | None
    epoch: int | None = Field(ge=1)

    def about(self) -> tuple[str, ...]:
        return () if self.process is None else (f"process:{self.process}",)


class ServiceStopped(Event):
    """The event of an orderly stop of a service process."""

    type = "service.stopped"
    reason: str
    process: Identifier | None

    def about(self) -> tuple[str, ...]:
        return () if self.process is None else (f"process:{self.process}",)


class ProcessLost(Event):
    """The event by which one process records that another process has stopped without a `service.stopped` event.

    `last_contact` is the lost process's last contact with the database, by the database's clock. The entry withdraws
    the `epoch` of the lost process, so that it can append no more entries. A process stops sending responses five
    seconds after its last contact.
    """

    type = "process.lost"
    outcomes = ("interrupted",)
    process: Identifier
    epoch: int = Field(ge=1)
    last_contact: Time

    def about(self) -> tuple[str, ...]:
        return (f"process:{self.process}",)


class Heartbeat(Event):
    """A periodic event that shows that the service runs."""

    type = "heartbeat"


def apply_initialisation(case: Case) -> Changes:
    """Apply the log's first entry: its keys, its administrators and its first policy set.

    Raises: Denied, BadInput or Tampered if the entry contradicts itself or contains a malformed key or policy set.
    """
    body = case.of(Initialized)
    names = [person.name for person in body.administrators]
    keyids = [person.keyid for person in body.administrators]
    case.require(len(set(names)) == len(names), "administrators", "different names", names)
    case.require(len(set(keyids)) == len(keyids), "administrators", "different keys", keyids)
    case.require(SERVICE not in names, "administrators", "other names than the appliance's own actor", names)
    case.require(
        body.single_administrator == (len(names) == 1), "administrators", "two, or one declared as single", len(names)
    )
    post_quantum = body.post_quantum
    log_keys = [body.log_key, *([] if post_quantum is None else [post_quantum.log_key])]
    for vkey in log_keys:
        log_name = parse_vkey(vkey).name
        case.require(log_name == body.origin, "log key", f"the key of {body.origin}", log_name)
    parse_spki(base64.b64decode(body.adapter_key))
    if post_quantum is not None:
        are_valid = is_post_quantum(post_quantum.log_key) and is_post_quantum_adapter_key(post_quantum.adapter_key)
        case.require(are_valid, "post-quantum keys", "keys of ML-DSA-65", "another kind")
    policy = parse_policy(case.documents["policy"])
    require_foreign_witnesses(log_keys, policy)
    site = Site(
        origin=body.origin,
        log_keys=tuple(LogKey(vkey=vkey, since=0) for vkey in log_keys),
        adapter_key=body.adapter_key,
        post_quantum_adapter_key=None if post_quantum is None else AdapterKey(key=post_quantum.adapter_key, since=0),
        single_administrator=body.single_administrator,
        policy=digest_bytes(case.documents["policy"]),
        parameters=policy.parameters,
    )
    changes: Changes = [(case.state.sites, "site", site)]
    for person in body.administrators:
        case.require(keyid_of(base64.b64decode(person.key)) == person.keyid, "key", person.keyid, "another key")
        changes += make_enrolment_changes(case, person.name, None, ("administrator",), person.key, person.keyid)
    return changes


def apply_service_start(case: Case) -> Changes:
    """Apply the start of a process.

    A process without a name is the only one: its start ends all others and empties all slots. The start of a named
    process empties the slots under its name and those of a process without a name. Other entries close the requests
    and runs that a crash left open.
    """
    body, state = case.of(ServiceStarted), case.state
    case.require((body.process is None) == (body.epoch is None), "epoch", "one beside a process's name", body.epoch)
    if body.process is None or body.epoch is None:
        return [
            *_empty_slots(case),
            *(_end_process(case, row) for row in state.processes.values() if row.ended is None),
        ]
    before = state.processes.get(body.process)
    lowest_epoch = 1 if before is None else before.epoch + 1
    case.require(body.epoch >= lowest_epoch, "epoch", f"at least {lowest_epoch}", body.epoch)
    row = ServiceProcess(name=body.process, epoch=body.epoch, since=case.entry.index)
    return [*_empty_slots(case, (None, body.process)), (state.processes, body.process, row)]


def apply_service_stop(case: Case) -> Changes:
    """Apply an orderly stop: a named process ends, and the slots of the process become empty."""
    body = case.of(ServiceStopped)
    ended = [] if body.process is None else [_end_process(case, _require_running(case, body.process))]
    return [*ended, *_empty_slots(case, (body.process,))]


def apply_process_loss(case: Case) -> Changes:
    """Apply the loss of a process: it ends and its slots become empty.

    Raises: Denied if no process with this name and epoch runs.
    """
    body = case.of(ProcessLost)
    row = _require_running(case, body.process)
    case.require(body.epoch == row.epoch, "epoch", row.epoch, body.epoch)
    case.require(body.last_contact <= case.entry.time, "last contact", f"at most {case.entry.time}", body.last_contact)
    return [_end_process(case, row), *_empty_slots(case, (body.process,))]


def _require_running(case: Case, process: str) -> ServiceProcess:
    row = case.state.processes.get(process)
    if row is None or row.ended is not None:
        raise Denied(f"{case.place}: process: expected one that runs, got {process}")
    return row


def _end_process(case: Case, row: ServiceProcess) -> Change:
    return case.state.processes, row.name, row.model_copy(update={"ended": case.entry.index})


def _empty_slots(case: Case, processes: Collection[str | None] | None = None) -> Changes:
    """Return the changes that empty the slots of these processes, or of all if `processes` is None.

    Their open requests are marked as cut off: they can end, but not successfully. In `processes`, None is the process
    without a name.
    """
    state = case.state
    slots: Changes = [
        (state.slots, key, None) for key, slot in state.slots.items() if processes is None or slot.process in processes
    ]
    cut_off: Changes = [
        (state.requests, request.id, request._replace(is_cut_off=True))
        for request in state.requests.values()
        if processes is None or request.process in processes
    ]
    return [*slots, *cut_off]


EVENTS = (
    EventRule(Initialized, apply_initialisation),
    EventRule(ServiceStarted, apply_service_start),
    EventRule(ServiceStopped, apply_service_stop),
    EventRule(ProcessLost, apply_process_loss),
    EventRule(Heartbeat, leave_unchanged),
)
