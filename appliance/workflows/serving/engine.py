"""The serving worker as the service sees it: one base, adapters in slots, and many requests over one stream of frames.

One thread reads what the worker says and passes each frame to the asker's function, in that thread: no other thread has
to wake for a token. Loads and unloads take turns; they wait for no answer, so that a revocation cuts an answer at its
next token.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.domain.data.tool_calls import MAX_CALLS
from appliance.errors import ApplianceError, BadInput, Tampered, TooMany, Unavailable
from appliance.formats.core.canonical import MAX_INTEGER, parse_canonical
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.workers import SERVE, SERVE_VLLM, check_walls, failure, worker

log = logging.getLogger("appliance")

START_S = 300.0
LOOK_S = 1.0
FRAME_S = 120.0
"""A worker that sends nothing for so long, while a request waits, is ended."""
EXCHANGE_S = 600.0
"""A load or an unload takes no longer: it is done between two steps."""
PROGRESS_S = 3_600.0
"""A worker that gives signs of life alone for so long, and computes nothing while a request waits, is ended."""
ANSWER_S = 21_600.0
"""A request gets a frame of its own within this time, also where it waits for the long prompts of all others."""
WAITING = 32
_FINISHED = ("stop", "tool_calls", "length", "cancelled", "classified")
_PIECE_CHARACTERS = 1024
_LEAST_CHARACTERS = 2 << 20
"""A piece of an answer has so many characters at most, on average; an answer may have the least in any case."""
_EXCHANGE = ""
"""The name of a load or an unload among those who ask; no request has it."""

_WORKING = "working"
"""A sign of life, which belongs to no request."""

Hear = Callable[[Frame | None], None]
"""Told each frame in turn, in the engine's own thread: it must not wait. None: the worker has ended."""


