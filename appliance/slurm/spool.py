"""Streams of authenticated records through append-only files in a shared folder, and a queue of frames for a worker.

A record is u32 length ‖ payload ‖ HMAC-SHA256 (key, label ‖ 0 ‖ u64 number ‖ payload), big-endian. The key reaches the
node in the job's script, through Slurm. So an account that can only write to the folder cannot create, change, omit or
move a record. A network file system may show the newest bytes late, or as zeros. So invalid data is read again for some
time before it counts as tampered, and a vanished file before it counts as unavailable.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from appliance.errors import ApplianceError, NotFound, Tampered, Unavailable
from appliance.sandbox.local import Worker
from appliance.sandbox.output import ConfinedPath, open_output

MAX_PAYLOAD_BYTES = 10 << 20
SETTLES_S = 30.0
SHARED = "shared-folder"
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_MAC_BYTES = 32


@contextmanager
def shared_errors(what: str) -> Iterator[None]:
    """Translate errors to Unavailable (code `shared-folder`): the folder is full, read-only, not mounted or
    incomplete."""
    try:
        yield
    except NotFound as error:
        raise Unavailable(f"shared folder, {error.message}", code=SHARED) from None
    except OSError as error:
        raise Unavailable(
            f"shared folder, {what}: expected it to work, got {error.strerror or error}", code=SHARED
        ) from None


def _mac(key: bytes, label: str, number: int, payload: bytes) -> bytes:
    return hmac.digest(key, label.encode() + b"\0" + _NUMBER.pack(number) + payload, hashlib.sha256)


class SpoolReader:
    """A reader of the records of the file `name` in `folder`, in order; `label` identifies the stream."""

    def __init__(
        self, folder: ConfinedPath, name: str, key: bytes, label: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._name, self._key, self._label, self._clock = folder, name, key, label, clock
        self.offset = self.number = 0
        self._doubted: float | None = None

    def take(self) -> bytes | None:
        """Return the next payload, or None if it has not arrived.

        Raises:
            Tampered: the bytes are still invalid after `SETTLES_S`.
            Unavailable: a file that was read before is still missing after `SETTLES_S`.
        """
        with shared_errors(self._name):
            data = self._read()
        if data is None or len(data) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(data)[0]
        end = _LENGTH.size + length + _MAC_BYTES
        if length <= MAX_PAYLOAD_BYTES and len(data) < end:
            return None
        payload, mac = data[_LENGTH.size : end - _MAC_BYTES], data[end - _MAC_BYTES : end]
        expected = _mac(self._key, self._label, self.number, payload)
        if length > MAX_PAYLOAD_BYTES or not hmac.compare_digest(mac, expected):
            self._doubt(
                Tampered(
                    f"shared folder, {self._name}: expected record {self.number} as it was written, got other bytes"
                )
            )
            return None
        self.offset, self.number, self._doubted = self.offset + end, self.number + 1, None
        return payload

    def _doubt(self, error: ApplianceError) -> None:
        """Raise the error if the problem has lasted for `SETTLES_S`."""
        now = self._clock()
        self._doubted = now if self._doubted is None else self._doubted
        if now - self._doubted >= SETTLES_S:
            raise error

    def _read(self) -> bytes | None:
        """Read the next record. The file is opened each time, since only then does a network file system refresh it."""
        try:
            descriptor = open_output(self._folder, self._name)
        except NotFound:
            if self.number:
                self._doubt(
                    Unavailable(
                        f"shared folder, {self._name}: expected the file whose first {self.number} records were read, "
                        "got none; see that the folder is mounted",
                        code=SHARED,
                    )
                )
            return None
        try:
            head = os.pread(descriptor, _LENGTH.size, self.offset)
            if len(head) < _LENGTH.size:
                return head
            length = min(_LENGTH.unpack(head)[0], MAX_PAYLOAD_BYTES)
            return head + os.pread(descriptor, length + _MAC_BYTES, self.offset + _LENGTH.size)
        finally:
            os.close(descriptor)


class SpoolWriter:
    """A writer that appends records after the existing ones; an incomplete last record is truncated."""

    def __init__(self, folder: ConfinedPath, name: str, key: bytes, label: str) -> None:
        self._key, self._label, self._name = key, label, name
        reader = SpoolReader(folder, name, key, label)
        while reader.take() is not None:
            continue
        self.number = reader.number
        with shared_errors(name):
            self._file = folder.open_file(name, os.O_WRONLY | os.O_CREAT)
            os.ftruncate(self._file, reader.offset)
            os.lseek(self._file, reader.offset, os.SEEK_SET)

    def append(self, payload: bytes) -> None:
        """Append a record and wait until it is on disk, since other hosts do not see it before."""
        record = _LENGTH.pack(len(payload)) + payload + _mac(self._key, self._label, self.number, payload)
        with shared_errors(self._name):
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        self.number += 1

    def close(self) -> None:
        os.close(self._file)


MOST_BYTES = 64 << 20
"""Bytes that may wait for a running worker. For a paused one there may be more: frames sent before all were paused."""
SEND_S = 86_400.0
"""Seconds to send a frame, since a paused worker reads late."""


class Outbox:
    """The queue of frames for one worker, sent in order; one thread puts them in."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker = worker
        self._frames: deque[tuple[dict[str, Any], bytes]] = deque()
        self._bytes = 0
        self._is_paused = False
        self._changed = threading.Condition()
        threading.Thread(target=self._send, name=name, daemon=True).start()

    def put(self, header: dict[str, Any], blob: bytes) -> None:
        """Queue a frame; wait while too many bytes wait for a slow worker."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_paused or self._bytes < MOST_BYTES)
            self._frames.append((header, blob))
            self._bytes += len(blob)
            self._changed.notify_all()

    def pause(self) -> None:
        self._is_paused = True
        self._worker.pause()

    def resume(self) -> None:
        self._is_paused = False
        self._worker.resume()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames)
                header, blob = self._frames.popleft()
            # The thread that reads from a worker reports its end.
            with suppress(Unavailable):
                self._worker.send(header, blob, timeout_s=SEND_S)
            with self._changed:
                self._bytes -= len(blob)
                self._changed.notify_all()
