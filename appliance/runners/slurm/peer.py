"""A connection between the launchers of two nodes that train one run. No worker has a part in it.

Both have the job's key, which came through Slurm. From it and from a fresh number of each side they make a key for each
direction, and every frame is sealed under it: somebody on the network can end a run, and neither read nor change it.
What arrives are frames with numbers as bytes in them, whose count the reader knows; nothing is pickled.
"""

from __future__ import annotations

import io
import secrets
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.sealed import OVERHEAD_BYTES, Seal, derive_key

Frame = tuple[dict[str, Any], bytes]
LOST = "node-lost"
_PURPOSE = b"appliance/nodes/v1"
_FRESH_BYTES = 32
_LENGTH = struct.Struct(">I")
_MOST_BYTES = 4 << 20
JOIN_S = 300.0
"""A node that Slurm has given has so long to start its launcher, which waits as long for the first node."""
_GREETING_S = 10.0
"""A launcher has said who it is by then, or is let go."""
_GONE_S = 60
"""After so long without an answer from its kernel, the other node is taken for dead."""


class Peer:
    """One end. Sending is safe from any thread; one thread receives."""

    def __init__(
        self, connection: socket.socket, sending: Seal, receiving: Seal, deadline: float | None = None
    ) -> None:
        """`deadline`: until `keep`, nothing is waited for after it."""
        self._connection, self._sending_seal, self._receiving_seal = connection, sending, receiving
        self._deadline = deadline
        self._lock = threading.Lock()

    def send(self, header: dict[str, Any], blob: bytes | memoryview = b"") -> None:
        """Unavailable (`node-lost`) where the other launcher has ended."""
        buffer = io.BytesIO()
        write_frame(buffer, header, blob)
        with self._lock:
            sealed = self._sending_seal.close(buffer.getvalue())
            try:
                self._connection.sendall(_LENGTH.pack(len(sealed)) + sealed)
            except OSError as error:
                raise Unavailable(
                    f"node: expected the other node to read, got {error.strerror or error}", code=LOST
                ) from None

    def receive(self) -> Frame | None:
        """The next frame; None where the other launcher, or its node, has gone. Tampered for other bytes."""
        head = _read(self._connection, _LENGTH.size, self._deadline)
        if head is None:
            return None
        length = _LENGTH.unpack(head)[0]
        if not OVERHEAD_BYTES <= length <= _MOST_BYTES:
            raise Tampered(f"node: expected a message of at most {_MOST_BYTES} bytes, got {length}")
        sealed = _read(self._connection, length, self._deadline)
        if sealed is None:
            return None
        data = self._receiving_seal.open(sealed)
        frame = read_frame(io.BytesIO(data), len(data), len(data))
        if frame is None or not isinstance(frame[0].get("frame"), str):
            raise BadInput("node: expected a frame, got none")
        return frame

    def keep(self) -> None:
        """From here on it waits for as long as the other node lives."""
        self._deadline = None
        self._connection.settimeout(None)

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def listen(address: str) -> socket.socket:
    """Of the first node, on the address by which the cluster knows it; Unavailable where that is not its own."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.bind(place)
            opened.listen(64)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise Unavailable(
            f"node, address {address}: expected to listen on the address that Slurm has of this node, got "
            f"{error.strerror or error}",
            code="node-network",
        ) from None
    return opened


def greet(connection: socket.socket, secret: bytes, attempt: int) -> tuple[Peer, dict[str, Any]] | None:
    """A launcher that has the job's key, with its first frame; None for anybody else, who is let go."""
    try:
        peer = _exchange_keys(connection, secret, attempt, _GREETING_S, leads=True)
        frame = peer.receive()
        if frame is not None and frame[0]["frame"] == "join":
            peer.keep()
            return peer, frame[0]
    except (ApplianceError, OSError):
        pass
    connection.close()
    return None


def join(address: str, port: int, secret: bytes, attempt: int, said: dict[str, Any]) -> Peer:
    """Connects to the first node; Unavailable (`node-network`) where it cannot be reached. It answers once others that
    came before have been greeted."""
    try:
        connection = socket.create_connection((address, port), timeout=JOIN_S)
        try:
            peer = _exchange_keys(connection, secret, attempt, JOIN_S, leads=False)
        except OSError:
            connection.close()
            raise
    except OSError as error:
        raise Unavailable(
            f"node, address {address}, port {port}: expected to reach the run's first node, got "
            f"{error.strerror or error}; the nodes of a run need TCP between them",
            code="node-network",
        ) from None
    peer.send({"frame": "join", **said})
    peer.keep()
    return peer


def _exchange_keys(connection: socket.socket, secret: bytes, attempt: int, within_s: float, *, leads: bool) -> Peer:
    deadline = time.monotonic() + within_s
    connection.settimeout(within_s)
    _tune(connection)
    own = secrets.token_bytes(_FRESH_BYTES)
    connection.sendall(own)
    other = _read(connection, _FRESH_BYTES, deadline)
    if other is None:
        raise ConnectionResetError("it was closed")
    fresh = own + other if leads else other + own
    start = str(attempt).encode()
    down, up = (Seal(derive_key(secret, _PURPOSE, start, fresh, way)) for way in (b"from-first", b"to-first"))
    return Peer(connection, *((down, up) if leads else (up, down)), deadline)


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, _GONE_S // 10)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytes | None:
    """So many bytes; None where the stream ends before. TimeoutError after the deadline, however slowly they come."""
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("it took too long to say who it is")
            connection.settimeout(left)
        try:
            got = connection.recv_into(rest)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not got:
            return None
        rest = rest[got:]
    return bytes(data)
