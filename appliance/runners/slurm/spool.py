"""Frames through a shared folder: files that only grow, each record under a key that the folder does not hold.

A record is u32 length ‖ payload ‖ HMAC-SHA256 (key, label ‖ 0 ‖ u64 number ‖ payload), big-endian. The key goes to the
node in the job's script, through Slurm, so whoever can only write to the folder can neither make a record, change one,
leave one out nor put it elsewhere. A file on a network may show its newest bytes late, or as zeros: what does not fit
yet is read again for a while before it counts as tampered.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import NotFound, Tampered, Unavailable
from appliance.runners.output import open_output

MAX_PAYLOAD_BYTES = 10 << 20
SETTLES_S = 30.0
SHARED = "shared-folder"
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")
_MAC_BYTES = 32


@contextmanager
def shared_errors(what: str) -> Iterator[None]:
    """A shared folder that is full, gone or read-only is Unavailable (`shared-folder`)."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"shared folder, {what}: expected it to work, got {error.strerror or error}", code=SHARED
        ) from None


def _mac(key: bytes, label: str, number: int, payload: bytes) -> bytes:
    return hmac.digest(key, label.encode() + b"\0" + _NUMBER.pack(number) + payload, hashlib.sha256)


class SpoolReader:
    """The records of `name` below `folder`, in order. `label` says which stream it is."""

    def __init__(
        self, folder: Path, name: str, key: bytes, label: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._name, self._key, self._label, self._clock = folder, name, key, label, clock
        self.offset = self.number = 0
        self._doubted: float | None = None

    def take(self) -> bytes | None:
        """The next payload; None where it has not come yet. Tampered once bytes that do not hold have stood for a
        while, or where what was read before is gone."""
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
            self._doubt()
            return None
        self.offset, self.number, self._doubted = self.offset + end, self.number + 1, None
        return payload

    def _doubt(self) -> None:
        now = self._clock()
        self._doubted = now if self._doubted is None else self._doubted
        if now - self._doubted >= SETTLES_S:
            raise Tampered(
                f"shared folder, {self._name}: expected record {self.number} as it was written, got other bytes"
            )

    def _read(self) -> bytes | None:
        """From the record that is due. It is opened anew each time: only then does a network file system look."""
        try:
            descriptor = open_output(self._folder, self._name)
        except NotFound:
            if self.number:
                self._doubt()
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
    """Appends records, after those that are there; what a power cut left of one is cut off."""

    def __init__(self, folder: Path, name: str, key: bytes, label: str) -> None:
        self._key, self._label, self._name = key, label, name
        reader = SpoolReader(folder, name, key, label)
        while reader.take() is not None:
            continue
        self.number = reader.number
        with shared_errors(name):
            # Not blocking: a pipe in the file's place would wait for its reader.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(folder / name, flags, 0o600)
            os.ftruncate(self._file, reader.offset)
            os.lseek(self._file, reader.offset, os.SEEK_SET)

    def append(self, payload: bytes) -> None:
        """On the shared folder's disk when it returns: before that no other host sees it."""
        record = _LENGTH.pack(len(payload)) + payload + _mac(self._key, self._label, self.number, payload)
        with shared_errors(self._name):
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        self.number += 1

    def close(self) -> None:
        os.close(self._file)
