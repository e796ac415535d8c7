"""Encrypted connections between the launchers of the nodes of one run. Workers have no access to them.

Both launchers have the job's key, which came through Slurm. From it and a fresh nonce of each side they derive a key
per direction, and seal every frame. Somebody on the network can end a run, but can neither read nor change it. Frames
hold numbers as bytes whose count the reader knows; nothing is unpickled.
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
from appliance.formats.core.sealed import OVERHEAD_BYTES, ConnectionCipher, derive_key

Frame = tuple[dict[str, Any], bytes]
LOST = "node-lost"
_PURPOSE = b"appliance/nodes/v1"
_FRESH_BYTES = 32
_LENGTH = struct.Struct(">I")
_MOST_BYTES = 4 << 20
JOIN_S = 300.0
"""Seconds that a node has to start its launcher after Slurm allocated it, and that the launcher waits for the first
node."""
_GREETING_S = 10.0
"""Seconds within which a connecting launcher must authenticate."""
_GONE_S = 60
"""Seconds without a response from its kernel after which the other node counts as dead."""


class Peer:
    """One end of a connection. Any thread may send; one thread receives."""

    def __init__(
        self,
        connection: socket.socket,
        sending: ConnectionCipher,
        receiving: ConnectionCipher,
        deadline: float | None = None,
    ) -> None:
        """Wrap a connection; until `keep` is called, all waiting ends at `deadline`."""
        self._connection, self._sending_seal, self._receiving_seal = connection, sending, receiving
        self._deadline = deadline
        self._lock = threading.Lock()

    def send(self, header: dict[str, Any], blob: bytes | memoryview = b"") -> None:
        """Send a frame.

        Raises:
            Unavailable: the other launcher has ended (code `node-lost`).
        """
        buffer = io.BytesIO()
        write_frame(buffer, header, blob)
        with self._lock:
            sealed = self._sending_seal.encrypt_next(buffer.getvalue())
            try:
                self._connection.sendall(_LENGTH.pack(len(sealed)) + sealed)
            except OSError as error:
                raise Unavailable(
                    f"node: expected the other node to read, got {error.strerror or error}", code=LOST
                ) from None

    def receive(self) -> Frame | None:
        """Return the next frame, or None if the other launcher or its node has gone.

        Raises:
            Tampered: other bytes arrived.
        """
        head = _read(self._connection, _LENGTH.size, self._deadline)
        if head is None:
            return None
        length = _LENGTH.unpack(head)[0]
        if not OVERHEAD_BYTES <= length <= _MOST_BYTES:
            raise Tampered(f"node: expected a message of at most {_MOST_BYTES} bytes, got {length}")
        sealed = _read(self._connection, length, self._deadline)
        if sealed is None:
            return None
        data = self._receiving_seal.decrypt_next(sealed)
        frame = read_frame(io.BytesIO(data), len(data), len(data))
        if frame is None or not isinstance(frame[0].get("frame"), str):
            raise BadInput("node: expected a frame, got none")
        return frame

    def keep(self) -> None:
        """Remove the deadline: from now on, wait as long as the other node is alive."""
        self._deadline = None
        self._connection.settimeout(None)

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def listen(address: str) -> socket.socket:
    """Listen on the address by which the cluster knows this first node.

    Raises:
        Unavailable: the address is not one of this node.
    """
    try:
        family, kind, protocol, _, bind_address = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.bind(bind_address)
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
    """Authenticate a connecting launcher and return it with its first frame; close others and return None."""
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
    """Connect to the first node, which authenticates connections in order of their arrival.

    Raises:
        Unavailable: it cannot be reached (code `node-network`).
    """
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
    own_nonce = secrets.token_bytes(_FRESH_BYTES)
    connection.sendall(own_nonce)
    other_nonce = _read(connection, _FRESH_BYTES, deadline)
    if other_nonce is None:
        raise ConnectionResetError("it was closed")
    nonces = own_nonce + other_nonce if leads else other_nonce + own_nonce
    start = str(attempt).encode()
    down, up = (
        ConnectionCipher(derive_key(secret, _PURPOSE, start, nonces, way)) for way in (b"from-first", b"to-first")
    )
    return Peer(connection, *((down, up) if leads else (up, down)), deadline)


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, _GONE_S // 10)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytes | None:
    """Read exactly `count` bytes; return None if the stream ends before."""
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
