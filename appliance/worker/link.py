"""How every worker begins and ends: probe the walls, wait for the job, work, and report the result.

Frames come in on descriptor 0 and go out on descriptor 1; whatever a library prints goes to the log. Nothing but the
standard library is imported before the walls were probed, so a worker whose walls are not in force has read nothing.
The log has an error's code alone: its message may quote a row, and becomes a text of the ledger, erased there only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from appliance.errors import ApplianceError, BadInput, Unavailable
from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.walls import run_probes

MAX_BLOB_BYTES = 2 << 30
# A unit's request comes as one header, and its body may have 2 MiB: a stream that breaks ends all answers.
MAX_HEADER_BYTES = 8 << 20

Header = dict[str, Any]
Frame = tuple[Header, bytes]


class Link:
    """The worker's side of the two streams. Writing is safe from any thread."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = threading.Lock()

    def send(self, header: Header, blob: bytes | memoryview = b"") -> None:
        with self._lock:
            write_frame(self._writer, header, blob)

    def close(self) -> None:
        """Leaves both streams to other processes that have them."""
        self._reader.close()
        self._writer.close()

    def receive(self) -> Frame | None:
        """The next frame; None when the service has gone."""
        return read_frame(self._reader, MAX_HEADER_BYTES, MAX_BLOB_BYTES)

    def expect(self, kind: str) -> Frame:
        frame = self.receive()
        if frame is None or frame[0].get("frame") != kind:
            got = "the end" if frame is None else repr(frame[0].get("frame"))
            raise BadInput(f"frame: expected {kind}, got {got}")
        return frame

    def listen(self) -> queue.Queue[Frame | None]:
        """Frames as they come, read by a thread of its own; None at the end or where the stream breaks."""
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


def open_session() -> Link:
    """Takes the two streams for frames alone: descriptor 1 becomes the log, descriptor 0 empty."""
    reader = os.fdopen(os.dup(0), "rb")
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return Link(reader, writer)


def run_worker(work: Callable[[Link, Header, bytes], Header], prepare: Callable[[], None] = lambda: None) -> int:
    """The whole life of a worker; the exit code. `work` returns the members of the result.

    `prepare` runs behind the walls before the task comes, while the service checks what the task will name.
    """
    session = open_session()
    try:
        session.send({"frame": "walls", "results": run_probes(_receive_targets(session))})
        prepare()
        header, blob = session.expect("go")
        session.send({"frame": "result", **work(session, header, blob)})
    except ApplianceError as error:
        return _fail(session, error)
    except MemoryError:
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except RuntimeError as error:
        # torch has no single class for it. Any other error is a defect, and its trace belongs in the log.
        if "memory" not in str(error):
            raise
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except OSError as error:
        return _fail(session, Unavailable(f"worker: expected to read and write its folders, got {error.strerror}"))
    return 0


def _fail(session: Link, error: ApplianceError) -> int:
    print(f"failed: {error.code}", file=sys.stderr)
    # If the service has ended, only the exit code can report the error.
    with contextlib.suppress(ApplianceError):
        session.send({"frame": "failure", "code": error.code, "message": error.message})
    return 1


def _receive_targets(session: Link) -> dict[str, Any]:
    """What the probes must fail to reach: the last argument, as the local runner gives it, or the first frame."""
    if len(sys.argv) > 1:
        targets: dict[str, Any] = json.loads(sys.argv[-1])
        return targets
    return dict(take(session.expect("probe")[0], "targets", dict))


def take_path(header: Header, name: str) -> str:
    """A member of a task that must be an absolute path."""
    value = header.get(name)
    if not isinstance(value, str) or not os.path.isabs(value):
        raise BadInput(f"task, {name}: expected an absolute path, got {value!r:.80}")
    return value


def take(header: Header, name: str, kind: type) -> Any:
    """A member of a task, of this type exactly."""
    value = header.get(name)
    if type(value) is not kind:
        raise BadInput(f"task, {name}: expected {kind.__name__}, got {type(value).__name__}")
    return value
