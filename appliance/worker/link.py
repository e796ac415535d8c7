"""A worker's connection to the service, and the fields of its task.

Frames arrive on descriptor 0 and leave on descriptor 1; whatever libraries print goes to the log. Only the standard
library is used.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import Any, BinaryIO

from appliance.errors import ApplianceError, BadInput
from appliance.formats.core.frame import read_frame, write_frame

MAX_BLOB_BYTES = 2 << 30
# A unit's request is one header, and its body may have 2 MiB. A broken stream would end all responses.
MAX_HEADER_BYTES = 8 << 20

Header = dict[str, Any]
Frame = tuple[Header, bytes]


class WorkerLink:
    """The worker's end of its two streams. Writing is thread-safe."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = threading.Lock()

    def send(self, header: Header, blob: bytes | memoryview = b"") -> None:
        with self._lock:
            write_frame(self._writer, header, blob)

    def close(self) -> None:
        """Close this process's ends of both streams; other processes keep theirs."""
        self._reader.close()
        self._writer.close()

    def receive(self) -> Frame | None:
        """Read the next frame; return None if the service has ended."""
        return read_frame(self._reader, MAX_HEADER_BYTES, MAX_BLOB_BYTES)

    def expect(self, kind: str) -> Frame:
        """Read the next frame, which must be of this kind.

        Raises:
            BadInput: it is another frame, or the stream ended.
        """
        frame = self.receive()
        if frame is None or frame[0].get("frame") != kind:
            got = "the end" if frame is None else repr(frame[0].get("frame"))
            raise BadInput(f"frame: expected {kind}, got {got}")
        return frame

    def listen(self) -> queue.Queue[Frame | None]:
        """Start a thread that reads frames into the returned queue; None marks the end of the stream or an error."""
        frames: queue.Queue[Frame | None] = queue.Queue()

        def read() -> None:
            try:
                while (frame := self.receive()) is not None:
                    frames.put(frame)
            except ApplianceError as error:
                print(f"frames: {error.code}", file=sys.stderr)
            frames.put(None)

        threading.Thread(target=read, name="frames", daemon=True).start()
        return frames


class EvaluationProgress:
    """The number of evaluated rows and of their tokens, which is reported to the service. `total` is that of rows."""

    def __init__(self, session: WorkerLink, total: int = 0) -> None:
        self.total = total
        self._session, self._rows, self._tokens, self._began = session, 0, 0, time.monotonic()

    def report(self, rows: int, tokens: int) -> None:
        """Report that so many more rows and tokens were evaluated."""
        self._rows, self._tokens = self._rows + rows, self._tokens + tokens
        seconds = round(time.monotonic() - self._began, 3)
        frame = {"frame": "progress", "done": self._rows, "total": self.total}
        self._session.send({**frame, "tokens": self._tokens, "seconds": seconds})


def open_session() -> WorkerLink:
    """Reserve both streams for frames: descriptor 1 then leads to the log, and descriptor 0 is empty."""
    reader = os.fdopen(os.dup(0), "rb")
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return WorkerLink(reader, writer)


def take_path(header: Header, name: str) -> str:
    """Return a field of a task if it is an absolute path.

    Raises:
        BadInput: it is not.
    """
    value = header.get(name)
    if not isinstance(value, str) or not os.path.isabs(value):
        raise BadInput(f"task, {name}: expected an absolute path, got {value!r:.80}")
    return value


def take(header: Header, name: str, kind: type) -> Any:
    """Return a field of a task if it has exactly this type.

    Raises:
        BadInput: it does not.
    """
    value = header.get(name)
    if type(value) is not kind:
        raise BadInput(f"task, {name}: expected {kind.__name__}, got {type(value).__name__}")
    return value
