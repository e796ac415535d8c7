"""What reaches a training worker while it trains: the service's wishes, and what ranks on other nodes send.

A worker has no network. A rank on another node is reached through frames of the worker's own two pipes, which the
launchers of both nodes pass on.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable

from appliance.errors import ApplianceError
from appliance.worker.link import Link

SILENT_S = 1500
"""A rank that sends nothing for so long has failed; the service gives up a worker a little later."""
_PART_BYTES = 512 << 10
"""The launcher takes at most 1 MiB with a frame."""


class Incoming:
    """Reads the frames that come after the task, in a thread of its own."""

    def __init__(self, session: Link, ranks: Iterable[int] = ()) -> None:
        """`ranks`: those on other nodes."""
        self._session, self._asked = session, threading.Event()
        self._parts: dict[int, queue.Queue[bytes | None]] = {rank: queue.Queue() for rank in ranks}
        threading.Thread(target=self._read, name="frames", daemon=True).start()

    def take_asked(self) -> bool:
        """Whether a training checkpoint was asked for since the last look: the node of a run on a cluster may be about
        to be taken away."""
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    def channels(self) -> list[FrameChannel]:
        return [FrameChannel(self._session, rank, parts) for rank, parts in self._parts.items()]

    def _read(self) -> None:
        try:
            while (frame := self._session.receive()) is not None:
                header, blob = frame
                if header.get("frame") == "checkpoint":
                    self._asked.set()
                elif header.get("frame") == "rank" and header.get("rank") in self._parts:
                    self._parts[header["rank"]].put(blob)
        except ApplianceError as error:
            print(f"frames: {error.code}", file=sys.stderr)
        for parts in self._parts.values():
            parts.put(None)


class FrameChannel:
    """A stream of bytes to a rank on another node, and from it."""

    def __init__(self, session: Link, rank: int, parts: queue.Queue[bytes | None], silent_s: int = SILENT_S) -> None:
        self._session, self._rank, self._parts, self._silent_s = session, rank, parts, silent_s
        self._rest = memoryview(b"")

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), _PART_BYTES):
            try:
                self._session.send({"frame": "rank", "rank": self._rank}, data[start : start + _PART_BYTES])
            except ApplianceError:
                raise EOFError from None

    def read(self, into: memoryview) -> None:
        while into:
            if not self._rest:
                self._rest = memoryview(self._next())
            count = min(len(into), len(self._rest))
            into[:count] = self._rest[:count]
            into, self._rest = into[count:], self._rest[count:]

    def _next(self) -> bytes:
        # By the second: one that passes while the node is paused counts once, however long the pause is.
        for _ in range(self._silent_s):
            try:
                part = self._parts.get(timeout=1.0)
            except queue.Empty:
                continue
            if part is None:
                raise EOFError
            return part
        raise TimeoutError
