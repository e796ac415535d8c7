"""The slots of loaded adapters, kept equal to what the ledger allows: filled after admission, emptied at once.

A revocation has this order: the entry denies every new request; the slot is closed, so no token is sent; its name is
removed from the table; the engine unloads it and cuts its answers; that is checked; the emptying is recorded. The first
three steps wait for no load, no engine, and no lock that another thread holds during work. The sealed folder is kept as
evidence, but admission refuses it.
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
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Slot, release_key, slot_key
from appliance.domain.evaluation.quality import VLLM, VLLM_SLOTS
from appliance.domain.releases.adapters import make_admission_error
from appliance.domain.releases.approval import compute_clearance, find_released_adapter, find_superseded_evidence
from appliance.domain.serving.slots import AdapterLoaded, AdapterUnloaded, explain_not_evaluated
from appliance.errors import (
    ApplianceError,
    Denied,
    NotFound,
    RateLimited,
    Refusal,
    RefusalCode,
    Rejected,
    Tampered,
    Unavailable,
)
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.core.context import ServingContext
from appliance.workflows.core.record import append
from appliance.workflows.data.imports import checked_base
from appliance.workflows.releases.exports import AdmittedAdapter, admit, record_refusal, released_adapter
from appliance.workflows.serving.answering import SERVICE_ENDS, LoadedSlot, make_cut_off_error
from appliance.workflows.serving.engine import EngineProcess
from appliance.workflows.witnesses import list_missing_entries

ENGINE_ENDED = RefusalCode("engine-ended", "machine", "The inference engine ended.", "Send the request again.")
SLOT_NEEDED = RefusalCode(
    "slot-needed", "machine", "Another adapter needed the slot.", "The next request loads the adapter again."
)
LOAD_FAILED = RefusalCode("load-failed", "machine", "The adapter could not be loaded.", "Send the request again.")
RELEASED_ANOTHER = RefusalCode(
    "released-another",
    "state",
    "The unit's served model is no longer released to adapter {id}.",
    "The next request loads the adapter that is released now.",
)
BASE_CHANGED = RefusalCode(
    "base-files-changed",
    "machine",
    "The files of base model {id} have changed on disk: {detail}.",
    "Restore the files: appliance ledger verify lists them.",
)

log = logging.getLogger(__name__)

EngineKey = tuple[str, str, str]
"""Digest of the base, quantisation and compute dtype: one engine serves all adapters that share them."""
MAX_LOADED = 64
"""Most adapters that are loaded at a time, however many are released."""


class Slots:
    """The slots of this process.

    `_table` is accessed under a lock that is never held during work. Loading or emptying a slot holds the lock of its
    unit and served model.
    """

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._most = MAX_LOADED if context.vllm is None else VLLM_SLOTS
        self._lock = threading.Lock()
        self._turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._starting = threading.Lock()
        self._engines: dict[EngineKey, EngineProcess] = {}
        self._table: dict[str, LoadedSlot] = {}
        self._closed_slots: dict[str, list[LoadedSlot]] = {}
        self._loaded_slots: set[LoadedSlot] = set()
        """Slots from before their load until they are emptied. Their engines are needed."""
        self._is_stopped = False

    def find(self, unit: str, served_model: str) -> LoadedSlot:
        """Return the slot of the unit's served model if it matches today's release. Otherwise admit the adapter and
        load it.

        Raises:
            NotFound: No adapter is released to the unit under that name.
        """
        key = release_key(unit, served_model)
        loaded = self._table.get(key)
        if loaded is not None and self._is_usable(loaded):
            self._touch(key, loaded)
            return loaded
        # This check comes before any state is kept for a name that a client may have invented.
        released_adapter(self._context.ledger.state, unit, served_model)
        try:
            with self._turn(key):
                loaded = self._table.get(key)
                if loaded is not None and self._is_usable(loaded):
                    return loaded
                if loaded is not None:
                    reasons = self._find_blockers(loaded)
                    self._close(loaded, reasons[0] if reasons else ENGINE_ENDED())
                self._empty(key)
                return self._fill(unit, served_model)
        finally:
            self._settle(key)

    def close_obsolete(self) -> None:
        """Close the slots that may not be served any more. `settle` empties them.

        Called after any change that may affect serving. No token is sent and no request finds a closed slot.
        """
        with self._lock:
            table = list(self._table.values())
        for loaded in table:
            if reasons := self._find_blockers(loaded):
                self._close(loaded, reasons[0])

    def settle(self) -> None:
        """Empty the closed slots and record it. What cannot be recorded now waits for the next call."""
        for key in list(self._closed_slots):
            self._settle(key)

    def _settle(self, key: str) -> None:
        """Empty the closed slots of a key, without waiting for a thread that has its turn: that thread calls this
        afterwards.
        """
        turn = self._turn(key)
        while self._closed_slots.get(key) and turn.acquire(blocking=False):
            try:
                self._empty(key)
            except Unavailable:
                return
            finally:
                turn.release()

    def stop(self) -> None:
        """End the engines and record the last tokens if possible. Nothing is served afterwards."""
        self._is_stopped = True
        with self._lock:
            table, engines = list(self._table.values()), list(self._engines.values())
        for loaded in table:
            self._close(loaded, SERVICE_ENDS())
        for engine in engines:
            engine.close()
        with suppress(ApplianceError):
            self.settle()

    def _turn(self, key: str) -> threading.RLock:
        with self._lock:
            return self._turns[key]

    # --- checks ------------------------------------------------------------------------------------------------------

    def _is_usable(self, loaded: LoadedSlot) -> bool:
        return loaded.closed is None and loaded.engine.alive and not self._find_blockers(loaded)

    def _find_blockers(self, loaded: LoadedSlot) -> list[Refusal]:
        """Return the reasons why the slot may not be served any more; empty if it may."""
        if self._context.missing_from_log:
            return list_missing_entries(self._context)
        state = self._context.ledger.state
        now = self._context.now(state)
        release = state.releases.get(release_key(loaded.row.unit, loaded.row.served_model))
        adapter = find_released_adapter(state, loaded.row.unit, loaded.row.served_model)
        if release is None or adapter is None or adapter.manifest != loaded.row.manifest:
            return [RELEASED_ANOTHER(f"adapter:{loaded.row.adapter}")]
        clearance = compute_clearance(state, release, adapter, now)
        return list(clearance.reasons) or find_superseded_evidence(clearance, loaded.row)

    # --- filling ------------------------------------------------------------------------------------------------------

    def _touch(self, key: str, loaded: LoadedSlot) -> None:
        """Move the slot to the end of the table, whose first slot is the least recently used."""
        with self._lock:
            if self._table.get(key) is loaded:
                self._table[key] = self._table.pop(key)

    def _make_room(self) -> None:
        """Close the least recently used slots without requests. A later request admits their adapters again.

        Raises:
            RateLimited: No slot is idle.
        """
        with self._lock:
            table = list(self._table.values())
        over = len(table) - self._most + 1
        for loaded in table:
            if over <= 0:
                return
            if loaded.close_if_idle(reason := SLOT_NEEDED()):
                self._close(loaded, reason)
                self._settle(release_key(loaded.row.unit, loaded.row.served_model))
                over -= 1
        if over > 0:
            raise RateLimited(f"slots: expected one of {self._most} that is idle, got none")

    def _fill(self, unit: str, served_model: str) -> LoadedSlot:
        """Admit and load by today's release. Repeat if the release or an approval was replaced since the admission."""
        self._make_room()
        while True:
            admitted = admit(self._context, unit, served_model)
            try:
                return self._load(unit, served_model, admitted)
            except Denied:
                if not self._is_superseded(unit, served_model):
                    raise
            # The engine drops the adapter before the next admission hashes a folder.
            self._empty(release_key(unit, served_model))

    def _is_superseded(self, unit: str, served_model: str) -> bool:
        """Return True if the adapter just admitted may still be served, but by other entries than those that admitted
        it.
        """
        state, key = self._context.ledger.state, release_key(unit, served_model)
        now, release, row = self._context.now(state), state.releases.get(key), self._find_record(unit, served_model)
        adapter = find_released_adapter(state, unit, served_model)
        if release is None or adapter is None or row is None:
            return False
        clearance = compute_clearance(state, release, adapter, now)
        return not clearance.reasons and bool(find_superseded_evidence(clearance, row))

    def _load(self, unit: str, served_model: str, admitted: AdmittedAdapter) -> LoadedSlot:
        adapter = admitted.adapter
        name, index = versioned(adapter.name, adapter.version), admitted.appended.entry.index
        slot, row = f"{unit}/{served_model}/{index}", self._find_record(unit, served_model)
        if row is None or row.admitted != index:
            got = "an empty slot" if row is None else f"the adapter admitted by entry {row.admitted}"
            message = f"slot {unit}/{served_model}: expected the adapter admitted by entry {index}, got {got}"
            raise Unavailable(message, code="slot-emptied")
        loaded: LoadedSlot | None = None
        try:
            engine = self._check_engine(adapter)
            loaded = self._begin(row, slot, admitted)
            loaded.engine.load(slot, admitted.files)
            entry = AdapterLoaded(
                unit=unit,
                served_model=served_model,
                adapter=name,
                admitted=index,
                logit_fingerprint="identical" if engine is None else "close",
                engine=engine,
            )
            append(self._context, entry)
        except ApplianceError as error:
            if loaded is not None:
                # It may be unclear whether its entry was committed. If it was, the emptying is recorded.
                loaded.close(LOAD_FAILED())
                with self._lock:
                    self._closed_slots.setdefault(release_key(unit, served_model), []).append(loaded)
            if self._is_stopped and isinstance(error, Unavailable):
                # The load failed because its engine was ended, which says nothing about the adapter.
                raise make_cut_off_error(SERVICE_ENDS()) from error
            with suppress(Unavailable):
                record_refusal(self._context, unit, served_model, name, error)
            raise
        self._context.refused_admissions.pop((unit, served_model), None)
        with self._lock:
            self._table[release_key(unit, served_model)] = loaded
        # An entry since its own is either seen here, or its author sees the slot in the table.
        if reasons := self._find_blockers(loaded):
            self._close(loaded, reasons[0])
            raise make_admission_error(f"adapter {name} for {unit}", reasons)
        return loaded

    def _find_record(self, unit: str, served_model: str) -> Slot | None:
        """Return the ledger's record of this process's slot."""
        return self._context.ledger.state.slots.get(slot_key(unit, served_model, self._context.process))

    def _check_engine(self, adapter: Adapter) -> OtherEngine | None:
        """Return the site's engine, or None for the appliance's own.

        Raises:
            Denied: The adapter was not evaluated on this engine.
        """
        if self._context.vllm is None:
            return None
        if VLLM not in adapter.engines:
            name = versioned(adapter.name, adapter.version)
            raise Denied(f"admission of {name}", refusals=(explain_not_evaluated(name, VLLM),), code="not-admitted")
        return VLLM

    def _begin(self, row: Slot, slot: str, admitted: AdmittedAdapter) -> LoadedSlot:
        """Return a new slot in the engine for the adapter's base, quantisation and compute dtype. Start the engine if
        needed.
        """
        recipe: dict[str, Any] = parse_canonical(admitted.files["recipe.json"])
        key = (admitted.adapter.base_digest, recipe["quantisation"], recipe["compute_dtype"])
        with self._starting:
            engine = self._engines.get(key)
            if engine is None or not engine.alive:
                self._end_unneeded()
                engine = self._start(admitted.adapter, recipe)
            loaded = LoadedSlot(row, slot, engine, self._context.clock, self._context.contact)
            with self._lock:
                self._engines[key] = engine
                self._loaded_slots.add(loaded)
        return loaded

    def _start(self, adapter: Adapter, recipe: dict[str, Any]) -> EngineProcess:
        try:
            folder = self._context.artifacts.path(adapter.base_digest)
        except NotFound:
            folder = self._check_base(adapter)
        return EngineProcess(self._context, folder, adapter.base_digest, recipe, partial(self._check_base, adapter))

    def _check_base(self, adapter: Adapter) -> Path:
        """Return the base's folder, hashed again.

        Raises:
            Denied: The base has changed. The adapter is not admitted until an administrator has resolved it.
        """
        try:
            return checked_base(self._context, adapter.base)
        except Tampered as error:
            raise Denied(
                f"base {adapter.base}",
                refusals=(BASE_CHANGED(f"base:{adapter.base}", detail=Rejected(error.message)),),
                code="not-admitted",
            ) from error

    def _end_unneeded(self) -> None:
        """End engines without a loaded adapter, whose base no release uses any more, to free memory."""
        with self._lock:
            needed = {loaded.engine for loaded in self._loaded_slots}
            unneeded = [key for key, engine in self._engines.items() if engine not in needed]
            ended = [self._engines.pop(key) for key in unneeded]
        for engine in ended:
            engine.close()

    # --- emptying -----------------------------------------------------------------------------------------------------

    def _close(self, loaded: LoadedSlot, reason: Refusal) -> None:
        """Close the slot. No token is sent and no request finds it afterwards."""
        loaded.close(reason)
        key = release_key(loaded.row.unit, loaded.row.served_model)
        with self._lock:
            if self._table.get(key) is loaded:
                del self._table[key]
                self._closed_slots.setdefault(key, []).append(loaded)

    def _empty(self, key: str) -> None:
        """Unload the closed slots of the key from their engines, and record it.

        Raises:
            Unavailable: It cannot be recorded yet.
        """
        while self._closed_slots.get(key):
            loaded = self._closed_slots[key][0]
            _unload_or_end(loaded.engine, loaded.slot)
            self._record_emptied(loaded)
            with self._lock:
                self._loaded_slots.discard(self._closed_slots[key].pop(0))

    def _record_emptied(self, loaded: LoadedSlot) -> None:
        slot = self._find_record(loaded.row.unit, loaded.row.served_model)
        if slot is None or slot.admitted != loaded.row.admitted or slot.loaded is None:
            return  # never filled, or recorded already by an append whose reply was lost
        last = None if loaded.last_token is None else encode_time(loaded.last_token)
        if last is not None and slot.loaded_at is not None:
            # If the clock went back, the tokens get the time of the load at least. If it was reset, they get no time
            # later than now.
            last = min(max(last, slot.loaded_at), self._context.now(self._context.ledger.state))
        body = AdapterUnloaded(
            unit=loaded.row.unit,
            served_model=loaded.row.served_model,
            adapter=loaded.row.adapter,
            admitted=loaded.row.admitted,
            reason=ENGINE_ENDED.name if loaded.closed is None else loaded.closed.code,
            last_token=last,
        )
        with suppress(Denied, NotFound):
            append(self._context, body)


def _unload_or_end(engine: EngineProcess, slot: str) -> None:
    """Unload the slot from the engine. If the engine does not confirm it, the engine is ended with all its adapters."""
    if not engine.alive:
        return
    try:
        engine.unload(slot)
    except NotFound:
        return
    except ApplianceError as error:
        log.critical("ALARM: the engine did not unload slot %s, and the service ended it: %s", slot, error.message)
        engine.close()
