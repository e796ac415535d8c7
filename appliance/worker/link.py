"""The life of every worker: test the sandbox, wait for the task, work, and report the result.

Frames arrive on descriptor 0 and leave on descriptor 1; whatever libraries print goes to the log. Before the sandbox is
tested, only the standard library is imported, so that a worker without a working sandbox has read no data. The log
holds the code of an error, and of one of the operating system its places in the code. The message may quote a row, so
it is sent to the service and stored as an erasable text of the ledger.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from appliance.errors import ApplianceError, BadInput, Unavailable
from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.probes import run_probes

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


def open_session() -> WorkerLink:
    """Reserve both streams for frames: descriptor 1 then leads to the log, and descriptor 0 is empty."""
    reader = os.fdopen(os.dup(0), "rb")
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return WorkerLink(reader, writer)


def run_worker(work: Callable[[WorkerLink, Header, bytes], Header], prepare: Callable[[], None] = lambda: None) -> int:
    """Run a worker from start to end and return its exit code.

    `work` returns the fields of the result. `prepare` runs in the sandbox before the task arrives, while the service
    checks the inputs of the task.
    """
    session = open_session()
    try:
        session.send({"frame": "sandbox", "results": run_probes(_receive_targets(session))})
        prepare()
        header, blob = session.expect("go")
        session.send({"frame": "result", **work(session, header, blob)})
    except ApplianceError as error:
        return _fail(session, error)
    except MemoryError:
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except RuntimeError as error:
        # torch has no single class for this error. Any other error is a defect, whose traceback belongs in the log.
        if "memory" not in str(error):
            raise
        return _fail(session, Unavailable("worker: expected enough memory, got too little", code="out-of-memory"))
    except OSError as error:
        traceback.print_tb(error.__traceback__)
        return _fail(session, Unavailable(f"worker: expected to read and write its folders, got {error.strerror}"))
    return 0


def _fail(session: WorkerLink, error: ApplianceError) -> int:
    print(f"failed: {error.code}", file=sys.stderr)
    # If the service has ended, only the exit code can report the error.
    with contextlib.suppress(ApplianceError):
        session.send({"frame": "failure", "code": error.code, "message": error.message})
    return 1


def _receive_targets(session: WorkerLink) -> dict[str, Any]:
    """Return the escape targets that must be unreachable: the last argument (local runner) or the first frame."""
    if len(sys.argv) > 1:
        targets: dict[str, Any] = json.loads(sys.argv[-1])
        return targets
    return dict(take(session.expect("probe")[0], "targets", dict))


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
