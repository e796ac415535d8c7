"""Tokenisation of requests beside the engine's steps, each in a process that is killed if it takes too long.

A chat template and a tokenizer come with the base, and texts come from units. Their work is bounded at import and while
a template is rendered. If a text still takes too much processor time, the kernel kills the process that handles it;
that request fails and others are not delayed. The processes are forks (`Lanes`), since a worker may not start programs.
They are forked before torch is imported, since a fork does not keep torch's threads.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from appliance.errors import ApplianceError, BadInput, Conflict, Unavailable
from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.link import MAX_HEADER_BYTES, take

if TYPE_CHECKING:
    from appliance.ml.inference.reading import PreparedPrompt
    from appliance.ml.inference.request import Encoded, InferenceRequest

LANES = 3
"""Number of requests that are tokenised in parallel, each of another slot."""
LEAST_S, CHARACTER_S = 0.5, 10e-6
"""Seconds of processor time per request, and additional seconds per character.

A tokenizer takes about 0.3e-6 s per character.
"""
MAX_IDS_BYTES = 64 << 20


class Lane:
    """A process that tokenises one request at a time; a killed process is replaced for the next request."""

    def __init__(self, requests: BinaryIO, encoded: BinaryIO) -> None:
        self._requests, self._encoded, self._number = requests, encoded, 0

    def encode(self, request: InferenceRequest) -> Encoded:
        """Return the tokens of a request.

        Raises:
            BadInput: the request is refused, or takes too long.
            Unavailable: the process ended.
        """
        from appliance.ml.inference.request import Encoded

        self._number += 1
        write_frame(
            self._requests,
            {
                "number": self._number,
                "messages": list(request.messages),
                "tools": list(request.tools),
                "labels": list(request.labels),
                "prompt": request.prompt,
                "seconds": (limit_s := LEAST_S + CHARACTER_S * request.size),
            },
        )
        header, blob = self._receive()
        if (ended := header.get("signal")) == signal.SIGPROF:
            raise BadInput(f"messages: expected text that becomes tokens within {limit_s:.1f} s, got one that does not")
        if ended is not None:
            raise Unavailable("answer: expected to read the request, got the end of the process", code="answer-failed")
        if "code" in header:
            raise BadInput(header["message"], code=header["code"])
        ids, encoded, start = array("i", blob), [], 0
        for length in take(header, "lengths", list):
            encoded.append(ids[start : start + length].tolist())
            start += length
        return Encoded(encoded[0], encoded[1:])

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        """Return the answer to the last request, or the signal that killed the process.

        Answers to earlier requests, whose process was killed before it began, are dropped.
        """
        while True:
            try:
                frame = read_frame(self._encoded, MAX_HEADER_BYTES, MAX_IDS_BYTES)
            except ApplianceError:
                frame = None
            if frame is None:
                raise _LanesEnded
            if "signal" in frame[0] or frame[0].get("number") == self._number:
                return frame


class _LanesEnded(BaseException):
    """The process that starts lanes has ended. This is a defect: the worker ends, and another one is started."""


class Lanes:
    """The lanes, and the process that forks them and replaces killed ones."""

    def __init__(self, count: int = LANES) -> None:
        """Fork the process that starts the lanes; it waits for `open`."""
        control, self._control = os.pipe()
        pipes = [(os.pipe(), os.pipe()) for _ in range(count)]
        theirs = [(requests[0], encoded[1]) for requests, encoded in pipes]
        if os.fork() == 0:
            _keep_lanes(control, theirs)
        for descriptor in (control, *(one for pair in theirs for one in pair)):
            os.close(descriptor)
        self.lanes = tuple(
            Lane(os.fdopen(requests[1], "wb"), os.fdopen(encoded[0], "rb")) for requests, encoded in pipes
        )

    def open(self, base: Path, packages: str | None = None) -> None:
        """Load a base's tokenizer and template in the lanes; `packages` is a folder that comes first in the import
        path."""
        with os.fdopen(self._control, "wb") as control:
            write_frame(control, {"base": str(base), "packages": packages})


def _keep_lanes(control: int, ends: Sequence[tuple[int, int]]) -> NoReturn:
    """Run the process that starts lanes until the worker has ended. Errors are written to the worker's log."""
    try:
        _close_others({control, *(one for pair in ends for one in pair)})
        with os.fdopen(control, "rb") as stream:
            frame = read_frame(stream, MAX_HEADER_BYTES)
        if frame is not None:
            _start_lanes(frame[0], ends)
    finally:
        # Exit here, so that a defect does not reach the code that forked.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0)


def _start_lanes(header: dict[str, Any], ends: Sequence[tuple[int, int]]) -> None:
    # Each fork has one thread.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if header["packages"] is not None:
        sys.path.insert(0, header["packages"])
    from appliance.ml.inference import request  # noqa: F401 # imported before forking, so that the forks share it
    from appliance.ml.model.chat import load_chat

    chat = load_chat(Path(take(header, "base", str)))
    gc.freeze()
    running = {_fork_lane(chat, *pair): pair for pair in ends}
    while running:
        process, status = os.wait()
        pair = running.pop(process)
        if os.WIFSIGNALED(status):
            with os.fdopen(os.dup(pair[1]), "wb") as encoded, contextlib.suppress(Unavailable):
                write_frame(encoded, {"signal": os.WTERMSIG(status)})
            running[_fork_lane(chat, *pair)] = pair


