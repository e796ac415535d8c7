"""The serving worker as the service sees it: one base, adapters in slots, one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, Tampered, TooMany, Unavailable
from appliance.formats.canonical import parse_canonical
from appliance.workflows.context import Context, Frame
from appliance.workflows.workers import check_walls, failure, worker

START_S = 300.0
FRAME_S = 120.0
WAITING = 32


class Engine:
    """Started at the first load. A failed exchange ends the worker: nothing of a broken one is used again."""

    def __init__(self, context: Context, base: Path, base_digest: str, recipe: Mapping[str, Any]) -> None:
        self._stack = ExitStack()
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(WAITING)
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
            self._expect("ready", START_S)
        except BaseException:
            self.close()
            raise

    def _expect(self, kind: str, timeout_s: float = FRAME_S) -> Frame:
        received = self._worker.receive(timeout_s)
        if received is None:
            raise Unavailable("engine: expected an answer, got its end; its log says more", code="engine-ended")
        frame = received[0]
        if frame.get("frame") == "failure":
            raise failure(frame)
        if frame.get("frame") != kind:
            raise Unavailable(f"engine: expected the frame {kind}, got {frame.get('frame')}", code="engine-broken")
        return frame

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
        try:
            self._worker.send(header, blob)
            return self._expect(kind)
        except Unavailable:
            self.close()
            raise

    def generate(self, request: str, slot: str, parameters: Frame) -> Generator[Frame]:
        """Token frames, then the frame `done`. Leaving early cancels the request."""
        if not self._waiting.acquire(blocking=False):
            raise TooMany(f"engine: expected at most {WAITING} requests at a time, got more")
        try:
            with self._turn:
                yield from self._generate(request, slot, parameters)
        finally:
            self._waiting.release()

    def _generate(self, request: str, slot: str, parameters: Frame) -> Generator[Frame]:
        if not self.alive:
            raise Unavailable("engine: expected a running one, got one that ended", code="engine-ended")
        done = False
        try:
            self._worker.send({"frame": "generate", "id": request, "slot": slot, **parameters})
            while not done:
                received = self._worker.receive(FRAME_S)
                if received is None:
                    raise Unavailable("engine: expected tokens, got its end", code="engine-ended")
                frame = received[0]
                if frame.get("frame") == "failure":
                    done = True
                    raise failure(frame)
                done = frame.get("frame") == "done"
                yield frame
        except Unavailable:
            self.close()
            raise
        finally:
            if not done and self.alive:
                self._cancel(request)

    def _cancel(self, request: str) -> None:
        """Asks the worker to stop and reads up to its `done`, so that no token reaches the next request."""
        try:
            self._worker.send({"frame": "cancel", "id": request})
            while (received := self._worker.receive(FRAME_S)) is not None:
                if received[0].get("frame") in ("done", "failure"):
                    return
            self.close()
        except ApplianceError:
            self.close()

    def close(self) -> None:
        """Ends the worker, at once; every adapter it held is gone."""
        self.alive = False
        self._stack.close()
