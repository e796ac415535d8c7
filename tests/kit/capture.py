"""Runs a command where every address is routed to this program, and lists each packet that it sends beyond loopback.

python tests/kit/capture.py FILE COMMAND [ARGUMENT ...]

The network namespace has a loopback and a TUN device with the default routes of IPv4 and IPv6. Names are looked up at a
server behind that device. So an attempt to reach any other machine becomes a packet, and each packet is a line of FILE:
protocol, address and port. Nothing leaves this machine. As root, with /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

CLONE_NEWNS, CLONE_NEWNET = 0x0002_0000, 0x4000_0000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
DEVICE, NAME_SERVER = "out", "198.51.100.53"
END = ("198.51.100.254", 9)
"""Address of a last packet, before which every packet of the command has been read."""
_SETUP = f"""
ip link set lo up
ip addr add 198.51.100.2/24 dev {DEVICE}
ip -6 addr add 2001:db8::2/64 dev {DEVICE} nodad
ip link set {DEVICE} up
ip route add default dev {DEVICE}
ip -6 route add default dev {DEVICE}
"""
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_ICMPV6, _HOP_BY_HOP = 58, 0
"""Headers of what the kernel itself sends to its neighbours when an IPv6 device comes up."""


class Packet(NamedTuple):
    """A packet that a program sent: its protocol, and the address and port to which it went."""

    protocol: str
    address: str
    port: int


def parse_packet(data: bytes) -> Packet | None:
    """Return a packet's target, or None for what the kernel itself sends over IPv6."""
    if data[0] >> 4 == 4:
        protocol, address, rest = data[9], ipaddress.ip_address(data[16:20]), data[(data[0] & 15) * 4 :]
    else:
        protocol, address, rest = data[6], ipaddress.ip_address(data[24:40]), data[40:]
        if protocol in (_ICMPV6, _HOP_BY_HOP):
            return None
    port = struct.unpack("!H", rest[2:4])[0] if protocol in (6, 17) else 0
    return Packet(_PROTOCOLS.get(protocol, str(protocol)), str(address), port)


def enter() -> int:
    """Enter namespaces of this process's own, and return the descriptor of the TUN device.

    Raises: OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "namespaces: expected the kernel to make them; run this as root")
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if Path("/etc/resolv.conf").exists():
        with tempfile.NamedTemporaryFile("w", delete=False) as file:
            file.write(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n")
        os.chmod(file.name, 0o644)
        real = os.path.realpath("/etc/resolv.conf").encode()
        if libc.mount(file.name.encode(), real, None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), "/etc/resolv.conf: expected a mount over it")
        os.unlink(file.name)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["sh", "-ec", _SETUP], check=True)
    return device


def main() -> int:
    """Run the command, write the packets, and return the command's exit code."""
    file, *command = sys.argv[1:]
    device = enter()
    packets: list[Packet] = []

    def read() -> None:
        while (packet := parse_packet(os.read(device, 65_536))) != ("udp", *END):
            if packet is not None:
                packets.append(packet)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    code = subprocess.run(command, check=False).returncode
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", END)
    reader.join(60)
    assert not reader.is_alive(), "the last packet was lost"
    Path(file).write_text("".join(json.dumps(packet) + "\n" for packet in packets))
    return code


if __name__ == "__main__":
    sys.exit(main())
