"""A worker's log: what it writes to descriptor 2 comes through a pipe, and the service appends it to the file.

A worker that held the file could empty it, or fill the disk. Of each worker the first bytes and the last are kept, and
one that writes without end waits for the pipe.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from appliance.errors import BadInput
from appliance.runners.output import open_output
from appliance.runners.walls.launcher import open_pipe

FIRST_BYTES = 1 << 20
LAST_BYTES = 64 << 10
_CHUNK_BYTES = 64 << 10
_SLOWED_S = 0.05
_CUT = b"\n[%d bytes are left out here]\n"
# No escape sequence may reach a terminal on which the file is printed; the C1 controls begin one too (U+009B is ESC [),
# and which bytes they are depends on the terminal's encoding.
_PLAIN = bytes(byte if 0x20 <= byte < 0x7F or byte in b"\t\n" else ord("?") for byte in range(256))


class WorkerLog:
    """The file and the pipe. `inner` goes to the worker, then `release` it; `join` once every process of it is gone."""

    def __init__(self, path: Path) -> None:
        # Not blocking: a pipe in the file's place would block the service until the pipe is read.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise BadInput(f"worker, log {path}: expected a file to append to, got {error.strerror}") from None
        self._last = bytearray()
        self._thread = threading.Thread(target=self._copy, name="worker-log", daemon=True)
        with ExitStack() as undo:
            undo.callback(os.close, self._file)
            self._pipe, self.inner = open_pipe(reader=undo, writer=undo)
            self._thread.start()
            undo.pop_all()

    def _copy(self) -> None:
        room, left_out = FIRST_BYTES, 0
        with open(self._file, "ab", buffering=0) as file, open(self._pipe, "rb", buffering=0) as pipe:
            while data := pipe.read(_CHUNK_BYTES):
                data = data.translate(_PLAIN)
                _append(file.fileno(), data[:room])
                self._last += data[room:]
                left_out += max(0, len(self._last) - LAST_BYTES)
                del self._last[:-LAST_BYTES]
                room = max(0, room - len(data))
                if not room:
                    time.sleep(_SLOWED_S)
            if left_out:
                _append(file.fileno(), _CUT % left_out)
            _append(file.fileno(), bytes(self._last))

    def release(self) -> None:
        """Closes this process's copy of `inner`, so that the log ends with the worker."""
        os.close(self.inner)

    def join(self, timeout_s: float) -> None:
        """Waits until everything is in the file."""
        self._thread.join(timeout_s)


def append_foreign(path: Path, folder: Path, name: str) -> None:
    """Adds to a log the first bytes and the last of a file that was written elsewhere, in the same plain characters."""
    descriptor = open_output(folder, name)
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, FIRST_BYTES, 0)
        cut = max(0, size - len(data) - LAST_BYTES)
        last = os.pread(descriptor, LAST_BYTES, max(len(data), size - LAST_BYTES))
    finally:
        os.close(descriptor)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with suppress(OSError), open(os.open(path, flags, 0o600), "ab", buffering=0) as file:
        _append(file.fileno(), data.translate(_PLAIN) + (_CUT % cut if cut else b"") + last.translate(_PLAIN))


def _append(file: int, data: bytes) -> None:
    """What a full disk does not take is lost: the worker must not wait for it, and its run not fail of it."""
    with suppress(OSError):
        while data:
            data = data[os.write(file, data) :]
