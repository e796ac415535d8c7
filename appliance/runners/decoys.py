"""Live targets for the worker's probes of its own walls: a refused connection must not merely mean that nothing was
listening.

The service listens on loopback TCP and UDP and on two Unix sockets, and sees itself whether anything arrived.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.errors import BadInput

ALWAYS = frozenset(
    {"tcp", "udp", "dns", "unix", "vsock", "io_uring", "foreign-abi", "ptrace-parent", "new-user-namespace"}
    | {"execute", "set-user-id"}
)


@dataclass(frozen=True)
class Probes:
    """What the worker must fail to do besides: names of probes with a file or folder to read, a folder to write to.

    For example Probes(read={"read-keys": keys, "read-database": database}, write={"write-outside": home}).
    """

    read: Mapping[str, Path] = field(default_factory=dict)
    write: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, path in self.read.items():
            if not os.access(path, os.R_OK):
                raise BadInput(
                    f"probe {name}, {path}: expected something that the service can read, got a path that it cannot"
                )
        for name, path in self.write.items():
            if not (path.is_dir() and os.access(path, os.W_OK)):
                raise BadInput(f"probe {name}, {path}: expected a folder that the service can write to, got another")

    @property
    def names(self) -> frozenset[str]:
        """Every probe that a worker must report."""
        return ALWAYS | self.read.keys() | self.write.keys()


class Decoys:
    """The open sockets. A context manager; `targets` goes to the worker, `touched` names what it reached."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self._stack = ExitStack()
        self._mark = f".wall-probe-{secrets.token_hex(8)}"
        try:
            folder = tempfile.mkdtemp(prefix="appliance-decoy-")
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            path, abstract = f"{folder}/socket", f"appliance-decoy-{secrets.token_hex(8)}"
            stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
            self._sockets = {
                "tcp": [self._listen(socket.AF_INET, stream, ("127.0.0.1", 0))],
                "udp": [self._listen(socket.AF_INET, datagram, ("127.0.0.1", 0))],
                "dns": [self._listen(socket.AF_INET, datagram, ("127.0.0.1", 0))],
                "unix": [self._listen(socket.AF_UNIX, stream, name) for name in (path, f"\0{abstract}")],
            }
        except BaseException:
            self._stack.close()
            raise
        ports = {name: self._sockets[name][0].getsockname()[1] for name in ("tcp", "udp", "dns")}
        self.targets: dict[str, Any] = {
            "ports": ports,
            "unix_path": path,
            "unix_abstract": abstract,
            "service": os.getpid(),
            "mark": self._mark,
            "read": {name: str(where) for name, where in probes.read.items()},
            "write": {name: str(where) for name, where in probes.write.items()},
        }

    def _listen(self, family: int, kind: int, address: Any) -> socket.socket:
        opened = self._stack.enter_context(socket.socket(family, kind))
        opened.setblocking(False)
        opened.bind(address)
        if kind == socket.SOCK_STREAM:
            opened.listen(4)
        return opened

    def touched(self) -> set[str]:
        """The probes whose mark was seen on this side of the wall."""
        reached = {name for name, opened in self._sockets.items() if any(map(_something_came, opened))}
        return reached | {name for name, folder in self.probes.write.items() if (folder / self._mark).exists()}

    def judge(self, reported: Mapping[str, Any]) -> dict[str, str]:
        """The results for the record: a probe that was not reported, or whose attempt was seen here, counts as open,
        whatever the worker reports."""
        reached = self.touched()
        return {
            name: "refused" if reported.get(name) == "refused" and name not in reached else "open"
            for name in sorted(self.probes.names)
        }

    def close(self) -> None:
        """Closes every socket; again is harmless."""
        for folder in self.probes.write.values():
            (folder / self._mark).unlink(missing_ok=True)
        self._stack.close()

    def __enter__(self) -> Decoys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _something_came(opened: socket.socket) -> bool:
    try:
        if opened.type == socket.SOCK_DGRAM:
            opened.recv(1)
        else:
            opened.accept()[0].close()
    except BlockingIOError:
        return False
    return True
