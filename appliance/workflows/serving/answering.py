"""One answer, from its admission to its end: a token leaves only while the slot is open, and the end is an entry."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from appliance.domain.core.entry import Outcome
from appliance.domain.core.records.serving import Slot
from appliance.errors import ApplianceError, Denied, Unavailable
from appliance.formats.core.commitment import Disclosure
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import Engine, Hear, expect


@dataclass(eq=False)
class Loaded:
    """A slot that answers: `slot` names it in the engine and is never used twice.

    Once it is `closed`, with the reason, no token of it leaves any more; `last_token`: when the last one did.
    """

    row: Slot
    slot: str
    engine: Engine
    clock: Callable[[], datetime]
    contact: Contact = field(default_factory=Contact)
    last_token: datetime | None = None
    closed: str | None = None
    under_way: int = 0
    _door: threading.Lock = field(default_factory=threading.Lock)

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

    def enter(self) -> None:
        """A request is under way in the slot, until it leaves."""
        with self._door:
            self.under_way += 1

    def leave(self) -> None:
        with self._door:
            self.under_way -= 1

    def close_if_idle(self, reason: str) -> bool:
        """Whether nothing is under way; then it is closed."""
        with self._door:
            if self.under_way == 0:
                self.closed = self.closed or reason
            return self.under_way == 0

    def give(self) -> None:
        """A token leaves now; Denied where the slot has been closed, Unavailable where the ledger is out of reach."""
        self.contact.check()
        with self._door:
            if self.closed is not None:
                raise Denied(taken_out(self.closed), code="cut-off")
            self.last_token = self.clock()

    def close(self, reason: str) -> None:
        """Returns once no token can leave."""
        with self._door:
            self.closed = self.closed or reason


@dataclass(frozen=True)
class Ending:
    """What an answer came to. `hidden`: some of its text is not shown as text, such as calls."""

    text: str
    last: Frame
    outcome: Outcome
    hidden: bool = False


class Answer:
    """Frames of tokens and then `done`, which carries the response record: its entry is durable before it leaves.

    Its reader iterates over it; or starts it with `start`, and gives it every frame that it gets, in turn: a token to
    `give`, which never waits, and all else to `end`. `close` it, however it is left. `finish` records the end, once,
    and gives what the last frame says of it.
    """

    def __init__(
        self,
        request: str,
        loaded: Loaded,
        kind: str,
        parameters: Frame,
        instruction: Disclosure | None,
        finish: Callable[[Answer, Ending], Frame],
        scope: str | None = None,
    ) -> None:
        """`scope`: requests of the slot that have it in common may share what was read of their prompts."""
        self.request, self.loaded = request, loaded
        self.instruction = instruction
        """What the service put into the request as its system message."""
        self._kind, self._parameters, self._finish = kind, {**parameters, "scope": scope}, finish
        self._heard: queue.SimpleQueue[Frame | None] | None = None
        self._text: list[str] = []
        self._hidden = False
        self._over = False
        self._cut: str | None = None
        self._came: Callable[[], None] = lambda: None
        self._told: Callable[[Frame], None] = lambda _last: None
        self._ending = threading.Lock()

    @property
    def adapter(self) -> str:
        return self.loaded.adapter

    @property
    def manifest(self) -> str:
        return self.loaded.manifest

    def when_first(self, came: Callable[[], None]) -> None:
        """Called when the first frame has come."""
        self._came = came

    def when_done(self, told: Callable[[Frame], None]) -> None:
        """Called with the last frame of an answer that was given whole, once its end is recorded."""
        self._told = told

    def cut(self, why: str) -> None:
        """No token of it is sent from here on, whether its reader waits for one or has not started."""
        self._cut = why
        self.loaded.engine.cut(self.request, why)

    def start(self, hear: Hear) -> None:
        """Asks the engine; where that refuses, the answer has ended. Nothing is asked for one that was closed."""
        with self._recorded():
            if self._cut is not None:
                raise Denied(self._cut, code="cut-off")
            if not self._over:
                self.loaded.engine.ask(self.request, self.loaded.slot, self._kind, self._parameters, hear)
        if self._over:
            # Closed while the engine was being asked: the request was not cancelled then.
            self.loaded.engine.leave(self.request, ended=False)

    def give(self, frame: Frame) -> None:
        """A token leaves now; Denied where none may any more, which is still to `end` the answer."""
        if self._cut is not None:
            raise Denied(self._cut, code="cut-off")
        self.loaded.give()
        self._came()
        self._came = lambda: None
        if frame["frame"] == "token":
            self._text.append(frame["text"])
            self._hidden = self._hidden or "calls" in frame

    def end(self, frame: Frame | None) -> Frame:
        """The last frame with the record, once that is durable; raises what ended the answer before its end."""
        with self._recorded():
            last = expect(frame, "token", "done")
            self.give(last)
            expect(last, "done")
            ended = self._end("success", last)
            self._told(last)
            return {**last, **ended}

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._over:
            raise StopIteration
        if self._heard is None:
            self._heard = queue.SimpleQueue()
            self.start(self._heard.put)
        frame = self._heard.get()
        if frame is None or frame["frame"] != "token":
            return self.end(frame)
        with self._recorded():
            self.give(frame)
        return frame

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever is raised within ends the answer, and its end is recorded."""
        try:
            yield
        except BaseException as error:
            self._end("failure" if isinstance(error, ApplianceError) else "interrupted", {})
            raise

    def _end(self, outcome: Outcome, last: Frame) -> Frame:
        """Once; nothing where it has ended."""
        with self._ending:
            if self._over:
                return {}
            self._over = True
        self.loaded.engine.leave(self.request, ended=bool(last))
        return self._finish(self, Ending("".join(self._text), last, outcome, self._hidden))

    def close(self) -> None:
        """Ends what its reader has left; nothing where it has ended."""
        self._end("interrupted", {})


def taken_out(reason: str) -> str:
    return f"answer: cut off, its adapter was taken out: {reason}"


def lost() -> Unavailable:
    """Said where an answer came to its end and that end could not be recorded as one."""
    return Unavailable("answer: expected its end to be recorded, got a failed append", code="unrecorded")
