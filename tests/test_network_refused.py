"""The test process has no network: shown by calls that fail."""

from __future__ import annotations

import _socket
import socket

import pytest

OUTSIDE = [("192.0.2.1", 9), ("10.0.0.1", 9), ("0.0.0.0", 0), ("", 0), ("example.org", 80)]


@pytest.mark.parametrize("address", OUTSIDE)
@pytest.mark.parametrize("call", ["connect", "connect_ex", "bind"])
def test_an_address_outside_loopback_is_refused(call: str, address: tuple[str, int]) -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match="expected loopback"):
        getattr(sock, call)(address)


def test_a_datagram_outside_loopback_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(RuntimeError, match="expected loopback"):
            sock.sendto(b"x", ("192.0.2.1", 9))
        with pytest.raises(RuntimeError, match="expected loopback"):
            sock.sendmsg([b"x"], [], 0, ("192.0.2.1", 9))


def test_the_c_module_below_socket_is_refused_too() -> None:
    sock = _socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        with pytest.raises(RuntimeError, match="expected loopback"):
            sock.connect(("192.0.2.1", 9))
    finally:
        sock.close()


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match="expected localhost"):
        socket.getaddrinfo("example.org", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_loopback_is_open(host: str) -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind((host, 0))
        server.listen()
        client.connect((host, server.getsockname()[1]))


def test_ipv6_outside_loopback_is_refused() -> None:
    with socket.socket(socket.AF_INET6) as sock, pytest.raises(RuntimeError, match="expected loopback"):
        sock.connect(("2001:db8::1", 9))
