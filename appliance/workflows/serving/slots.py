"""The slots that answer, kept equal to what the ledger allows: filled after admission, emptied at once.

A revocation goes in this order: the entry denies every new request; the slot is closed, so that no token leaves;
its name is dropped; the engine forgets it and cuts what it was answering; that is checked; the emptying is an entry.
Nothing of the first three waits for a load, an engine or a lock that somebody else holds while he works. The sealed
folder stays: it is the evidence, and no admission takes it.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.names import OtherEngine, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.serving import Slot, release_key, slot_key
from appliance.domain.evaluation.engines import VLLM, VLLM_SLOTS
from appliance.domain.releases.approval import clear, released, superseded
from appliance.domain.serving.slots import AdapterLoaded, AdapterUnloaded, AdmissionRefused, not_judged
from appliance.errors import ApplianceError, Denied, NotFound, Tampered, TooMany, Unavailable
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append
from appliance.workflows.data.imports import checked_base
from appliance.workflows.releases.admission import Admitted, admit, released_adapter
from appliance.workflows.serving.answering import Loaded
from appliance.workflows.serving.engine import Engine

log = logging.getLogger(__name__)

EngineKey = tuple[str, str, str]
MAX_LOADED = 64
"""Adapters that stand in slots at a time, however many are released."""


class Slots:
    """`_table` is read and changed under a lock that is never held during work. Loading or emptying a slot holds the
    lock of its unit and task."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._most = MAX_LOADED if context.vllm is None else VLLM_SLOTS
        self._lock = threading.Lock()
        self._turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._starting = threading.Lock()
        self._engines: dict[EngineKey, Engine] = {}
        self._table: dict[str, Loaded] = {}
        self._leaving: dict[str, list[Loaded]] = {}
        self._held: set[Loaded] = set()
        """From before its load until it is emptied: whose engines are needed."""

    def find(self, unit: str, task: str) -> Loaded:
        """The slot of the unit's task, if it is still today's release; else admission and a load. NotFound where
        nothing is released to the unit under that name."""
        key = release_key(unit, task)
        loaded = self._table.get(key)
        if loaded is not None and self._answers(loaded):
            self._touch(key, loaded)
            return loaded
        # Before anything is kept for a name that a client may have made up.
        released_adapter(self._context.ledger.state, unit, task)
        try:
            with self._turn(key):
                loaded = self._table.get(key)
                if loaded is not None and self._answers(loaded):
                    return loaded
                if loaded is not None:
                    reasons = self._against(loaded)
                    self._close(loaded, reasons[0] if reasons else "engine ended")
                self._empty(key)
                return self._fill(unit, task)
        finally:
            self._settle(key)

    def close_obsolete(self) -> None:
        """After anything that may change what answers: of what may not any more, no token leaves and no request finds
        it. `settle` empties it."""
        with self._lock:
            table = list(self._table.values())
        for loaded in table:
            if reasons := self._against(loaded):
                self._close(loaded, reasons[0])

    def settle(self) -> None:
        """What was closed is emptied, and that is recorded; what cannot be recorded now waits for the next time."""
        for key in list(self._leaving):
            self._settle(key)

    def _settle(self, key: str) -> None:
        """Does not wait: the thread that holds the turn comes here when it gives it back."""
        turn = self._turn(key)
        while self._leaving.get(key) and turn.acquire(blocking=False):
            try:
                self._empty(key)
            except Unavailable:
                return
            finally:
                turn.release()

    def stop(self) -> None:
        """Ends the engines; nothing answers any more, and when the last tokens left is recorded where it can be."""
        with self._lock:
            table, engines = list(self._table.values()), list(self._engines.values())
        for loaded in table:
            self._close(loaded, "the service ends")
        for engine in engines:
            engine.close()
        with suppress(ApplianceError):
            self.settle()

    def _turn(self, key: str) -> threading.RLock:
        with self._lock:
            return self._turns[key]

    # --- what may answer ----------------------------------------------------------------------------------------------

    def _answers(self, loaded: Loaded) -> bool:
        return loaded.closed is None and loaded.engine.alive and not self._against(loaded)

    def _against(self, loaded: Loaded) -> list[str]:
        """Why the slot may not answer any more; empty while it may."""
        if self._context.missing_from_log:
            return [self._context.missing_from_log[0].message]
        state = self._context.ledger.state
        now = self._context.now(state)
        release = state.releases.get(release_key(loaded.unit, loaded.task))
        adapter = released(state, loaded.unit, loaded.task)
        if release is None or adapter is None or adapter.manifest != loaded.manifest:
            got = "none" if adapter is None else versioned(adapter.name, adapter.version)
            return [f"release of {loaded.unit}/{loaded.task}: expected {loaded.adapter}, got {got}"]
        clearance = clear(state, release, adapter, now)
        return list(clearance.reasons) or superseded(clearance, loaded.row)

    # --- filling ------------------------------------------------------------------------------------------------------

    def _touch(self, key: str, loaded: Loaded) -> None:
        """After all others: what was asked for longest ago comes first."""
        with self._lock:
            if self._table.get(key) is loaded:
                self._table[key] = self._table.pop(key)

    def _make_room(self) -> None:
        """Takes out what was asked for longest ago and answers nothing now; asked for, it is admitted again."""
        with self._lock:
            table = list(self._table.values())
        over = len(table) - self._most + 1
        for loaded in table:
            if over <= 0:
                return
            if loaded.close_if_idle("another adapter needed its slot"):
                self._close(loaded, "another adapter needed its slot")
                self._settle(release_key(loaded.unit, loaded.task))
                over -= 1
        if over > 0:
            raise TooMany(f"slots: expected one of {self._most} that is idle, got none")

    def _fill(self, unit: str, task: str) -> Loaded:
        """By today's release; once more where that, or an approval, is another since it was admitted."""
        self._make_room()
        while True:
            admitted = admit(self._context, unit, task)
            try:
                return self._load(unit, task, admitted)
            except Denied:
                if not self._is_superseded(unit, task):
                    raise
            # Before the next admission hashes a folder: the engine holds no adapter that nothing may answer with.
            self._empty(release_key(unit, task))

    def _is_superseded(self, unit: str, task: str) -> bool:
        """Whether what was just admitted may still answer, but by other entries than those it was admitted by."""
        state, key = self._context.ledger.state, release_key(unit, task)
        now, release, row = self._context.now(state), state.releases.get(key), self._row(unit, task)
        adapter = released(state, unit, task)
        if release is None or adapter is None or row is None:
            return False
        clearance = clear(state, release, adapter, now)
        return not clearance.reasons and bool(superseded(clearance, row))

    def _load(self, unit: str, task: str, admitted: Admitted) -> Loaded:
        adapter = admitted.adapter
        name, index = versioned(adapter.name, adapter.version), admitted.appended.entry.index
        slot, row = f"{unit}/{task}/{index}", self._row(unit, task)
        if row is None or row.admitted != index:
            got = "an empty slot" if row is None else f"the adapter admitted by entry {row.admitted}"
            message = f"slot {unit}/{task}: expected the adapter admitted by entry {index}, got {got}"
            raise Unavailable(message, code="slot-emptied")
        loaded: Loaded | None = None
        try:
            engine = self._check_engine(adapter)
            loaded = self._begin(row, slot, admitted)
            loaded.engine.load(slot, admitted.files)
            entry = AdapterLoaded(
                unit=unit,
                task=task,
                adapter=name,
                admitted=index,
                probe="identical" if engine is None else "close",
                engine=engine,
            )
            append(self._context, entry)
        except ApplianceError as error:
            if loaded is not None:
                # It may be unknown whether its entry was committed: if it was, its emptying is recorded.
                loaded.close("its load failed")
                with self._lock:
                    self._leaving.setdefault(release_key(unit, task), []).append(loaded)
            refusal = AdmissionRefused(unit=unit, task=task, adapter=name, reasons=(error.message[:500],))
            with suppress(Unavailable):
                append(self._context, refusal)
            raise
        with self._lock:
            self._table[release_key(unit, task)] = loaded
        # Whatever was appended since its own entry: either it is seen here, or its author sees the slot in the table.
        if reasons := self._against(loaded):
            self._close(loaded, reasons[0])
            raise Denied(f"adapter {name} for {unit}", reasons=tuple(reasons), code="not-admitted")
        return loaded

    def _row(self, unit: str, task: str) -> Slot | None:
        """What the ledger says of this process's slot."""
        return self._context.ledger.state.slots.get(slot_key(unit, task, self._context.process))

    def _check_engine(self, adapter: Adapter) -> OtherEngine | None:
        """What answers here; Denied where the adapter was not judged on it. None: the appliance's own."""
        if self._context.vllm is None:
            return None
        if VLLM not in adapter.engines:
            name = versioned(adapter.name, adapter.version)
            raise Denied(f"admission of {name}", reasons=(not_judged(name, VLLM),), code="not-admitted")
        return VLLM

    def _begin(self, row: Slot, slot: str, admitted: Admitted) -> Loaded:
        """A slot of the one engine for each tuple that an adapter can have been judged on."""
        recipe: dict[str, Any] = parse_canonical(admitted.files["recipe.json"])
        key = (admitted.adapter.base_digest, recipe["quantisation"], recipe["compute_dtype"])
        with self._starting:
            engine = self._engines.get(key)
            if engine is None or not engine.alive:
                self._end_unneeded()
                engine = self._start(admitted.adapter, recipe)
            loaded = Loaded(row, slot, engine, self._context.clock, self._context.contact)
            with self._lock:
                self._engines[key] = engine
                self._held.add(loaded)
        return loaded

    def _start(self, adapter: Adapter, recipe: dict[str, Any]) -> Engine:
        try:
            folder = self._context.artifacts.path(adapter.base_digest)
        except NotFound:
            folder = self._check_base(adapter)
        return Engine(self._context, folder, adapter.base_digest, recipe, partial(self._check_base, adapter))

    def _check_base(self, adapter: Adapter) -> Path:
        """The base's folder, hashed again. To a unit a changed one is like a changed adapter: not admitted, until an
        administrator has looked into it."""
        try:
            return checked_base(self._context, adapter.base)
        except Tampered as error:
            raise Denied(f"base {adapter.base}", reasons=(error.message,), code="not-admitted") from error

    def _end_unneeded(self) -> None:
        """Ends engines in which nothing is loaded, to make room for the next: no release uses their base any more."""
        with self._lock:
            needed = {loaded.engine for loaded in self._held}
            unneeded = [key for key, engine in self._engines.items() if engine not in needed]
            ended = [self._engines.pop(key) for key in unneeded]
        for engine in ended:
            engine.close()

    # --- emptying -----------------------------------------------------------------------------------------------------

    def _close(self, loaded: Loaded, reason: str) -> None:
        """No token is sent from here on, and no request finds the slot any more."""
        loaded.close(reason)
        key = release_key(loaded.unit, loaded.task)
        with self._lock:
            if self._table.get(key) is loaded:
                del self._table[key]
                self._leaving.setdefault(key, []).append(loaded)

    def _empty(self, key: str) -> None:
        """The engine forgets what was closed, and it is recorded; Unavailable where it cannot be yet."""
        while self._leaving.get(key):
            loaded = self._leaving[key][0]
            _forget(loaded.engine, loaded.slot)
            self._record_emptied(loaded)
            with self._lock:
                self._held.discard(self._leaving[key].pop(0))

    def _record_emptied(self, loaded: Loaded) -> None:
        slot = self._row(loaded.unit, loaded.task)
        if slot is None or slot.admitted != loaded.row.admitted or slot.loaded is None:
            return  # recorded before, by an append whose end was not seen; or never filled
        last = None if loaded.last_token is None else encode_time(loaded.last_token)
        if last is not None and slot.loaded_at is not None:
            # A clock that went back gives its tokens the time of what stands in the ledger; one that was reset, no
            # later time than now.
            last = min(max(last, slot.loaded_at), self._context.now(self._context.ledger.state))
        body = AdapterUnloaded(
            unit=loaded.unit,
            task=loaded.task,
            adapter=loaded.adapter,
            admitted=loaded.row.admitted,
            reason=(loaded.closed or "")[:500],
            last_token=last,
        )
        with suppress(Denied, NotFound):
            append(self._context, body)


def _forget(engine: Engine, slot: str) -> None:
    """The slot's answers are cut, it is removed from the engine, and that is checked: an engine that cannot say that it
    holds the slot no more is ended, with all that it holds."""
    if not engine.alive:
        return
    try:
        engine.unload(slot)
    except NotFound:
        return
    except ApplianceError as error:
        log.critical("ALARM: the engine did not let go of slot %s and is ended: %s", slot, error.message)
        engine.close()
