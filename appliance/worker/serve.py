"""The serving worker: holds the engine, fills and empties slots, and answers all requests that came in, together."""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError, BadInput
from appliance.worker.link import Frame, Header, Link, run_worker, take, take_path
from appliance.worker.reader import Reader

if TYPE_CHECKING:
    from appliance.ml.serving.engine import Engine, Event
    from appliance.ml.vllm.engine import Engine as Vllm

# A step is two thousand operations of some microseconds, and threads that sleep between two of them take as long to
# wake: for about 50 microseconds they look first. Twice as quick alone, half as quick beside another engine on the same
# cores. Read when torch's OpenMP is loaded.
os.environ["GOMP_SPINCOUNT"] = "2000"

SHORT = 4096
"""Characters of a request up to which it becomes tokens between two steps: it takes a few milliseconds."""
TOGETHER = 4096
"""Characters of a piece that may share a frame with others, whose header has a limit; longer ones have their own."""
SAID = 2000
"""Characters of an error's message: a chat template's own may quote a prompt."""
READ = "read"
SIGN_S = 10.0
"""A busy server that has sent nothing for so long reports that it works: a prompt may take minutes before its first
token."""


class Service:
    """The engine and the frames that come in; between two steps every frame that waits is taken."""

    def __init__(self, session: Link, engine: Engine | Vllm) -> None:
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
        self._reader = Reader(self._hear_read)
        self._said_at = time.monotonic()

    def run(self) -> None:
        """Until the service closes the stream."""
        while True:
            for frame in self._take():
                if frame is None:
                    return
                self._handle(*frame)
            self._tell(self._engine.step())
            self._give_sign()

    def _give_sign(self) -> None:
        if self._engine.busy and time.monotonic() - self._said_at >= SIGN_S:
            self._send({"frame": "working", "computed": self._engine.computed})

    def _hear_read(self, name: str | None) -> None:
        """In the reader's thread; without a name it has ended, and so does the service."""
        self._frames.put(None if name is None else ({"frame": READ, "id": name}, b""))

    def _take(self) -> list[Frame | None]:
        """What has come in; waits for a frame only while nothing is being answered."""
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
            named: Header = {key: header[key] for key in ("id", "slot") if key in header}
            self._send(_failure(named, error))

    def _load(self, header: Header, blob: bytes) -> None:
        slot = take(header, "slot", str)
        self._engine.load(slot, take(header, "config", str).encode(), blob, take(header, "probe", dict))
        self._send({"frame": "loaded", "slot": slot, "probe_ok": True})

    def _unload(self, header: Header, blob: bytes) -> None:
        from appliance.ml.serving.engine import Event, cut_off

        slot = take(header, "slot", str)
        cut = [Event(name, cut_off()) for name in self._reader.cancel_slot(slot)]
        self._tell(cut + self._engine.unload(slot))
        self._send({"frame": "unloaded", "slot": slot})

    def _ask(self, header: Header, blob: bytes) -> None:
        from appliance.ml.inference.request import parse_request

        name, slot = take(header, "id", str), take(header, "slot", str)
        request, classifies = parse_request(header), header["frame"] == "classify"
        read = partial(self._engine.read, request, classifies=classifies)
        if request.size > SHORT or request.is_held:
            self._reader.put(name, slot, read)
        else:
            self._engine.take(name, slot, read())

    def _take_read(self, header: Header, blob: bytes) -> None:
        """The reader's own frame: a request is tokens now."""
        name = take(header, "id", str)
        if (read := self._reader.take(name)) is not None:
            self._engine.take(name, *read)

    def _cancel(self, header: Header, blob: bytes) -> None:
        from appliance.ml.serving.engine import Done, Event

        name = take(header, "id", str)
        if self._reader.cancel(name):
            self._tell([Event(name, Done("cancelled", 0, 0))])
        else:
            self._tell(self._engine.cancel(name))

    def _tell(self, events: list[Event]) -> None:
        """What a step gave goes out together: a frame for each of many streams costs as much as some tokens."""
        frames = [_describe(event) for event in events]
        if len(frames) > 1 and all(len(frame.get("text", "")) <= TOGETHER for frame in frames):
            frames = [{"frame": "frames", "frames": frames}]
        for frame in frames:
            self._send(frame)

    def _send(self, frame: Header) -> None:
        self._session.send(frame)
        self._said_at = time.monotonic()


def _describe(event: Event) -> Header:
    from appliance.ml.model.call_stream import Called

    name, told = {"id": event.name}, event.told
    if isinstance(told, str):
        return {"frame": "token", **name, "text": told}
    if isinstance(told, Called):
        calls = [{"name": call.name, "arguments": call.text} for call in told.calls]
        return {"frame": "token", **name, "text": told.text, "calls": calls}
    if isinstance(told, ApplianceError):
        return _failure(name, told)
    return {"frame": "done", **name, **vars(told)}


def _failure(named: Header, error: ApplianceError) -> Header:
    return {"frame": "failure", **named, "code": error.code, "message": error.message[:SAID]}


def load_libraries() -> None:
    """What takes longest of a start."""
    import appliance.ml.serving.engine  # noqa: F401


def work(session: Link, task: Header, blob: bytes) -> Header:
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base
    from appliance.ml.serving.engine import Engine

    machine.use_determinism(0)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
        device=take(task, "device", str),
        reads=True,
        keeps=False,
    )
    engine = Engine(base, take(task, "prompt_cache_bytes", int))
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine).run()
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(work, load_libraries))
