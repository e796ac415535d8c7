"""Messages to systemd: the service is ready, what it does, and that it still responds.

The protocol is sd_notify(3): datagrams of `NAME=value` lines to the socket in NOTIFY_SOCKET. Without that variable,
nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("appliance")

SEND_S = 1.0
"""Most seconds that a message waits for systemd."""


def notify(*lines: str) -> None:
    """Send lines such as `READY=1` to systemd. A message that cannot be sent is logged."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, whose name begins with a zero byte
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_S)
            sender.sendto("\n".join(lines).encode("utf-8", "replace"), address)
    except OSError as error:
        log.warning("systemd: expected it to take %r, got %s", lines[0], error)


def read_watchdog_s() -> float | None:
    """Return the seconds after which systemd ends a service that has not sent `WATCHDOG=1`, or None without a watchdog.

    The variables of another process, which were inherited, do not count.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) > 0 else None