@dataclass
class _Pending:
    """A waiting request; `pieces` and `characters`: how many may still come of an answer. `heard_at`: when its last
    frame came; the next one must come within `limit_s`."""

    hear: Hear
    slot: str
    since: float
    heard_at: float
    limit_s: float
    pieces: int = 0
    characters: int = 0

    def check(self, frame: Frame) -> None:
        """BadInput for what no answer has in it: it would reach the client, or the entry of the answer's end."""
        if frame.get("frame") == "token":
            text = frame.get("text")
            if not isinstance(text, str):
                raise BadInput(f"engine, token: expected a text, got {type(text).__name__}")
            self.pieces, self.characters = self.pieces - 1, self.characters - len(text)
            if self.pieces < 0 or self.characters < 0:
                raise BadInput("engine, token: expected no more tokens or characters than were requested, got more")
            _check_calls(frame.get("calls", []), text)
        elif frame.get("frame") == "done":
            if frame.get("finish_reason") not in _FINISHED:
                raise BadInput(f"engine, done: expected a finish_reason of {', '.join(_FINISHED)}, got an unknown one")
            counts = [frame.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if not all(type(count) is int and 0 <= count <= MAX_INTEGER for count in counts):
                raise BadInput("engine, done: expected two counts of tokens, got a value that is no count")
            cached = frame.get("cached_tokens")
            if cached is not None and (type(cached) is not int or not 0 <= cached <= frame["prompt_tokens"]):
                raise BadInput("engine, done: expected cached_tokens to be some of the prompt's, got another value")


class Engine:
    """Started at the first load. A broken stream ends the worker: nothing of it is used again."""

    def __init__(
        self, context: Context, base: Path, base_digest: str, recipe: Mapping[str, Any], check: Callable[[], object]
    ) -> None:
        """`check` raises where the base's files are not those of its digest. It runs while the worker loads its
        libraries; the worker reads no file of the base before."""
        self._stack = ExitStack()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING)
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._answering: Counter[str] = Counter()
        self._progress_at = self._looked_at = time.monotonic()
        self._computed = 0
        self.alive = True
        try:
            tuple_ = f"{recipe['quantisation']}-{recipe['compute_dtype']}"
            key = f"serve-{base_digest.removeprefix('sha256:')[:16]}-{tuple_}"
            self._worker = self._stack.enter_context(
                worker(
                    context,
                    key,
                    SERVE if context.vllm is None else SERVE_VLLM,
                    read=(base,),
                    libraries=() if context.vllm is None else (context.vllm,),
                    gpu=context.device == "cuda",
                )
            )
            self.walls = check_walls(self._worker)
            check()
            task = {
                "base": str(base),
                "quantisation": recipe["quantisation"],
                "compute_dtype": recipe["compute_dtype"],
                "device": context.device,
                **(
                    {"prompt_cache_bytes": context.prompt_cache_bytes}
                    if context.vllm is None
                    else {"packages": str(context.vllm)}
                ),
            }
            self._worker.send({"frame": "go", **task})
            received = self._worker.receive(START_S)
            expect(None if received is None else received[0], "ready")
            threading.Thread(target=self._read, name=f"engine-{self._worker.pid}", daemon=True).start()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        """Tells each frame to whom it names, until the worker ends; a frame for a request that has left is dropped."""
        try:
            with contain_defects("engine"):
                while (received := self._receive()) is not None:
                    now = time.monotonic()
                    self._check_progress(now)
                    for frame in _separate(received[0]):
                        if frame.get("frame") == _WORKING:
                            self._take_sign(frame, now)
                            continue
                        wanted = self._pending.get(str(frame.get("id", _EXCHANGE)))
                        if wanted is not None:
                            wanted.check(frame)
                            wanted.heard_at = self._progress_at = now
                            wanted.hear(frame)
        except ApplianceError as error:
            log.warning("an engine is ended: %s", error.message)
        self.close()

    def _take_sign(self, frame: Frame, now: float) -> None:
        """Several long prompts, read in turns, have no frame for hours. A worker that lies about what it computed gains
        no more than `ANSWER_S`."""
        computed = frame.get("computed")
        if type(computed) is not int or not 0 <= computed <= MAX_INTEGER:
            raise BadInput("engine, working: expected a count of what was computed, got a value that is no count")
        if computed > self._computed:
            self._computed, self._progress_at = computed, now

    def _check_progress(self, now: float) -> None:
        """Unavailable where somebody waits for too long, whatever else the worker says. Looked at once a second."""
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for name, wanted in list(self._pending.items()):
            what = f"request {name}" if name else "a load or an unload"
            if now - wanted.heard_at > wanted.limit_s:
                raise Unavailable(f"engine, {what}: expected a frame of it within {wanted.limit_s:.0f} s, got others")
            if now - max(wanted.heard_at, self._progress_at) > PROGRESS_S:
                raise Unavailable(f"engine, {what}: expected progress within {PROGRESS_S:.0f} s, got signs of life")

    def _receive(self) -> tuple[Frame, bytes] | None:
        while True:
            try:
                return self._worker.receive(FRAME_S)
            except Unavailable as error:
                first = min((wanted.since for wanted in list(self._pending.values())), default=float("inf"))
                if error.code != "worker-silent" or time.monotonic() - first >= FRAME_S:
                    raise

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
                    f"adapter in slot {slot}: expected its probe's recorded logits, got different ones", code="probe"
                )

    def unload(self, slot: str) -> None:
        with self._turn:
            if self.alive:
                self._exchange({"frame": "unload", "slot": slot}, b"", "unloaded")

    def _exchange(self, header: Frame, blob: bytes, kind: str) -> Frame:
        heard: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        with self._lock:
            self._enter(_EXCHANGE, heard.put, "", limit_s=EXCHANGE_S)
        try:
            self._send(header, blob)
            return expect(heard.get(), kind)
        finally:
            self._pending.pop(_EXCHANGE, None)

    def _send(self, header: Frame, blob: bytes = b"") -> None:
        try:
            self._worker.send(header, blob)
        except Unavailable:
            self.close()
            raise

    def ask(self, request: str, slot: str, kind: str, parameters: Frame, hear: Hear) -> None:
        """Frames of tokens are told, then one that ends the answer: `done` or `failure`; `kind` is `generate` or
        `classify`. The caller must `leave`."""
        if not self._places.acquire(blocking=False):
            raise TooMany(f"engine: expected at most {WAITING} requests at a time, got more")
        try:
            with self._lock:
                # A step gives a piece at most, with tools two for each token that may begin a call; and an end what was
                # held back for it.
                pieces = int(parameters.get("max_tokens", 256)) * (2 if "tools" in parameters else 1)
                self._enter(request, hear, slot, limit_s=ANSWER_S, pieces=2 + pieces)
                self._answering[slot] += 1
        except BaseException:
            self._places.release()
            raise
        try:
            self._send({**parameters, "frame": kind, "id": request, "slot": slot})
        except BaseException:
            self.leave(request, ended=True)
            raise

    def leave(self, request: str, *, ended: bool) -> None:
        """The caller has left; where the answer has not `ended` this cancels the request, and no other."""
        with self._lock:
            wanted = self._pending.pop(request, None)
            if wanted is None:
                return
            self._answering[wanted.slot] -= 1
            # Slots are never used twice.
            self._answering += Counter()
        self._places.release()
        if not ended and self.alive:
            self._cancel(request)

    def answers(self, slot: str) -> bool:
        """Whether a request is under way in the slot."""
        return self._answering[slot] > 0

    def cut(self, request: str, why: str) -> None:
        """Ends one request at once: later frames of it are dropped. A separate thread tells the worker, so that a
        worker that does not read cannot delay other revocations.
        """
        with self._lock:
            wanted = self._pending.get(request)
            if wanted is None:
                return
            hear, wanted.hear = wanted.hear, lambda _frame: None
        hear({"frame": "failure", "code": "cut-off", "message": why})
        threading.Thread(target=self._cancel, args=(request,), name=f"cancel-{request}", daemon=True).start()

    def _cancel(self, request: str) -> None:
        with suppress(Unavailable):
            self._send({"frame": "cancel", "id": request})

    def _enter(self, name: str, hear: Hear, slot: str, *, limit_s: float, pieces: int = 0) -> None:
        if not self.alive:
            raise Unavailable("engine: expected a running one, got one that ended", code="engine-ended")
        characters = max(pieces * _PIECE_CHARACTERS, _LEAST_CHARACTERS)
        now = time.monotonic()
        self._pending[name] = _Pending(hear, slot, now, now, limit_s, pieces, characters)

    def close(self) -> None:
        """Ends the worker at once. Every adapter it held is gone, and every waiting request gets an error, even if
        cleaning up after the worker fails."""
        with self._lock:
            self.alive = False
            stack = self._stack.pop_all()
            waiting = list(self._pending.values())
        try:
            with contain_defects("engine, its end"):
                stack.close()
        except ApplianceError as error:
            log.critical("ALARM: an engine ended and left something behind: %s", error.message)
        finally:
            for wanted in waiting:
                wanted.hear(None)


