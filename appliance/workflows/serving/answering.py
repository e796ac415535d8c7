"""One answer from its admission to its end. Tokens are sent only while its slot is open, and its end is an entry."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from appliance.domain.core.entry import Outcome
from appliance.domain.core.records.serving import Slot
from appliance.errors import ApplianceError, Denied, Refusal, RefusalCode, Unavailable
from appliance.formats.core.commitment import Disclosure
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import EngineProcess, TakeFrame, expect

CUT_OFF = "The answer was cut off"
"""The message of an answer that ends early. The reason follows it."""
SERVICE_ENDS = RefusalCode("service-ends", "machine", "The service is shut down.", "Send the request again.")


def make_cut_off_error(why: Refusal) -> ApplianceError:
    """Return the error of an answer that ends early. The client may send the request again if only the service ends."""
    if why.code == SERVICE_ENDS.name:
        return Unavailable(f"{CUT_OFF}: {why}", code="service-ends")
    return Denied(CUT_OFF, refusals=(why,), code="cut-off")


@dataclass(eq=False)
class LoadedSlot:
    """A slot with a loaded adapter. `slot` is its name in the engine and is never used twice.

    After it is `closed`, with the reason, no more tokens of it are sent. `last_token`: time of the last token.
    """

    row: Slot
    slot: str
    engine: EngineProcess
    clock: Callable[[], datetime]
    contact: Contact = field(default_factory=Contact)
    last_token: datetime | None = None
    closed: Refusal | None = None
    under_way: int = 0
    _gate: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> None:
        """Count a request that starts in the slot."""
        with self._gate:
            self.under_way += 1

    def leave(self) -> None:
        """Count a request that has ended in the slot."""
        with self._gate:
            self.under_way -= 1

    def close_if_idle(self, reason: Refusal) -> bool:
        """Close the slot and return True if no request is in progress. Otherwise return False."""
        with self._gate:
            if self.under_way == 0:
                self.closed = self.closed or reason
            return self.under_way == 0

    def give(self) -> None:
        """Record that a token is sent now.

        Raises:
            Denied: With the code `cut-off`, if the slot has been closed.
            Unavailable: The ledger is out of reach (`no-contact`), or the service ends (`service-ends`).
        """
        self.contact.check()
        with self._gate:
            if self.closed is not None:
                raise make_cut_off_error(self.closed)
            self.last_token = self.clock()

    def close(self, reason: Refusal) -> None:
        """Close the slot. After the return, no token is sent."""
        with self._gate:
            self.closed = self.closed or reason


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer. `hidden`: some of its text is not sent as text, such as tool calls."""

    text: str
    last: Frame
    outcome: Outcome
    hidden: bool = False


class AnswerStream:
    """An answer: frames of tokens, then `done` with the response record, whose entry is durable before the frame is
    sent.

    Its reader either iterates over it, or calls `start` and passes every frame on in order: tokens to `give`, which
    never waits, and all other frames to `end`. The reader calls `close` in every case. `finish` records the end, once,
    and returns the additions to the last frame.
    """

    def __init__(
        self,
        request: str,
        loaded: LoadedSlot,
        kind: str,
        parameters: Frame,
        instruction: Disclosure | None,
        finish: Callable[[AnswerStream, AnswerEnd], Frame],
        scope: str | None = None,
    ) -> None:
        """Create an answer. Requests of the slot with the same `scope` may share cached prompts."""
        self.request, self.loaded = request, loaded
        self.instruction = instruction
        """The system message that the service added to the request."""
        self._kind, self._parameters, self._finish = kind, {**parameters, "scope": scope}, finish
        self._frames: queue.SimpleQueue[Frame | None] | None = None
        self._text: list[str] = []
        self._hidden = False
        self._over = False
        self._cut: Refusal | None = None
        self._on_first: Callable[[], None] = lambda: None
        self._on_done: Callable[[Frame], None] = lambda _last: None
        self._ending = threading.Lock()

    def when_first(self, on_first: Callable[[], None]) -> None:
        """Set the function that is called when the first frame has come."""
        self._on_first = on_first

    def when_done(self, on_done: Callable[[Frame], None]) -> None:
        """Set the function that is called with the last frame of a complete answer, once its end is recorded."""
        self._on_done = on_done

    def cut(self, why: Refusal) -> None:
        """Stop the answer: no more tokens of it are sent, even if its reader is waiting for one or has not started."""
        self._cut = why
        self.loaded.engine.cut(self.request, f"{CUT_OFF}: {why}")

    def start(self, take_frame: TakeFrame) -> None:
        """Send the request to the engine, unless the answer was closed. If the engine refuses it, the answer has
        ended.
        """
        with self._ending_on_error():
            if self._cut is not None:
                raise make_cut_off_error(self._cut)
            if not self._over:
                self.loaded.engine.ask(self.request, self.loaded.slot, self._kind, self._parameters, take_frame)
        if self._over:
            # The answer was closed while the request was being sent, so it is cancelled now.
            self.loaded.engine.leave(self.request, ended=False)

    def give(self, frame: Frame) -> None:
        """Record that a token is sent now.

        Raises:
            ApplianceError: No more tokens may be sent. The reader must still `end` the answer.
        """
        if self._cut is not None:
            raise make_cut_off_error(self._cut)
        self.loaded.give()
        self._on_first()
        self._on_first = lambda: None
        if frame["frame"] == "token":
            self._text.append(frame["text"])
            self._hidden = self._hidden or "calls" in frame

    def end(self, frame: Frame | None) -> Frame:
        """Return the last frame with the response record, once that is durable.

        Raises:
            ApplianceError: The answer ended early; the error is the cause.
        """
        with self._ending_on_error():
            if frame is not None and frame.get("code") == "cut-off" and (why := self._cut or self.loaded.closed):
                raise make_cut_off_error(why)  # the frame has the reason as text only
            last = expect(frame, "token", "done")
            self.give(last)
            expect(last, "done")
            ended = self._end("success", last)
            self._on_done(last)
            return {**last, **ended}

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._over:
            raise StopIteration
        if self._frames is None:
            self._frames = queue.SimpleQueue()
            self.start(self._frames.put)
        frame = self._frames.get()
        if frame is None or frame["frame"] != "token":
            return self.end(frame)
        with self._ending_on_error():
            self.give(frame)
        return frame

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        """End the answer and record its end if an error is raised within the context."""
        try:
            yield
        except BaseException as error:
            self._end("failure" if isinstance(error, ApplianceError) else "interrupted", {})
            raise

    def _end(self, outcome: Outcome, last: Frame) -> Frame:
        """End the answer, once. Return an empty frame if it has ended already."""
        with self._ending:
            if self._over:
                return {}
            self._over = True
        self.loaded.engine.leave(self.request, ended=bool(last))
        return self._finish(self, AnswerEnd("".join(self._text), last, outcome, self._hidden))

    def close(self) -> None:
        """End an answer that its reader leaves, if it has not ended already."""
        self._end("interrupted", {})


def make_lost_error() -> Unavailable:
    """Return the error for a complete answer whose end could not be recorded as such."""
    return Unavailable("answer: expected its end to be recorded, got a failed append", code="unrecorded")
