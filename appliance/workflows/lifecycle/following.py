"""One process of several follows the log: what the others append is folded and acted upon, and whoever is gone is taken
over from.

PostgreSQL tells of each commit, so that a revocation is followed at once. Nothing rests on that: each second the
process gives its sign of life, reads what it does not know yet, and only then counts as in contact.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from appliance.domain.core.entry import Draft, Entry
from appliance.domain.core.records.serving import ServiceProcess
from appliance.domain.governance.service import Heartbeat, ProcessLost
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished, RequestRefused
from appliance.errors import ApplianceError, Conflict, Denied
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.core import contact
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.halt import halt_cancelled, halt_withdrawn
from appliance.workflows.core.record import append_all, draft_of
from appliance.workflows.lifecycle.recovery import close_orders, end_request, resume_work, take_up_runs
from appliance.workflows.runs.following import tell_runs

log = logging.getLogger("appliance")

EVERY_S = 1.0
WATCH_S = 0.25
_CHANGES_NOTHING = frozenset({one.type for one in (RequestAdmitted, RequestFinished, RequestRefused, Heartbeat)})
"""Entries of which there are many, and after which everything that answers may go on."""


@dataclass
class Following:
    """`heard`: told the type of each entry of others; `cut_all`: ends every answer, with the reason; `close_obsolete`:
    no token leaves of what may not answer any more. None of them waits for an engine or a disk."""

    context: Context
    heard: Callable[[str], None] = lambda kind: None
    cut_all: Callable[[str], None] = lambda why: None
    close_obsolete: Callable[[], None] = lambda: None
    _loads: int = 1
    _acting: threading.Lock = field(default_factory=threading.Lock)
    _is_cut: bool = False
    _is_over: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Until the service has ended, its last entry included; nothing is to follow where the ledger is this process's
        alone."""
        if self.context.processes.alone:
            return self
        self.context.processes.started.set()
        self._loads = self.context.ledger.loads
        self.beat()
        for name, work in (
            ("contact", self._beat_on),
            ("following", self._listen_on),
            ("watch", self._watch_on),
            ("taking over", self._work_on),
        ):
            threading.Thread(target=work, name=name, daemon=True).start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._over.set()

    # --- once a second ------------------------------------------------------------------------------------------------

    def _beat_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._contained("contact with the ledger", self.beat)

    def beat(self) -> None:
        """A sign of life and a look at the others; then what they appended, and what they left."""
        context, processes = self.context, self.context.processes
        processes.beat()
        if processes.is_lost:
            self.end()
            return
        context.ledger.tells_others = bool(processes.others)
        context.ledger.clock.ahead_ms = processes.ahead_ms
        self.catch_up()

    def _work_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._contained("taking over", self.work)

    def work(self) -> None:
        """What others left, and the runs where they are its own. Not with the signs of life: it waits for disks."""
        context = self.context
        if context.closing.is_set() or context.contact.is_lost:
            return
        self.take_over()
        if context.processes.others or not context.runs_here:
            take_up_runs(context)
            if context.runs_here and not context.runs.busy:
                resume_work(context)
        tell_runs(context)

    def end(self) -> None:
        """Others have taken over: nothing is answered or appended any more, and the service ends."""
        if not self._is_over:
            self._is_over = True
            log.critical("ALARM: other processes took over from this one, which was silent for too long: it ends")
        self.context.contact.end()
        self._cut("other processes took over from this one")
        for worker in list(self.context.workers.values()):
            worker.end()

    # --- what others appended -----------------------------------------------------------------------------------------

    def _listen_on(self) -> None:
        while not self._over.is_set():
            self._contained("news of the ledger", self._listen)
            self._over.wait(EVERY_S)

    def _listen(self) -> None:
        with closing(self.context.processes.news(EVERY_S)) as news:
            for is_told in news:
                if self._over.is_set():
                    return
                if is_told:
                    self.catch_up()

    def catch_up(self) -> None:
        """Folds what others appended and acts upon it; after that, the ledger of the moment at which this began is
        known here."""
        began = contact.now_s()
        with self._acting:
            self._act(self.context.ledger.take_followed())
            self.context.ledger.refresh()
            loads, self._loads = self._loads, self.context.ledger.loads
            self._act(self.context.ledger.take_followed(), is_unknown=loads != self._loads)
        if not self.context.processes.is_lost:
            self.context.contact.made(began)

    def _act(self, entries: Sequence[Entry], *, is_unknown: bool = False) -> None:
        for entry in entries:
            self.heard(entry.type)
        if is_unknown or any(entry.type not in _CHANGES_NOTHING for entry in entries):
            try:
                self.close_obsolete()
            finally:
                halt_withdrawn(self.context)
                halt_cancelled(self.context)

    # --- who is gone --------------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """From each process without a sign of life, and from each that ended without a word: that is an entry, once,
        and so is the end of what it was doing."""
        context, processes = self.context, self.context.processes
        for member in processes.silent:
            if processes.end(member):
                log.critical("ALARM: process %s gave no sign of life: what it owned is taken over", member.place)
        candidates = [row for row in context.ledger.state.processes.values() if row.ended is None]
        candidates = [row for row in candidates if row.name != context.process]
        if not candidates:
            return
        # Looked at again after the state: whoever started meanwhile was there before its entry.
        alive = {(member.name, member.epoch) for member in processes.look()}
        for row in candidates:
            if (row.name, row.epoch) not in alive:
                self._record_lost(row)

    def _record_lost(self, row: ServiceProcess) -> None:
        seen = self.context.processes.last_seen(row.name)
        now = self.context.now(self.context.ledger.state)
        last = now if seen is None else encode_time(datetime.fromtimestamp(seen / 1000, UTC))
        body = ProcessLost(process=row.name, epoch=row.epoch, last_contact=min(last, now))
        # Another process may have been first.
        with suppress(Denied, Conflict):
            append_all(self.context, [draft_of(body, outcome="interrupted"), *self._cut_requests(row.name)])
            log.critical("ALARM: process %s is lost since %s", row.name, last)
            close_orders(self.context)

    def _cut_requests(self, process: str) -> Iterator[Draft]:
        for request in self.context.ledger.state.requests.values():
            if request.process == process:
                yield end_request(request)

    # --- out of reach -------------------------------------------------------------------------------------------------

    def _watch_on(self) -> None:
        while not self._over.wait(WATCH_S):
            self._contained("watch over the contact", self.watch)

    def watch(self) -> None:
        """Ends what is being answered once the ledger of now is not known here."""
        if not self.context.contact.is_lost:
            self._is_cut = False
        elif not self._is_cut:
            log.critical("ALARM: no contact with the ledger: nothing is answered until it is back")
            self._cut("the ledger is out of reach")

    def _cut(self, why: str) -> None:
        self._is_cut = True
        self.cut_all(why)

    def _contained(self, what: str, work: Callable[[], Any]) -> None:
        try:
            with contain_defects(what):
                work()
        except ApplianceError as error:
            if not self._over.is_set():
                log.warning("%s: %s", what, error.message)