def _fork_lane(chat: Any, requests: int, encoded: int) -> int:
    process = os.fork()
    if process:
        return process
    try:
        with os.fdopen(requests, "rb") as reading, os.fdopen(encoded, "wb") as writing:
            while (frame := read_frame(reading, MAX_HEADER_BYTES)) is not None:
                write_frame(writing, *_encode(chat, frame[0]))
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
            sys.stderr.flush()
            # After a defect, the request fails and the next one gets a new process.
            os.abort()
        os._exit(0)


def _encode(chat: Any, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from appliance.ml.inference.request import InferenceRequest, encode_request

    request = InferenceRequest(
        messages=tuple(header["messages"]),
        max_tokens=1,
        prompt=header["prompt"],
        labels=tuple(header["labels"]),
        tools=tuple(header["tools"]),
    )
    # Limit the processor time of this process. There is no signal handler, so the kernel kills it.
    signal.setitimer(signal.ITIMER_PROF, take(header, "seconds", float))
    number = header["number"]
    try:
        encoded = encode_request(chat, request)
    except ApplianceError as error:
        return {"number": number, "code": error.code, "message": error.message}, b""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    texts = [encoded.prompt, *encoded.labels]
    ids = array("i", [one for text in texts for one in text]).tobytes()
    return {"number": number, "lengths": [len(text) for text in texts]}, ids


def _close_others(open_descriptors: set[int]) -> None:
    """Close all descriptors except those of the log and these, so that no end of a pipe outlives the worker."""
    last = 2
    for descriptor in sorted(open_descriptors):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


class _PendingPrompt(NamedTuple):
    name: str
    slot: str
    read: Callable[[Lane], PreparedPrompt]


class RequestReader:
    """A scheduler that reads requests with the lanes.

    Slots take turns and use at most one lane each, so that a slot with many or slow requests does not delay others. The
    requests of a slot are read in the order of their arrival.

    `on_read` is called in a reader thread with the name of each request that was read, or with None after a defect. It
    is not called for requests that were cancelled.
    """

    def __init__(self, on_read: Callable[[str | None], None], lanes: Sequence[Lane]) -> None:
        self._on_read = on_read
        self._busy: set[str] = set()
        self._changed = threading.Condition(threading.RLock())
        self._waiting: dict[str, deque[_PendingPrompt]] = {}
        self._pending: dict[str, _PendingPrompt] = {}
        self._read: dict[str, PreparedPrompt | ApplianceError] = {}
        for lane in lanes:
            threading.Thread(target=self._run, args=(lane,), name="reader", daemon=True).start()

    def put(self, name: str, slot: str, read: Callable[[Lane], PreparedPrompt]) -> None:
        """Queue a request.

        Raises:
            Conflict: a request of this name is queued or being read.
        """
        with self._changed:
            if name in self._pending:
                raise Conflict(f"request {name}: expected a new name, got one that is being read")
            pending = self._pending[name] = _PendingPrompt(name, slot, read)
            self._waiting.setdefault(slot, deque()).append(pending)
            self._changed.notify()

    def take(self, name: str) -> tuple[str, PreparedPrompt] | None:
        """Return the slot and the tokens of a request, once; None if the request was cancelled.

        Raises:
            ApplianceError: the request was refused with this error.
        """
        with self._changed:
            read = self._read.pop(name, None)
            if read is None:
                return None
            pending = self._pending.pop(name)
        if isinstance(read, ApplianceError):
            raise read
        return pending.slot, read

    def cancel(self, name: str) -> bool:
        """Cancel a request and drop its result; return True if there was such a request."""
        with self._changed:
            pending = self._pending.pop(name, None)
            if pending is None:
                return False
            self._read.pop(name, None)
            waiting = self._waiting.get(pending.slot, deque())
            if pending in waiting:
                # Remove it in place, so that the slot keeps its turn.
                waiting.remove(pending)
                if not waiting:
                    del self._waiting[pending.slot]
            return True

    def cancel_slot(self, slot: str) -> list[str]:
        """Cancel all requests of a slot and return their names."""
        with self._changed:
            names = [name for name, pending in self._pending.items() if pending.slot == slot]
            for name in names:
                self.cancel(name)
        return names

    def _run(self, lane: Lane) -> None:
        try:
            while True:
                self._read_next(lane)
        finally:
            # This is reached only after a defect, whose traceback goes to the log.
            self._on_read(None)

    def _read_next(self, lane: Lane) -> None:
        pending = self._next()
        read: PreparedPrompt | ApplianceError
        try:
            read = pending.read(lane)
        except ApplianceError as error:
            read = error
        with self._changed:
            self._busy.discard(pending.slot)
            self._changed.notify_all()
            if self._pending.get(pending.name) is not pending:
                return
            self._read[pending.name] = read
        self._on_read(pending.name)

    def _next(self) -> _PendingPrompt:
        """Return the first request of the slot whose turn it is; the slot's next turn is after all others."""
        with self._changed:
            while (slot := next((one for one in self._waiting if one not in self._busy), None)) is None:
                self._changed.wait()
            waiting = self._waiting.pop(slot)
            pending = waiting.popleft()
            if waiting:
                self._waiting[slot] = waiting
            self._busy.add(slot)
            return pending
