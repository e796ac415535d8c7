"""Progress of running workers, for the clients that follow it. It is not a record: the ledger is the record."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from appliance.api.runs import WorkError
from appliance.errors import NotFound, RateLimited
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.fields import show

_KEPT_FRAMES = 5_000
"""Most frames of one stream that are kept."""
_KEPT_BYTES = 4 << 20
"""Most bytes of one stream as JSON. A worker is not trusted, so its output is limited."""
_KEPT_STREAMS = 64
"""Most streams without an owner."""
_KEPT_OF_ONE = 16
"""Most ended streams of one owner."""


class Stream:
    """The frames of one run or import.

    `next` is the number of the next frame, `changes` the count of updates. `owner`: the only person who may read it, or
    None. `idle`: True if it has had no update since this service started.
    """

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner
        self.idle = True
        self.frames: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.next = 0
        self.changes = 0
        self.result: Any = None
        self.error: WorkError | None = None
        self.ended = False

    def add(self, frame: dict[str, Any]) -> None:
        """Add a frame with its number, and drop the oldest frames beyond the limits."""
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
    """Streams by key (a run's id, an import's order). `earlier` returns the frames from before this service started."""

    def __init__(self, earlier: Callable[[str], list[dict[str, Any]]] = lambda key: []) -> None:
        self._earlier = earlier
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: dict[str, set[_Waiter]] = {}
        self._waking = threading.Lock()
        """Lock of `_waiting`. Threads hold it only briefly, since event loops take it, too."""

    def publish(self, key: str, frame: dict[str, Any]) -> None:
        """Add a frame to the stream and wake those who wait for it."""
        with self._lock:
            stream = self._stream(key)
            stream.idle = False
            stream.add(frame)
            stream.changes += 1
        self._wake(key)

    def end(self, key: str, *, result: Any = None, error: WorkError | None = None) -> None:
        """End the stream with a result or an error."""
        with self._lock:
            stream = self._stream(key)
            stream.idle, stream.result, stream.error, stream.ended = False, result, error, True
            stream.changes += 1
        self._wake(key)

    def changes_of(self, key: str) -> int:
        """Return the number of updates of the stream, for `wait`."""
        stream = self._streams.get(key)
        return 0 if stream is None else stream.changes

    async def wait(self, key: str, seen: int, wait_s: float) -> None:
        """Wait until the stream has other than `seen` updates, at most `wait_s` seconds. The wait holds no thread."""
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
            with suppress(RuntimeError):  # the event loop has ended
                waiter.loop.call_soon_threadsafe(waiter.event.set)

    def fail(self, key: str, code: str, why: Disclosure) -> None:
        """End the stream with an error whose text is in the ledger, where it can be erased."""
        self.end(key, error=WorkError(code=code, message=why.text, commitment=why.commitment))

    def open(self, key: str, owner: str) -> None:
        """Open a stream that only `owner` can read. Streams of others never evict it."""
        with self._lock:
            self._open(key, owner)

    def open_one(self, kind: str, owner: str, most: int) -> str:
        """Open a new stream that only `owner` can read, and return its key.

        Raises:
            RateLimited: The owner has an open stream of this kind, or `most` people have one.
        """
        with self._lock:
            owners = [s.owner for key, s in self._streams.items() if key.startswith(f"{kind}:") and not s.ended]
            if owner in owners:
                raise RateLimited(
                    f"{kind}: expected one at a time for {owner}, got another; ask again when it has ended"
                )
            if len(owners) >= most:
                raise RateLimited(
                    f"{kind}: expected at most {most} at a time, got one more; ask again in a few minutes"
                )
            key = f"{kind}:{owner}:{secrets.token_hex(16)}"
            self._open(key, owner)
            return key

    def read_own(self, key: str, owner: str) -> Stream | None:
        """Return the owner's stream of this key, or None if there is none."""
        stream = self._streams.get(key)
        return None if stream is None or stream.owner != owner else stream

    def read_personal(self, kind: str, key: str, owner: str) -> Stream:
        """Return the stream of this kind that the owner opened.

        Raises:
            NotFound: The owner opened none of this key.
        """
        stream = self.read_own(key, owner) if key.startswith(f"{kind}:{owner}:") else None
        if stream is None:
            raise NotFound(f"{kind}: expected the key of a {kind} that {owner} started, got {show(key)}")
        return stream

    def list_open(self) -> tuple[str, ...]:
        """Return the keys of the streams that have not ended."""
        with self._lock:
            return tuple(key for key, stream in self._streams.items() if not stream.ended)

    def forget(self, key: str) -> None:
        """Remove the stream."""
        with self._lock:
            self._streams.pop(key, None)

    def reopen(self, key: str) -> None:
        """Reopen a stream that has ended."""
        with self._lock:
            stream = self._stream(key)
            stream.idle, stream.result, stream.error, stream.ended = False, None, None, False

    def read(self, key: str) -> Stream:
        """Return the stream of this key; make an empty one if there is none. The caller has found the key in the
        ledger's state.
        """
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
        """Remove the oldest streams of this owner beyond `most`, except those of work that continues."""
        theirs = [key for key, one in self._streams.items() if one.owner == owner]
        over = [key for key in theirs[:-1] if self._streams[key].ended or (owner is None and self._streams[key].idle)]
        for key in over[: max(0, len(theirs) - most)]:
            del self._streams[key]
