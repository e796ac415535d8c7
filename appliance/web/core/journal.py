"""The log as fields of systemd's journal, one field for each attribute of an event.

An attribute `served_model` is the field `APPLIANCE_SERVED_MODEL`. The protocol is systemd's native one
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of fields, or the descriptor of a sealed memory file with them
where they are too large for a datagram.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
"""The journal's socket."""
SEND_S = 1.0
"""Most seconds that a line waits for the journal."""
_PREFIX = "APPLIANCE_"
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Priorities of syslog by the log's level."""
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def is_stderr_journal() -> bool:
    """Return True if systemd has connected this process's stderr with the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class JournalHandler(logging.StreamHandler[Any]):
    """A handler that sends each line of the log to the journal as fields. A line that the journal does not take goes to
    stderr.
    """

    def __init__(self, address: str = SOCKET) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Its formatted line is JSON (`logs.py`)."""
        try:
            self._send(encode_fields(json.loads(self.format(record))))
        except (OSError, ValueError):
            super().emit(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._address)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        file = os.memfd_create("appliance-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
            self._socket.sendmsg([], [rights], 0, self._address)
        finally:
            os.close(file)


def encode_fields(line: Mapping[str, Any]) -> bytes:
    """Encode a line of the log as fields of the journal.

    MESSAGE is what a person reads: the event, its attributes and the traceback.
    """
    attributes = {name: value for name, value in line.items() if name not in ("event", "level")}
    shown = " ".join(
        f"{name}={value}" for name, value in attributes.items() if name not in ("time", "logger", "exception", "stack")
    )
    message = "\n".join(filter(None, (f"{line.get('event', '')} {shown}".strip(), line.get("exception"))))
    fields = {
        "MESSAGE": message,
        "PRIORITY": _PRIORITIES.get(str(line.get("level")), _PRIORITIES["info"]),
        "SYSLOG_IDENTIFIER": "appliance",
        f"{_PREFIX}EVENT": line.get("event", ""),
        **{f"{_PREFIX}{name.upper()}": value for name, value in attributes.items()},
    }
    return b"".join(_encode_field(name, str(value)) for name, value in fields.items())


def _encode_field(name: str, value: str) -> bytes:
    """Encode a field. A value of several lines has its length before it, so that none of its lines can be a field."""
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
