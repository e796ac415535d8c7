"""A unit is answered: its own release, admitted and loaded, each request recorded before and after."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.domain.approval import barred, released
from appliance.domain.entry import Outcome
from appliance.domain.events import (
    AdapterLoaded,
    AdapterUnloaded,
    AdmissionRefused,
    RequestAdmitted,
    RequestFinished,
    RequestRefused,
)
from appliance.domain.names import versioned
from appliance.domain.response import commit_prompt, derive_salt
from appliance.domain.serving_events import name_request
from appliance.domain.state import Slot, release_key
from appliance.errors import ApplianceError, Denied, NotFound, Tampered, TooMany, Unavailable
from appliance.formats.canonical import parse_canonical
from appliance.formats.commitment import commit
from appliance.store.ledger import Appended
from appliance.workflows.admit import Admitted, admit
from appliance.workflows.callers import Caller
from appliance.workflows.context import Context, Frame
from appliance.workflows.engine import Engine
from appliance.workflows.ingest import checked_base
from appliance.workflows.record import append
from appliance.workflows.response import record_response

log = logging.getLogger(__name__)
DIGEST_KEY = "request-digests"
HOT = 64
"""Adapters that stand in slots at a time, however many are released."""


@dataclass(frozen=True)
class Loaded:
    """A slot that answers: `slot` names it in the engine and is never used twice."""

    row: Slot
    base_digest: str
    slot: str
    engine: Engine

    @property
    def unit(self) -> str:
        return self.row.unit

    @property
    def task(self) -> str:
        return self.row.task

    @property
    def adapter(self) -> str:
        return self.row.adapter

    @property
    def manifest(self) -> str:
        return self.row.manifest


@dataclass(frozen=True)
class Answer:
    """`frames` yields token frames and ends with `done`, which carries the response record: its entry is durable."""

    request: str
    adapter: str
    manifest: str
    frames: Generator[Frame]


def _answered_by(request: str, loaded: Loaded) -> dict[str, Any]:
    names = ("unit", "task", "adapter", "manifest", "admitted", "release", "approvals")
    return {"request": request, **{name: getattr(loaded.row, name) for name in names}}


class Serving:
    """The engine and its slots, kept equal to what the ledger allows."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.RLock()
        self._engines: dict[tuple[str, str, str], Engine] = {}
        self._slots: dict[str, Loaded] = {}
        # Clear while something is to be taken out: whoever would load waits behind it, not before it.
        self._settled = threading.Event()
        self._settled.set()
        self._running: dict[str, tuple[Caller, Engine]] = {}
        """Requests under way, by whose token and in which engine."""
        self._key = context.keyring.read_secret(DIGEST_KEY)

    # --- what a unit sees ---------------------------------------------------------------------------------------------

    def models(self, unit: str) -> list[dict[str, Any]]:
        """The tasks released to the unit that may answer now."""
        state = self._context.ledger.state
        now = self._context.now(state)
        found = []
        for release in state.releases.values():
            adapter = released(state, unit, release.task)
            if release.unit == unit and adapter is not None and not barred(state, release, adapter, now):
                found.append({"id": release.task, "object": "model", "created": 0, "owned_by": unit})
        return found

    def model(self, unit: str, task: str) -> dict[str, Any]:
        """One of them; to a unit, what is not released to it is not there."""
        for model in self.models(unit):
            if model["id"] == task:
                return model
        raise NotFound(f"model: expected one released to {unit}, got {task!r}", code="model-not-found")

    def answer(self, caller: Caller, task: str, kind: str, parameters: Frame, source: str) -> Answer:
        """Admits the request or records why not; whatever cannot be recorded is not answered.

        `kind` is `generate` or `classify`; the parameters hold `messages`, or `prompt`.
        """
        milliseconds = int(self._context.clock().timestamp() * 1000)
        request = name_request(milliseconds, secrets.token_bytes(10))
        try:
            loaded = self._ensure(caller.unit, task)
            prompt = commit_prompt(parameters, self._salt(request, "prompt"))
            body = RequestAdmitted(
                **_answered_by(request, loaded), token=caller.token, token_issued_at=caller.issued_at, prompt=prompt
            )
            # Known before it is recorded: whatever is revoked from here on finds it.
            self._running[request] = (caller, loaded.engine)
            append(self._context, body, source=source)
        except ApplianceError as error:
            self._running.pop(request, None)
            self._refuse(caller.unit, error, source)
            raise
        frames = loaded.engine.answer(request, loaded.slot, kind, parameters)
        recorded = self._record(request, loaded, frames, source, kind)
        return Answer(request, loaded.adapter, loaded.manifest, recorded)

    def _refuse(self, unit: str, error: ApplianceError, source: str) -> None:
        """A refusal is an entry too; where even that cannot be written the caller is refused all the same."""
        with suppress(ApplianceError):
            body = RequestRefused(unit=unit, code=error.code, message=error.message[:1000], count=1)
            append(self._context, body, source=source)

    def _record(
        self, request: str, loaded: Loaded, frames: Generator[Frame], source: str, kind: str
    ) -> Generator[Frame]:
        text: list[str] = []
        last: Frame = {}
        outcome: Outcome = "interrupted"
        try:
            for frame in frames:
                if frame["frame"] == "done":
                    last, outcome = frame, "success"
                    break
                text.append(frame["text"])
                yield frame
        except ApplianceError:
            outcome = "failure"
            raise
        finally:
            self._running.pop(request, None)
            frames.close()
            finished = self._finish(request, loaded, "".join(text), last, outcome, source)
        shown = "".join(text) if kind == "classify" else None
        salts = self._salt(request, "prompt"), self._salt(request, "answer")
        yield {**last, "record": record_response(self._context.ledger, finished, *salts, shown)}

    def _finish(self, request: str, loaded: Loaded, text: str, last: Frame, outcome: Outcome, source: str) -> Appended:
        body = RequestFinished(
            **_answered_by(request, loaded),
            finish_reason=str(last.get("finish_reason", outcome)),
            prompt_tokens=int(last.get("prompt_tokens", 0)),
            completion_tokens=int(last.get("completion_tokens", 0)),
            answer=commit(text, self._salt(request, "answer")),
        )
        return append(self._context, body, source=source, outcome=outcome)

    def _salt(self, request: str, role: str) -> bytes:
        """The ledger holds no prompt and no answer; their digests are under keys that the unit is given and nobody can
        guess."""
        return derive_salt(self._key, request, role)

    # --- slots --------------------------------------------------------------------------------------------------------

    def _ensure(self, unit: str, task: str) -> Loaded:
        """The loaded slot for the unit's task, if it still is today's release; else admission and a load."""
        self._settled.wait()
        with self._lock:
            key = release_key(unit, task)
            loaded = self._slots.get(key)
            if loaded is not None and loaded.engine.alive and not self._against(loaded):
                # Behind all others: what was asked for longest ago stands first.
                self._slots[key] = self._slots.pop(key)
                return loaded
            if loaded is not None:
                self._unload(loaded, "engine ended" if not loaded.engine.alive else "no longer admissible")
            self._make_room()
            return self._load(unit, task, admit(self._context, unit, task))

    def _make_room(self) -> None:
        """Takes out what was asked for longest ago and answers nothing now; asked for, it is admitted again."""
        while len(self._slots) >= HOT:
            idle = next((one for one in self._slots.values() if not one.engine.answers(one.slot)), None)
            if idle is None:
                raise TooMany(f"slots: expected one of {HOT} that answers nothing, got none")
            self._unload(idle, "another adapter needed its slot")

    def _load(self, unit: str, task: str, admitted: Admitted) -> Loaded:
        adapter = admitted.adapter
        name = versioned(adapter.name, adapter.version)
        row = self._context.ledger.state.slots.get(release_key(unit, task))
        if row is None:
            raise Unavailable(f"slot {unit}/{task}: expected the one just admitted, got none", code="slot-emptied")
        slot = f"{unit}/{task}/{admitted.appended.entry.index}"
        try:
            engine = self._engine(adapter.base, adapter.base_digest, admitted)
            engine.load(slot, admitted.files)
            body = AdapterLoaded(
                unit=unit, task=task, adapter=name, admitted=admitted.appended.entry.index, probe="identical"
            )
            append(self._context, body)
        except ApplianceError as error:
            refusal = AdmissionRefused(unit=unit, task=task, adapter=name, reasons=(error.message[:500],))
            append(self._context, refusal)
            raise
        loaded = Loaded(row, adapter.base_digest, slot, engine)
        self._slots[release_key(unit, task)] = loaded
        return loaded

    def _engine(self, base: str, digest: str, admitted: Admitted) -> Engine:
        # One engine for each tuple that an adapter can have been judged on.
        recipe = parse_canonical(admitted.files["recipe.json"])
        key = (digest, recipe["quantisation"], recipe["compute_dtype"])
        engine = self._engines.get(key)
        if engine is None or not engine.alive:
            try:
                folder = checked_base(self._context, base)
            except Tampered as error:
                # To a unit it is what a changed adapter is: not admitted, until somebody has looked into it.
                raise Denied(f"base {base}", reasons=(error.message,), code="not-admitted") from error
            engine = self._engines[key] = Engine(self._context, folder, digest, recipe)
        return engine

    def _against(self, loaded: Loaded) -> list[str]:
        """Why the slot may not answer any more; empty while it may."""
        if self._context.lost:
            return [self._context.lost[0].message]
        state = self._context.ledger.state
        now = self._context.now(state)
        release = state.releases.get(release_key(loaded.unit, loaded.task))
        adapter = released(state, loaded.unit, loaded.task)
        if release is None or adapter is None or adapter.manifest != loaded.manifest:
            return [f"release: expected {loaded.adapter} for {loaded.unit}/{loaded.task}, got another"]
        return barred(state, release, adapter, now)

    def reconcile(self) -> None:
        """After anything that may change what answers: what may not answer any more is taken out at once.

        It waits for one load at most, however many stand in line.
        """
        self._cut_revoked()
        self._settled.clear()
        try:
            with self._lock:
                for loaded in list(self._slots.values()):
                    reasons = self._against(loaded)
                    if reasons:
                        self._unload(loaded, reasons[0])
        finally:
            self._settled.set()

    def _cut_revoked(self) -> None:
        """What is being answered to a token that no longer counts; waits for no load."""
        state = self._context.ledger.state
        for request, (caller, engine) in list(self._running.items()):
            if against := caller.against(state):
                engine.cut(request, against)

    def _unload(self, loaded: Loaded, reason: str) -> None:
        """Denied first: the slot is gone from the table before the engine forgets it."""
        key = release_key(loaded.unit, loaded.task)
        self._slots.pop(key, None)
        slot: Slot | None = self._context.ledger.state.slots.get(key)
        with suppress(Unavailable):
            loaded.engine.unload(loaded.slot)
        if slot is not None:
            with suppress(Denied, NotFound):
                append(
                    self._context,
                    AdapterUnloaded(unit=loaded.unit, task=loaded.task, adapter=slot.adapter, reason=reason[:500]),
                )

    def close(self) -> None:
        """Ends the engines; nothing answers any more."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._slots.clear()
