"""Ports of the loopback for services that are started later."""

from __future__ import annotations

import errno
import os
import random
import socket
from pathlib import Path

_FIRST = 11_000
"""Browsers refuse some ports below it."""
_LEAST = 1_000
"""Least number of ports below those that the kernel gives away."""


def _list_ports() -> range:
    """Return the ports below those that the kernel gives to sockets that ask for any.

    A machine whose kernel gives away nearly all of them has the usual range, and with it a small risk of a collision.
    """
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return range(_FIRST, first_given if first_given - _FIRST >= _LEAST else 32_768)


def _take_share(ports: range) -> range:
    """Return the ports of this process, which no other process of the same test run draws."""
    number, count = (os.environ.get(f"PYTEST_XDIST_WORKER{end}", "1") for end in ("", "_COUNT"))
    return ports[int(number.removeprefix("gw")) % int(count) :: int(count)]


PORTS = _take_share(_list_ports())
_draw = random.SystemRandom()
_returned: set[int] = set()


def free_port() -> int:
    """Return a port without a listener, another one each time.

    Nothing takes it until the service listens: the kernel gives it to no other socket, the processes of a test run have
    different ports, and other programs draw theirs at random.
    """
    for port in _draw.sample(PORTS, len(PORTS)):
        if port in _returned:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                _returned.add(port)
                return port
    raise OSError("expected a free port of the loopback, got none")
