"""One process among several on a log: it follows the entries of the others and takes over from processes that are
gone.

PostgreSQL notifies of each commit, so that a revocation takes effect at once. Correctness does not depend on it: each
second the process writes its heartbeat and reads new entries, and only then it counts as in contact.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Self

from appliance.domain.actions.apply import parse_body
from appliance.domain.core.entry import Entry, EntryDraft
from appliance.domain.core.records.serving import ServiceProcess
from appliance.domain.governance.service import Heartbeat, ProcessLost
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished, RequestRefused
from appliance.errors import ApplianceError, Conflict, Denied, Refusal, RefusalCode, Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.core import contact
from appliance.workflows.core.context import RunContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.record import append_all, draft_of
from appliance.workflows.core.retry import stop_cancelled_work, stop_withdrawn_runs
from appliance.workflows.lifecycle.recovery import close_orders, end_request, resume_work, take_up_runs
from appliance.workflows.runs.places import publish_runs
from appliance.workflows.witnesses import HeadExchange

log = logging.getLogger("appliance")

LEDGER_LOST = RefusalCode(
    "ledger-out-of-reach", "machine", "The service has lost contact with its ledger.", "Send the request again later."
)
TAKEN_OVER = RefusalCode(
    "process-taken-over", "machine", "Other processes took over from this one.", "Send the request again."
)

EVERY_S = 1.0
"""Seconds between two heartbeats."""
WATCH_S = 0.25
"""Seconds between two checks of the contact."""
_CHANGES_NOTHING = frozenset({one.type for one in (RequestAdmitted, RequestFinished, RequestRefused, Heartbeat)})
"""Types of frequent entries that cannot make an answer invalid."""


@dataclass
class LogFollower:
    """The threads that follow the other processes.

    `on_entry` is called with each entry of others. `cut_off_all` cuts off every answer for the reason.
    `close_obsolete` closes the slots that may not be served any more. None of them waits for an engine or a disk.
    """

    context: RunContext
    on_entry: Callable[[Entry], None] = lambda entry: None
    cut_off_all: Callable[[Refusal], None] = lambda reason: None
    close_obsolete: Callable[[], None] = lambda: None
    _loads: int = 1
    _acting: threading.Lock = field(default_factory=threading.Lock)
    _has_cut_off: bool = False
    _is_over: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Start the threads, which run until the service has ended, unless the ledger belongs to this process alone."""
        if self.context.processes.alone:
            return self
        self.context.processes.started.set()
        self._loads = self.context.ledger.loads
        self.beat()
        heads = HeadExchange(self.context)
        # Each has a thread of its own: taking over waits for disks, and a shared folder can hang.
        for what, every_s, work in (
            ("contact with the ledger", EVERY_S, self.beat),
            ("notifications of the ledger", EVERY_S, self._listen),
            ("watch over the contact", WATCH_S, self.watch),
            ("taking over", EVERY_S, self.work),
            ("heads of the processes", EVERY_S, partial(heads.run, self.catch_up)),
        ):
            threading.Thread(target=self._repeat, args=(what, every_s, work), name=what, daemon=True).start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._over.set()

    # --- once a second ------------------------------------------------------------------------------------------------

    def _repeat(self, what: str, every_s: float, work: Callable[[], object]) -> None:
        while not self._over.wait(every_s):
            try:
                with contain_defects(what):
                    work()
            except Tampered as error:
                log.critical("ALARM: %s: %s", what, error.message)
            except ApplianceError as error:
                if not self._over.is_set():
                    log.warning("%s: %s", what, error.message)

    def beat(self) -> None:
        """Write a heartbeat, read those of the others, and read and apply the entries of the others."""
        context, processes = self.context, self.context.processes
        processes.beat()
        if processes.is_lost:
            self.end()
            return
        context.ledger.notifies_others = bool(processes.others)
        context.ledger.clock.ahead_ms = processes.ahead_ms
        self.catch_up()

    def work(self) -> None:
        """Take over from lost processes, and run the queue of runs if it is this process's."""
        context = self.context
        if context.closing.is_set() or context.contact.is_lost:
            return
        self.take_over()
        if context.processes.others or not context.runs_here:
            take_up_runs(context)
            if context.runs_here and not context.runs.busy:
                resume_work(context)
        publish_runs(context)

    def end(self) -> None:
        """End serving and appending, because other processes have taken over. The service ends."""
        if not self._is_over:
            self._is_over = True
            log.critical("ALARM: other processes took over from this one, which was silent for too long: it ends")
        self.context.contact.end()
        self._cut_off(TAKEN_OVER())
        for worker in list(self.context.workers.values()):
            worker.end()

    # --- what others appended -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        with closing(self.context.processes.watch_commits(EVERY_S)) as news:
            for is_notified in news:
                if self._over.is_set():
                    return
                if is_notified:
                    self.catch_up()

    def catch_up(self) -> None:
        """Read and apply the entries of other processes, so that the state is as recent as the start of this call."""
        began = contact.now_s()
        with self._acting:
            self._act(self.context.ledger.take_followed())
            self.context.ledger.refresh()
            loads, self._loads = self._loads, self.context.ledger.loads
            self._act(self.context.ledger.take_followed(), is_unknown=loads != self._loads)
        if not self.context.processes.is_lost:
            self.context.contact.record_reading(began)

    def _act(self, entries: Sequence[Entry], *, is_unknown: bool = False) -> None:
        for entry in entries:
            self.on_entry(entry)
            if self._ends_this_process(entry):
                self.end()
        if is_unknown or any(entry.type not in _CHANGES_NOTHING for entry in entries):
            try:
                self.close_obsolete()
            finally:
                stop_withdrawn_runs(self.context)
                stop_cancelled_work(self.context)

    def _ends_this_process(self, entry: Entry) -> bool:
        """Return True if others recorded that this process is lost.

        The log closed its requests then, so it must not respond any more, even if it still holds its name.
        """
        if entry.type != ProcessLost.type:
            return False
        lost = parse_body(entry)
        assert isinstance(lost, ProcessLost)
        return (lost.process, lost.epoch) == (self.context.process, self.context.processes.epoch)

    # --- lost processes -----------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Record the end of each process that gives no sign of life or ended without an entry, and of its requests and
        orders.
        """
        context, processes = self.context, self.context.processes
        for member in processes.silent:
            if processes.end(member):
                log.critical("ALARM: process %s gave no sign of life: what it owned is taken over", member.place)
        candidates = [row for row in context.ledger.state.processes.values() if row.ended is None]
        candidates = [row for row in candidates if row.name != context.process]
        if not candidates:
            return
        # The processes are read after the state, so a process that started meanwhile is seen as alive.
        alive = {(member.name, member.epoch) for member in processes.list_live()}
        for row in candidates:
            if (row.name, row.epoch) not in alive:
                self._record_lost(row)

    def _record_lost(self, row: ServiceProcess) -> None:
        seen = self.context.processes.read_last_heartbeat(row.name)
        now = self.context.now(self.context.ledger.state)
        last = now if seen is None else encode_time(datetime.fromtimestamp(seen / 1000, UTC))
        body = ProcessLost(process=row.name, epoch=row.epoch, last_contact=min(last, now))
        # A row that somebody changed hides a process that runs. It must not commit after the entry says that it ended.
        self.context.processes.withdraw(row.name, row.epoch)
        # Another process may have recorded it first.
        with suppress(Denied, Conflict):
            append_all(self.context, [draft_of(body, outcome="interrupted"), *self._end_requests(row.name)])
            log.critical("ALARM: process %s is lost since %s", row.name, last)
            close_orders(self.context)

    def _end_requests(self, process: str) -> Iterator[EntryDraft]:
        for request in self.context.ledger.state.requests.values():
            if request.process == process:
                yield end_request(request)

    # --- out of reach -------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """End all answers in progress once contact with the ledger is lost."""
        if not self.context.contact.is_lost:
            self._has_cut_off = False
        elif not self._has_cut_off:
            log.critical("ALARM: no contact with the ledger: nothing is answered until it is back")
            self._cut_off(LEDGER_LOST())

    def _cut_off(self, reason: Refusal) -> None:
        self._has_cut_off = True
        self.cut_off_all(reason)