def _check_calls(calls: object, text: str) -> None:
    """BadInput unless these are calls, and not much longer than the text that they are: numbers may be written out."""
    if not isinstance(calls, list) or not all(
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and all(isinstance(part, str) and len(part) <= 16 * len(text) for part in call.values())
        for call in calls
    ):
        raise BadInput("engine, token: expected calls with a name and arguments, got something else")
    if len(calls) > MAX_CALLS:
        raise BadInput(f"engine, token: expected at most {MAX_CALLS} calls, got {len(calls)}")


def _separate(frame: Frame) -> list[Frame]:
    """The frames of a step that came together."""
    if frame.get("frame") != "frames":
        return [frame]
    frames = frame.get("frames")
    if not isinstance(frames, list) or not all(isinstance(one, dict) for one in frames):
        raise BadInput(f"engine, frames: expected a list of objects, got {type(frames).__name__}")
    return frames


def expect(frame: Frame | None, *kinds: str) -> Frame:
    """The frame, of one of these kinds; a failure is raised as what it names."""
    if frame is None:
        raise Unavailable(
            "engine: expected an answer, got the end of its worker; see the worker's log", code="engine-ended"
        )
    if frame.get("frame") == "failure":
        raise failure(frame)
    if frame.get("frame") not in kinds:
        expected = " or ".join(kinds)
        raise Unavailable(f"engine: expected the frame {expected}, got {frame.get('frame')}", code="engine-broken")
    return frame
