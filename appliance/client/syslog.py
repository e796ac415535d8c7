"""Sends lines of the feed as syslog messages over TLS (RFC 5424, framed as in RFC 5425).

RFC 5425 has no acknowledgement. A line counts as taken when the connection has stayed open for some seconds after the
receiver's host has acknowledged its bytes. Lines of a connection that ends before are sent again.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from appliance.client.feed import Line
from appliance.client.support.connection import Address
from appliance.errors import Unavailable

FACILITY = 13
"""The facility `log audit`."""
_SEVERITIES = {1: 6, 2: 5, 3: 4, 4: 2}
"""Severity of syslog by that of OCSF: informational, notice, warning, critical."""
SETTLE_S = 10.0
"""Default seconds for which a connection stays open before its lines count as taken."""
_TIMEOUT_S = 30.0
"""Seconds in which the receiver must connect, and read what is sent."""
_MAX_UNASKED_BYTES = 65_536
"""Most bytes that a look at the connection reads. A syslog server sends none."""
_READ_BYTES = 4_096
_OUTPUT = termios.TIOCOUTQ
"""The request for the bytes that the receiver's host has not acknowledged (SIOCOUTQ, tcp(7))."""


def encode_message(line: Line, host: str) -> bytes:
    """Return a line as a syslog message with its length in front (RFC 5425, 4.3)."""
    priority = FACILITY * 8 + _SEVERITIES.get(line.severity, 5)
    header = f"<{priority}>1 {line.time} {host} appliance - {line.type} - "
    message = header.encode("ascii", "replace") + line.data
    return b"%d " % len(message) + message


class _Sent(NamedTuple):
    """Lines up to an index, and when they were sent, in seconds of a clock."""

    entry: int
    at: float


class SyslogReceiver:
    """A syslog server over TLS."""

    def __init__(
        self, address: Address, settle_s: float = SETTLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address, self._settle_s, self._clock = address, settle_s, clock
        self._tls = address.tls()
        self._host = socket.gethostname()[:255] or "-"
        self._socket: ssl.SSLSocket | None = None
        self._sent: deque[_Sent] = deque()
        self._taken: int | None = None

    def send(self, lines: Sequence[Line]) -> None:
        """Send lines, over a new connection if there is none.

        Raises:
            Unavailable: The server cannot be reached, or does not read.
        """
        try:
            if self._socket is None:
                self._socket = self._connect()
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.sendall(b"".join(encode_message(line, self._host) for line in lines))
        except OSError as error:
            raise self._fail(error) from None
        self._sent.append(_Sent(lines[-1].entry, self._clock()))

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._address.host, self._address.port), _TIMEOUT_S)
        try:
            return self._tls.wrap_socket(plain, server_hostname=self._address.host)
        except BaseException:
            plain.close()
            raise

    def find_taken(self) -> int | None:
        """Return the index of the last line that the server took, or None if it took none yet.

        Raises:
            Unavailable: The server has ended the connection, or sends so much that this cannot be seen.
        """
        if self._socket is not None:
            self._check_open(self._socket)
            (unacknowledged,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _OUTPUT, b"\0" * 4))
            settled = self._clock() - self._settle_s
            while self._sent and not unacknowledged and self._sent[0].at <= settled:
                self._taken = self._sent.popleft().entry
        return self._taken

    def _check_open(self, connection: ssl.SSLSocket) -> None:
        """Check that the server has not ended the connection. The little that it sends is ignored."""
        connection.settimeout(0)
        try:
            for _ in range(_MAX_UNASKED_BYTES // _READ_BYTES):
                if not connection.recv(_READ_BYTES):
                    raise ConnectionError("the server ended the connection")
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        except OSError as error:
            raise self._fail(error) from None
        raise self._fail(ConnectionError("data without end, which a syslog server does not send"))

    def _fail(self, error: OSError) -> Unavailable:
        reason = error.strerror or str(error) or type(error).__name__
        return Unavailable(f"syslog, {self._address}: expected the server to take lines, got: {reason}")

    def close(self) -> None:
        """Close the connection. Lines that were not taken are forgotten."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._sent.clear()
