"""Tokenizes long requests during the engine's steps: one after another, in a separate thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from appliance.errors import ApplianceError, Conflict

if TYPE_CHECKING:
    from appliance.ml.inference.reading import Question


class _Pending(NamedTuple):
    name: str
    slot: str
    read: Callable[[], Question]


class Reader:
    """Slots take turns, and the requests of a slot are read in the order in which they came. So a slot with many
    requests does not delay the others.

    `tell` is called in the reader's thread, with the name of a request that was read, or with None after a defect. It
    is not called for a request that was cancelled meanwhile.
    """

    def __init__(self, tell: Callable[[str | None], None]) -> None:
        self._tell = tell
        self._changed = threading.Condition(threading.RLock())
        self._waiting: dict[str, deque[_Pending]] = {}
        self._pending: dict[str, _Pending] = {}
        self._read: dict[str, Question | ApplianceError] = {}
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def put(self, name: str, slot: str, read: Callable[[], Question]) -> None:
        """Reads it when its turn has come; Conflict where one of this name is being read."""
        with self._changed:
            if name in self._pending:
                raise Conflict(f"request {name}: expected a new name, got one that is being read")
            wanted = self._pending[name] = _Pending(name, slot, read)
            self._waiting.setdefault(slot, deque()).append(wanted)
            self._changed.notify()

    def take(self, name: str) -> tuple[str, Question] | None:
        """The slot and what was read, once; None where the request was cancelled. Raises what it is refused with."""
        with self._changed:
            read = self._read.pop(name, None)
            if read is None:
                return None
            wanted = self._pending.pop(name)
        if isinstance(read, ApplianceError):
            raise read
        return wanted.slot, read

    def cancel(self, name: str) -> bool:
        """Whether there was such a request; it is read no more, or what was read of it is dropped."""
        with self._changed:
            wanted = self._pending.pop(name, None)
            if wanted is None:
                return False
            self._read.pop(name, None)
            waiting = self._waiting.get(wanted.slot, deque())
            if wanted in waiting:
                # In place: the slot keeps its turn.
                waiting.remove(wanted)
                if not waiting:
                    del self._waiting[wanted.slot]
            return True

    def cancel_slot(self, slot: str) -> list[str]:
        """The names of the slot's requests, of which each is cancelled."""
        with self._changed:
            names = [name for name, wanted in self._pending.items() if wanted.slot == slot]
            for name in names:
                self.cancel(name)
        return names

    def _run(self) -> None:
        try:
            while True:
                self._read_next()
        finally:
            # A defect: its trace belongs in the log.
            self._tell(None)

    def _read_next(self) -> None:
        wanted = self._next()
        read: Question | ApplianceError
        try:
            read = wanted.read()
        except ApplianceError as error:
            read = error
        with self._changed:
            if self._pending.get(wanted.name) is not wanted:
                return
            self._read[wanted.name] = read
        self._tell(wanted.name)

    def _next(self) -> _Pending:
        """The first request of the slot whose turn it is; the slot's next turn is after all others."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            slot = next(iter(self._waiting))
            waiting = self._waiting.pop(slot)
            wanted = waiting.popleft()
            if waiting:
                self._waiting[slot] = waiting
            return wanted
