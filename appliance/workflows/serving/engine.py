"""The connection to the serving worker: one base, adapters in slots, and many requests over one stream of frames.

One thread reads the worker's frames and passes each to the function of its request, so no other thread has to wake for
a token. Loads and unloads take turns. They do not wait for answers, so a revocation cuts an answer at its next token.
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
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.canonical import MAX_INTEGER, parse_canonical
from appliance.workflows.core.context import Frame, ServingContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.workers import SERVE, SERVE_VLLM, check_sandbox, failure, worker
from appliance.workflows.serving.places import SharedPlaces, count_units

log = logging.getLogger("appliance")

START_S = 300.0
"""Seconds that the worker may take to load the base."""
LOOK_S = 1.0
"""Seconds between two checks of the progress."""
FRAME_S = 120.0
"""Seconds without any frame, while a request waits, after which the worker is ended."""
EXCHANGE_S = 600.0
"""Most seconds of a load or unload, which the worker does between two steps."""
PROGRESS_S = 3_600.0
"""Seconds with only signs of life and no computation, while a request waits, after which the worker is ended."""
ANSWER_S = 21_600.0
"""Most seconds until a request gets a frame of its own, even if it waits for the long prompts of all others."""
WAITING = 32
"""Most requests at once. A unit that holds less than its share is accepted beyond this number."""
_FINISHED = ("stop", "tool_calls", "length", "cancelled", "classified")
_PIECE_CHARACTERS = 1024
"""Most characters of a piece of an answer, on average."""
_LEAST_CHARACTERS = 2 << 20
"""Characters that every answer may have in any case."""
_EXCHANGE = ""
"""Key of a load or unload among the pending requests. No request has it."""

_WORKING = "working"
"""Kind of a frame that is a sign of life and belongs to no request."""

TakeFrame = Callable[[Frame | None], None]
"""Function that gets each frame in turn in the engine's thread, so it must not wait. None: the worker has ended."""


@dataclass
class _PendingRequest:
    """A waiting request.

    `pieces` and `characters`: how many may still come. `last_frame_at`: time of its last frame. The next one must come
    within `limit_s`.
    """

    take_frame: TakeFrame
    slot: str
    since: float
    last_frame_at: float
    limit_s: float
    pieces: int = 0
    characters: int = 0

    def check(self, frame: Frame) -> None:
        """Check a frame before it reaches the client or the entry of the answer's end.

        Raises:
            BadInput: No answer can have such a frame.
        """
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


