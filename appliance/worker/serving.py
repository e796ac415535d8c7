"""The serving of requests: handles frames, loads and unloads slots, and answers all open requests together."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError, BadInput
from appliance.ml.inference.reading import PreparedPrompt
from appliance.ml.inference.request import parse_request
from appliance.ml.model.calls import CallOutput
from appliance.ml.serving.engine import Done, RequestEvent, ServingEngine, cut_off
from appliance.worker.link import Frame, Header, WorkerLink, take
from appliance.worker.reader import Lane, RequestReader

if TYPE_CHECKING:
    from appliance.ml.vllm.engine import VllmEngine

MAX_SHARED_TEXT = 4096
"""Maximum characters of a text that may share a frame with others, since headers are limited; longer ones are sent
alone."""
MAX_ERROR_TEXT = 2000
"""Maximum characters of an error's message, since the message of a chat template may quote a prompt."""
READ = "read"
ACTIVITY_REPORT_S = 10.0
"""Seconds without a frame after which a busy server reports that it is working.

A prompt may take minutes before its first token.
"""


class Service:
    """The engine and the incoming frames. Between two steps, all waiting frames are handled."""

    def __init__(self, session: WorkerLink, engine: ServingEngine | VllmEngine, lanes: Sequence[Lane]) -> None:
        self._session = session
        self._engine = engine
        self._frames = session.listen()
        self._handlers: dict[str, Callable[[Header, bytes], None]] = {
            "load": self._load,
            "unload": self._unload,
            "generate": self._ask,
            "classify": self._ask,
            "cancel": self._cancel,
            READ: self._take_read,
        }
        self._reader = RequestReader(self._queue_read, lanes)
        self._last_sent_at = time.monotonic()

    def run(self) -> None:
        """Serve requests until the service closes the stream."""
        while True:
            for frame in self._take():
                if frame is None:
                    return
                self._handle(*frame)
            self._send_events(self._engine.step())
            self._report_activity()

    def _report_activity(self) -> None:
        if self._engine.busy and time.monotonic() - self._last_sent_at >= ACTIVITY_REPORT_S:
            self._send({"frame": "working", "computed": self._engine.computed})

    def _queue_read(self, name: str | None) -> None:
        """Queue the name of a request that was read, from a reader thread; None ends the worker."""
        self._frames.put(None if name is None else ({"frame": READ, "id": name}, b""))

    def _take(self) -> list[Frame | None]:
        """Return the frames that have arrived; wait for one only while the engine is idle."""
        taken = [] if self._engine.busy else [self._frames.get()]
        try:
            while True:
                taken.append(self._frames.get_nowait())
        except queue.Empty:
            return taken

    def _handle(self, header: Header, blob: bytes) -> None:
        try:
            kind = header.get("frame")
            if kind not in self._handlers:
                raise BadInput(f"frame: expected one of {', '.join(self._handlers)}, got {kind!r:.40}")
            self._handlers[kind](header, blob)
        except ApplianceError as error:
            identity: Header = {key: header[key] for key in ("id", "slot") if key in header}
            self._send(_failure(identity, error))

    def _load(self, header: Header, blob: bytes) -> None:
        slot = take(header, "slot", str)
        self._engine.load(slot, take(header, "config", str).encode(), blob, take(header, "logit_fingerprint", dict))
        self._send({"frame": "loaded", "slot": slot, "fingerprint_ok": True})

    def _unload(self, header: Header, blob: bytes) -> None:
        slot = take(header, "slot", str)
        cut = [RequestEvent(name, cut_off()) for name in self._reader.cancel_slot(slot)]
        self._send_events(cut + self._engine.unload(slot))
        self._send({"frame": "unloaded", "slot": slot})

    def _ask(self, header: Header, blob: bytes) -> None:
        name, slot = take(header, "id", str), take(header, "slot", str)
        request, classifies = parse_request(header), header["frame"] == "classify"

        def read(lane: Lane) -> PreparedPrompt:
            return self._engine.read(request, classifies=classifies, encode=lane.encode)

        self._reader.put(name, slot, read)

    def _take_read(self, header: Header, blob: bytes) -> None:
        """Give a tokenised request to the engine."""
        name = take(header, "id", str)
        if (read := self._reader.take(name)) is not None:
            self._engine.take(name, *read)

    def _cancel(self, header: Header, blob: bytes) -> None:
        name = take(header, "id", str)
        if self._reader.cancel(name):
            self._send_events([RequestEvent(name, Done("cancelled", 0, 0))])
        else:
            self._send_events(self._engine.cancel(name))

    def _send_events(self, events: list[RequestEvent]) -> None:
        """Send the events of a step in one frame, since a frame for each of many streams costs as much as some
        tokens."""
        frames = [_describe(event) for event in events]
        if len(frames) > 1 and all(len(frame.get("text", "")) <= MAX_SHARED_TEXT for frame in frames):
            frames = [{"frame": "frames", "frames": frames}]
        for frame in frames:
            self._send(frame)

    def _send(self, frame: Header) -> None:
        self._session.send(frame)
        self._last_sent_at = time.monotonic()


def _describe(event: RequestEvent) -> Header:
    name, payload = {"id": event.name}, event.content
    if isinstance(payload, str):
        return {"frame": "token", **name, "text": payload}
    if isinstance(payload, CallOutput):
        calls = [{"name": call.name, "arguments": call.text} for call in payload.calls]
        return {"frame": "token", **name, "text": payload.text, "calls": calls}
    if isinstance(payload, ApplianceError):
        return _failure(name, payload)
    return {"frame": "done", **name, **vars(payload)}


def _failure(identity: Header, error: ApplianceError) -> Header:
    return {"frame": "failure", **identity, "code": error.code, "message": error.message[:MAX_ERROR_TEXT]}
