"""What a running worker says on the way, for those who follow it. Never the record: that is the ledger."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from appliance.formats.core.commitment import Disclosure

_KEPT_FRAMES = 5_000
_KEPT_BYTES = 4 << 20
"""Of one stream, as JSON: a worker says what it likes, as often as it likes."""
_KEPT_STREAMS = 64


class Stream:
    """The frames of one run or import; `next` is the number the next frame will have."""

    def __init__(self) -> None:
        self.frames: deque[dict[str, Any]] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.next = 0
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


class Progress:
    """Streams by key (a run's id, an import's order). `earlier`: what was said of it before this service started."""

    def __init__(self, earlier: Callable[[str], list[dict[str, Any]]] = lambda key: []) -> None:
        self._earlier = earlier
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._changed = threading.Condition()

    def publish(self, key: str, frame: dict[str, Any]) -> None:
        with self._changed:
            stream = self._stream(key)
            stream.add(frame)
            self._changed.notify_all()

    def end(self, key: str, *, result: dict[str, Any] | None = None, error: dict[str, str] | None = None) -> None:
        with self._changed:
            stream = self._stream(key)
            stream.result, stream.error, stream.ended = result, error, True
            self._changed.notify_all()

    def fail(self, key: str, code: str, why: Disclosure) -> None:
        """Ended for a reason that the ledger holds as a text, which can be erased there."""
        self.end(key, error={"code": code, "message": why.text, "commitment": why.commitment})

    def has(self, key: str) -> bool:
        """Whether there is such a stream: to read one makes it."""
        with self._changed:
            return key in self._streams

    def followed(self) -> tuple[str, ...]:
        """The streams that somebody reads or reads of, and that have not ended."""
        with self._changed:
            return tuple(key for key, stream in self._streams.items() if not stream.ended)

    def forget(self, key: str) -> None:
        """Nothing of the stream is kept any longer."""
        with self._changed:
            self._streams.pop(key, None)

    def reopen(self, key: str) -> None:
        """What had ended goes on."""
        with self._changed:
            stream = self._stream(key)
            stream.result, stream.error, stream.ended = None, None, False

    def read(self, key: str, after: int, wait_s: float) -> Stream:
        """The stream as it stands, once it has frames from `after` on, has ended, or the wait is over."""
        with self._changed:
            stream = self._stream(key)
            self._changed.wait_for(lambda: stream.next > after or stream.ended, timeout=wait_s)
            return stream

    def _stream(self, key: str) -> Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = Stream()
            for frame in self._earlier(key):
                stream.add(frame)
            while len(self._streams) > _KEPT_STREAMS:
                self._streams.popitem(last=False)
        return stream
