"""The serving worker: holds the engine, fills and empties slots, and answers one request at a time."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError, BadInput
from appliance.worker.session import Frame, Header, Session, run_worker, take, take_path

if TYPE_CHECKING:
    from appliance.ml.engine import Engine


class Service:
    """The engine and the frames that wait for it. A request that was cancelled before its turn never begins."""

    def __init__(self, session: Session, engine: Engine) -> None:
        self._session = session
        self._engine = engine
        self._frames = session.listen()
        self._waiting: list[Frame] = []
        self._cancelled: set[str] = set()
        self._ended = False

    def run(self) -> None:
        """Until the service closes the stream."""
        while (frame := self._next()) is not None:
            header, blob = frame
            try:
                self._handle(header, blob)
            except ApplianceError as error:
                named: Header = {key: header[key] for key in ("id", "slot") if key in header}
                self._session.send({"frame": "failure", **named, "code": error.code, "message": error.message})

    def _next(self) -> Frame | None:
        if self._waiting:
            return self._waiting.pop(0)
        return None if self._ended else self._frames.get()

    def _handle(self, header: Header, blob: bytes) -> None:
        handlers: dict[str, Callable[[Header, bytes], None]] = {
            "load": self._load,
            "unload": self._unload,
            "generate": self._generate,
            "cancel": self._cancel,
        }
        kind = header.get("frame")
        if kind not in handlers:
            raise BadInput(f"frame: expected one of {', '.join(handlers)}, got {kind!r:.40}")
        handlers[kind](header, blob)

    def _load(self, header: Header, blob: bytes) -> None:
        slot = take(header, "slot", str)
        self._engine.load(slot, take(header, "config", str).encode(), blob, take(header, "probe", dict))
        self._session.send({"frame": "loaded", "slot": slot, "probe_ok": True})

    def _unload(self, header: Header, blob: bytes) -> None:
        slot = take(header, "slot", str)
        self._engine.unload(slot)
        self._session.send({"frame": "unloaded", "slot": slot})

    def _cancel(self, header: Header, blob: bytes) -> None:
        """For a request that is not at work: one that waits, or has ended."""
        name = take(header, "id", str)
        if any(waiting.get("id") == name for waiting, _ in self._waiting):
            self._cancelled.add(name)

    def _generate(self, header: Header, blob: bytes) -> None:
        from appliance.ml.engine import parse_request

        name, slot = take(header, "id", str), take(header, "slot", str)

        def emit(text: str) -> None:
            self._session.send({"frame": "token", "id": name, "text": text})

        request = parse_request(header)
        answer = self._engine.generate(slot, request, emit, lambda: self._is_cancelled(name))
        self._cancelled.discard(name)
        self._session.send(
            {
                "frame": "done",
                "id": name,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            }
        )

    def _is_cancelled(self, name: str) -> bool:
        """Looks at what came in meanwhile: cancellations count at once, the rest waits its turn, the end ends all."""
        while True:
            try:
                frame = self._frames.get_nowait()
            except queue.Empty:
                return self._ended or name in self._cancelled
            if frame is None:
                self._ended = True
            elif frame[0].get("frame") == "cancel":
                self._cancelled.add(str(frame[0].get("id")))
            else:
                self._waiting.append(frame)


def work(session: Session, task: Header, blob: bytes) -> Header:
    from appliance.ml import machine
    from appliance.ml.base import load_base
    from appliance.ml.engine import Engine

    machine.use_determinism(0)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
        device=take(task, "device", str),
    )
    engine = Engine(base)
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine).run()
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(work))
