"""The serving worker as the service sees it: one base, adapters in slots, and many requests over one stream of frames.

One thread reads what the worker says and hands each frame to the request it names. Loads and unloads take turns; they
wait for no answer, so that a revocation cuts an answer at its next token.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, Tampered, TooMany, Unavailable
from appliance.formats.canonical import parse_canonical
from appliance.workflows.context import Context, Frame
from appliance.workflows.workers import check_walls, failure, worker

START_S = 300.0
FRAME_S = 120.0
WAITING = 32


Heard = queue.SimpleQueue[Frame | None]


class Engine:
    """Started at the first load. A broken stream ends the worker: nothing of it is used again."""

    def __init__(self, context: Context, base: Path, base_digest: str, recipe: Mapping[str, Any]) -> None:
        self._stack = ExitStack()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING)
        self._lock = threading.Lock()
        self._replies: Heard = queue.SimpleQueue()
        self._requests: dict[str, Heard] = {}
        self._answering: Counter[str] = Counter()
        self._last_heard = time.monotonic()
        self.alive = True
        try:
            tuple_ = f"{recipe['quantisation']}-{recipe['compute_dtype']}"
            key = f"serve-{base_digest.removeprefix('sha256:')[:16]}-{tuple_}"
            self._worker = self._stack.enter_context(
                worker(
                    context,
                    key,
                    "appliance.worker.serve",
                    read=(base,),
                    gpu=context.device == "cuda",
                )
            )
            self.walls = check_walls(self._worker)
            task = {
                "base": str(base),
                "quantisation": recipe["quantisation"],
                "compute_dtype": recipe["compute_dtype"],
                "device": context.device,
            }
            self._worker.send({"frame": "go", **task})
            _expect(self._worker.receive(START_S), "ready")
            threading.Thread(target=self._read, name=f"engine-{self._worker.pid}", daemon=True).start()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        """Hands each frame to whom it names, until the worker ends; a frame for a request that has left is dropped."""
        with suppress(ApplianceError):
            while (received := self._worker.receive()) is not None:
                self._last_heard = time.monotonic()
                for frame in _separate(received[0]):
                    name = frame.get("id")
                    heard = self._replies if name is None else self._requests.get(str(name))
                    if heard is not None:
                        heard.put(frame)
        self.close()

    def load(self, slot: str, files: Mapping[str, bytes]) -> None:
        """Loads the adapter from the buffers that admission hashed. Tampered when its probe is not the recorded one."""
        with self._turn:
            header = {
                "frame": "load",
                "slot": slot,
                "config": files["adapter_config.json"].decode("utf-8"),
                "probe": parse_canonical(files["probe.json"]),
            }
            frame = self._exchange(header, files["adapter_model.safetensors"], "loaded")
            if frame.get("probe_ok") is not True:
                self._exchange({"frame": "unload", "slot": slot}, b"", "unloaded")
                raise Tampered(
                    f"adapter in slot {slot}: expected its probe's recorded logits, got others", code="probe"
                )

    def unload(self, slot: str) -> None:
        with self._turn:
            if self.alive:
                self._exchange({"frame": "unload", "slot": slot}, b"", "unloaded")

    def _exchange(self, header: Frame, blob: bytes, kind: str) -> Frame:
        self._send(header, blob)
        return _expect(self._hear(self._replies), kind)

    def _send(self, header: Frame, blob: bytes = b"") -> None:
        try:
            self._worker.send(header, blob)
        except Unavailable:
            self.close()
            raise

    def _hear(self, heard: Heard) -> tuple[Frame, bytes] | None:
        """The next frame, or None at the worker's end. A worker that tells nobody anything for long is ended."""
        while self.alive or not heard.empty():
            try:
                frame = heard.get(timeout=FRAME_S)
            except queue.Empty:
                if time.monotonic() - self._last_heard > FRAME_S:
                    self.close()
                continue
            return None if frame is None else (frame, b"")
        return None

    def answer(self, request: str, slot: str, kind: str, parameters: Frame) -> Generator[Frame]:
        """Token frames, then the frame `done`; `kind` is `generate` or `classify`.

        Leaving early cancels the request, and no other.
        """
        if not self._places.acquire(blocking=False):
            raise TooMany(f"engine: expected at most {WAITING} requests at a time, got more")
        heard: Heard = queue.SimpleQueue()
        ended = False
        try:
            self._enter(request, slot, heard)
            self._send({**parameters, "frame": kind, "id": request, "slot": slot})
            while not ended:
                frame = _expect(self._hear(heard), "token", "done", "failure")
                ended = frame["frame"] != "token"
                if frame["frame"] == "failure":
                    raise failure(frame)
                yield frame
        finally:
            self._exit(request, slot)
            if not ended and self.alive:
                with suppress(Unavailable):
                    self._send({"frame": "cancel", "id": request})

    def answers(self, slot: str) -> bool:
        """Whether a request is under way in the slot."""
        return self._answering[slot] > 0

    def cut(self, request: str, why: str) -> None:
        """Ends one request at once: what it has not been given yet, it is not given."""
        with self._lock:
            heard = self._requests.get(request)
            if heard is None:
                return
            # What the worker still says goes where nobody listens; the request leaves as every other does.
            self._requests[request] = queue.SimpleQueue()
        with suppress(queue.Empty):
            while True:
                heard.get_nowait()
        heard.put({"frame": "failure", "code": "cut-off", "message": why})
        with suppress(Unavailable):
            self._send({"frame": "cancel", "id": request})

    def _enter(self, request: str, slot: str, heard: Heard) -> None:
        with self._lock:
            if not self.alive:
                raise Unavailable("engine: expected a running one, got one that ended", code="engine-ended")
            self._requests[request] = heard
            self._answering[slot] += 1

    def _exit(self, request: str, slot: str) -> None:
        with self._lock:
            if self._requests.pop(request, None) is not None:
                self._answering[slot] -= 1
                # Slots are never used twice.
                self._answering += Counter()
        self._places.release()

    def close(self) -> None:
        """Ends the worker, at once; every adapter it held is gone, and whoever waits for an answer is told so."""
        with self._lock:
            self.alive = False
            stack = self._stack.pop_all()
            waiting = list(self._requests.values())
        stack.close()
        for heard in (self._replies, *waiting):
            heard.put(None)


def _separate(frame: Frame) -> list[Frame]:
    """The frames of a step that came together."""
    if frame.get("frame") != "frames":
        return [frame]
    frames = frame.get("frames")
    if not isinstance(frames, list) or not all(isinstance(one, dict) for one in frames):
        raise BadInput("engine: expected the frames of a step, got something else")
    return frames


def _expect(received: tuple[Frame, bytes] | None, *kinds: str) -> Frame:
    """The frame, of one of these kinds; a failure that is not among them is raised as what it names."""
    if received is None:
        raise Unavailable("engine: expected an answer, got its end; its log says more", code="engine-ended")
    frame = received[0]
    if frame.get("frame") == "failure" and "failure" not in kinds:
        raise failure(frame)
    if frame.get("frame") not in kinds:
        expected = " or ".join(kinds)
        raise Unavailable(f"engine: expected the frame {expected}, got {frame.get('frame')}", code="engine-broken")
    return frame