class EngineProcess:
    """A serving worker, started at the first load. A broken stream ends the worker, which is never used again."""

    def __init__(
        self,
        context: ServingContext,
        base: Path,
        base_digest: str,
        recipe: Mapping[str, Any],
        check: Callable[[], object],
    ) -> None:
        """Start the worker.

        `check` raises if the base's files do not match its digest. It runs while the worker loads its libraries. The
        worker reads the base's files only afterwards.
        """
        self._stack = ExitStack()
        self._turn = threading.Lock()
        self._places = SharedPlaces("engine", WAITING, lambda: count_units(context.ledger.state))
        self._lock = threading.Lock()
        self._pending: dict[str, _PendingRequest] = {}
        self._answering: Counter[str] = Counter()
        self._progress_at = self._looked_at = time.monotonic()
        self._computed = 0
        self.alive = True
        try:
            form = f"{recipe['quantisation']}-{recipe['compute_dtype']}"
            key = f"serve-{base_digest.removeprefix('sha256:')[:16]}-{form}"
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
            self.sandbox_probes = check_sandbox(self._worker)
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
        """Pass each frame to its request until the worker ends. Frames of requests that have left are dropped."""
        try:
            with contain_defects("engine"):
                while (received := self._receive()) is not None:
                    now = time.monotonic()
                    self._check_progress(now)
                    for frame in _split_frames(received[0]):
                        if frame.get("frame") == _WORKING:
                            self._process_sign_of_life(frame, now)
                            continue
                        pending = self._pending.get(str(frame.get("id", _EXCHANGE)))
                        if pending is not None:
                            pending.check(frame)
                            pending.last_frame_at = self._progress_at = now
                            pending.take_frame(frame)
        except ApplianceError as error:
            log.warning("an engine is ended: %s", error.message)
        self.close()

    def _process_sign_of_life(self, frame: Frame, now: float) -> None:
        """Process a sign of life. Several long prompts that are read in turns have no other frame for hours.

        A worker that reports false progress gains `ANSWER_S` at most.
        """
        computed = frame.get("computed")
        if type(computed) is not int or not 0 <= computed <= MAX_INTEGER:
            raise BadInput("engine, working: expected a count of what was computed, got a value that is no count")
        if computed > self._computed:
            self._computed, self._progress_at = computed, now

    def _check_progress(self, now: float) -> None:
        """Check once a second that no request waits too long, whatever else the worker sends.

        Raises:
            Unavailable: A request has waited too long.
        """
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for name, pending in list(self._pending.items()):
            what = f"request {name}" if name else "a load or an unload"
            if now - pending.last_frame_at > pending.limit_s:
                raise Unavailable(f"engine, {what}: expected a frame of it within {pending.limit_s:.0f} s, got others")
            if now - max(pending.last_frame_at, self._progress_at) > PROGRESS_S:
                raise Unavailable(f"engine, {what}: expected progress within {PROGRESS_S:.0f} s, got signs of life")

    def _receive(self) -> tuple[Frame, bytes] | None:
        while True:
            try:
                return self._worker.receive(FRAME_S)
            except Unavailable as error:
                first = min((pending.since for pending in list(self._pending.values())), default=float("inf"))
                if error.code != "worker-silent" or time.monotonic() - first >= FRAME_S:
                    raise

    def load(self, slot: str, files: Mapping[str, bytes]) -> None:
        """Load the adapter from the buffers that admission hashed.

        Raises:
            Tampered: The adapter's logit fingerprint differs from the recorded one.
        """
        with self._turn:
            header = {
                "frame": "load",
                "slot": slot,
                "config": files["adapter_config.json"].decode("utf-8"),
                "logit_fingerprint": parse_canonical(files["logit_fingerprint.json"]),
            }
            frame = self._exchange(header, files["adapter_model.safetensors"], "loaded")
            if frame.get("fingerprint_ok") is not True:
                self._exchange({"frame": "unload", "slot": slot}, b"", "unloaded")
                raise Tampered(
                    f"adapter in slot {slot}: expected its recorded logits, got different ones",
                    code="fingerprint-unconfirmed",
                )

    def unload(self, slot: str) -> None:
        """Unload the slot, if the worker is running."""
        with self._turn:
            if self.alive:
                self._exchange({"frame": "unload", "slot": slot}, b"", "unloaded")

    def _exchange(self, header: Frame, blob: bytes, kind: str) -> Frame:
        frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        with self._lock:
            self._enter(_EXCHANGE, frames.put, "", limit_s=EXCHANGE_S)
        try:
            self._send(header, blob)
            return expect(frames.get(), kind)
        finally:
            self._pending.pop(_EXCHANGE, None)

    def _send(self, header: Frame, blob: bytes = b"") -> None:
        try:
            self._worker.send(header, blob)
        except Unavailable:
            self.close()
            raise

    def ask(self, request: str, slot: str, kind: str, parameters: Frame, take_frame: TakeFrame) -> None:
        """Send a request. `take_frame` gets frames of tokens, then one that ends the answer: `done` or `failure`.

        `kind` is `generate` or `classify`. The caller must call `leave`.
        """
        self._places.enter(_unit_of(slot))
        try:
            with self._lock:
                # A step gives at most one piece, or two with tools, since a token may begin a call. The end gives the
                # pieces that were held back.
                pieces = int(parameters.get("max_tokens", 256)) * (2 if "tools" in parameters else 1)
                self._enter(request, take_frame, slot, limit_s=ANSWER_S, pieces=2 + pieces)
                self._answering[slot] += 1
        except BaseException:
            self._places.leave(_unit_of(slot))
            raise
        try:
            self._send({**parameters, "frame": kind, "id": request, "slot": slot})
        except BaseException:
            self.leave(request, ended=True)
            raise

    def leave(self, request: str, *, ended: bool) -> None:
        """Remove the caller's request, and cancel it in the worker if its answer has not `ended`."""
        with self._lock:
            pending = self._pending.pop(request, None)
            if pending is None:
                return
            self._answering[pending.slot] -= 1
            # Drops the counts of slots without requests, since slots are never used twice.
            self._answering += Counter()
        self._places.leave(_unit_of(pending.slot))
        if not ended and self.alive:
            self._cancel(request)

    def answers(self, slot: str) -> bool:
        """Return True if a request is in progress in the slot."""
        return self._answering[slot] > 0

    def cut(self, request: str, why: str) -> None:
        """End one request at once and drop its later frames.

        A separate thread informs the worker, so that a worker that does not read cannot delay other revocations.
        """
        with self._lock:
            pending = self._pending.get(request)
            if pending is None:
                return
            take_frame, pending.take_frame = pending.take_frame, lambda _frame: None
        take_frame({"frame": "failure", "code": "cut-off", "message": why})
        threading.Thread(target=self._cancel, args=(request,), name=f"cancel-{request}", daemon=True).start()

    def _cancel(self, request: str) -> None:
        with suppress(Unavailable):
            self._send({"frame": "cancel", "id": request})

    def _enter(self, name: str, take_frame: TakeFrame, slot: str, *, limit_s: float, pieces: int = 0) -> None:
        if not self.alive:
            raise Unavailable("engine: expected a running one, got one that ended", code="engine-ended")
        characters = max(pieces * _PIECE_CHARACTERS, _LEAST_CHARACTERS)
        now = time.monotonic()
        self._pending[name] = _PendingRequest(take_frame, slot, now, now, limit_s, pieces, characters)

    def close(self) -> None:
        """End the worker at once. Its adapters are gone, and every waiting request gets an error, even if cleaning up
        fails.
        """
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
            for pending in waiting:
                pending.take_frame(None)


def _unit_of(slot: str) -> str:
    """Return the unit in the slot's name, UNIT/SERVED_MODEL/ENTRY."""
    return slot.partition("/")[0]


def _check_calls(calls: object, text: str) -> None:
    """Check that a token's calls are well formed and not much longer than their text. Numbers may be written out."""
    if not isinstance(calls, list) or not all(
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and all(isinstance(part, str) and len(part) <= 16 * len(text) for part in call.values())
        for call in calls
    ):
        raise BadInput("engine, token: expected calls with a name and arguments, got something else")
    if len(calls) > MAX_CALLS:
        raise BadInput(f"engine, token: expected at most {MAX_CALLS} calls, got {len(calls)}")


def _split_frames(frame: Frame) -> list[Frame]:
    """Return the frames of a step that came together in one frame."""
    if frame.get("frame") != "frames":
        return [frame]
    frames = frame.get("frames")
    if not isinstance(frames, list) or not all(isinstance(one, dict) for one in frames):
        raise BadInput(f"engine, frames: expected a list of objects, got {type(frames).__name__}")
    return frames


def expect(frame: Frame | None, *kinds: str) -> Frame:
    """Return the frame, which must be of one of these kinds.

    Raises:
        Unavailable: The worker has ended or sent another kind of frame.
        ApplianceError: The frame is a failure; the error is the one that it names.
    """
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
