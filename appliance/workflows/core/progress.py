"""What a running worker says on the way, for those who follow it. Never the record: that is the ledger."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from appliance.errors import TooMany
from appliance.formats.core.commitment import Disclosure

_KEPT_FRAMES = 5_000
_KEPT_BYTES = 4 << 20
"""Of one stream, as JSON: a worker says what it likes, as often as it likes."""
_KEPT_STREAMS = 64
"""Of those that have no owner."""
_KEPT_OF_ONE = 16
"""Of those that one person owns and that have ended."""


class Stream:
    """The frames of one run or import; `next` is the number the next frame will have, `changes` counts what was said.

    `owner`: the only person who may read it, or None. `idle`: nothing was said of it since this service started.
    """

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner
        self.idle = True
        self.frames: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.next = 0
        self.changes = 0
        self.result: dict[str, Any] | None = None
        self.error: dict[str, str] | None = None
        self.ended = False

    def add(self, frame: dict[str, Any]) -> None:
        self.frames.append({**frame, "seq": self.next})
        self.next += 1
        self._sizes.append(len(json.dumps(frame)))
        self._bytes += self._sizes[-1]
        while len(self.frames) > _KEPT_FRAMES or self._bytes > _KEPT_BYTES:
            self.frames.popleft()
            self._bytes -= self._sizes.popleft()


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event


class Progress:
    """Streams by key (a run's id, an import's order). `earlier`: what was said of it before this service started."""

    def __init__(self, earlier: Callable[[str], list[dict[str, Any]]] = lambda key: []) -> None:
        self._earlier = earlier
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: dict[str, set[_Waiter]] = {}
        self._waking = threading.Lock()
        """Held for a moment only, since an event loop takes it, too."""

    def publish(self, key: str, frame: dict[str, Any]) -> None:
        with self._lock:
            stream = self._stream(key)
            stream.idle = False
            stream.add(frame)
            stream.changes += 1
        self._wake(key)

    def end(self, key: str, *, result: dict[str, Any] | None = None, error: dict[str, str] | None = None) -> None:
        with self._lock:
            stream = self._stream(key)
            stream.idle, stream.result, stream.error, stream.ended = False, result, error, True
            stream.changes += 1
        self._wake(key)

    def changes_of(self, key: str) -> int:
        """How often something was said of it, for `wait`."""
        stream = self._streams.get(key)
        return 0 if stream is None else stream.changes

    async def wait(self, key: str, seen: int, wait_s: float) -> None:
        """Until more was said of it than the `seen` changes, or the wait is over. Holds no thread."""
        waiter = _Waiter(asyncio.get_running_loop(), asyncio.Event())
        with self._waking:
            self._waiting.setdefault(key, set()).add(waiter)
        try:
            if self.changes_of(key) == seen:
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiter.event.wait(), wait_s)
        finally:
            with self._waking:
                self._waiting[key].discard(waiter)
                if not self._waiting[key]:
                    del self._waiting[key]

    def _wake(self, key: str) -> None:
        with self._waking:
            waiting = tuple(self._waiting.get(key, ()))
        for waiter in waiting:
            with suppress(RuntimeError):  # its loop has ended
                waiter.loop.call_soon_threadsafe(waiter.event.set)

    def fail(self, key: str, code: str, why: Disclosure) -> None:
        """Ended for a reason that the ledger holds as a text, which can be erased there."""
        self.end(key, error={"code": code, "message": why.text, "commitment": why.commitment})

    def open(self, key: str, owner: str) -> None:
        """A stream that only `owner` reads. Streams of others never take its place."""
        with self._lock:
            self._open(key, owner)

    def open_one(self, kind: str, owner: str, most: int) -> str:
        """The key of a new stream that only `owner` reads. TooMany where a stream of this kind is open for them, or for
        `most` people."""
        with self._lock:
            going = [one.owner for key, one in self._streams.items() if key.startswith(f"{kind}:") and not one.ended]
            if owner in going:
                raise TooMany(f"{kind}: expected one at a time for {owner}, got another; ask again when it has ended")
            if len(going) >= most:
                raise TooMany(f"{kind}: expected at most {most} at a time, got one more; ask again in a few minutes")
            key = f"{kind}:{owner}:{secrets.token_hex(16)}"
            self._open(key, owner)
            return key

    def read_own(self, key: str, owner: str) -> Stream | None:
        """None where `owner` has none under this key."""
        stream = self._streams.get(key)
        return None if stream is None or stream.owner != owner else stream

    def followed(self) -> tuple[str, ...]:
        """The streams that somebody reads or reads of, and that have not ended."""
        with self._lock:
            return tuple(key for key, stream in self._streams.items() if not stream.ended)

    def forget(self, key: str) -> None:
        """Nothing of the stream is kept any longer."""
        with self._lock:
            self._streams.pop(key, None)

    def reopen(self, key: str) -> None:
        """What had ended goes on."""
        with self._lock:
            stream = self._stream(key)
            stream.idle, stream.result, stream.error, stream.ended = False, None, None, False

    def read(self, key: str) -> Stream:
        """Where there is none, one is made: a caller has found the key in the ledger's state before."""
        with self._lock:
            return self._stream(key)

    def _stream(self, key: str) -> Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = Stream()
            for frame in self._earlier(key):
                stream.add(frame)
            self._evict(None, _KEPT_STREAMS)
        return stream

    def _open(self, key: str, owner: str) -> None:
        self._streams[key] = Stream(owner)
        self._evict(owner, _KEPT_OF_ONE)

    def _evict(self, owner: str | None, most: int) -> None:
        """The oldest of this owner's beyond `most`, but none of work that goes on."""
        theirs = [key for key, one in self._streams.items() if one.owner == owner]
        over = [key for key in theirs[:-1] if self._streams[key].ended or (owner is None and self._streams[key].idle)]
        for key in over[: max(0, len(theirs) - most)]:
            del self._streams[key]
