"""Live escape targets for the worker's tests of its sandbox, so that a refused connection proves something.

The service listens on loopback TCP and UDP ports and on two Unix sockets, and checks itself whether anything arrived.
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
    """Additional escape targets by the name of their probe: paths to read, and folders to write to.

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
        """Return the names of all probes that a worker must report."""
        return ALWAYS | self.read.keys() | self.write.keys()


class EscapeTargets:
    """The open sockets, as a context manager; `targets` is given to the worker, `touched` returns what it reached."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self._stack = ExitStack()
        self._mark = f".sandbox-probe-{secrets.token_hex(8)}"
        try:
            folder = tempfile.mkdtemp(prefix="appliance-target-")
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            path, abstract = f"{folder}/socket", f"appliance-target-{secrets.token_hex(8)}"
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
        """Return the probes whose attempt was observed by the service."""
        reached = {name for name, opened in self._sockets.items() if any(map(_has_arrived, opened))}
        return reached | {name for name, folder in self.probes.write.items() if (folder / self._mark).exists()}

    def evaluate(self, reported: Mapping[str, Any]) -> dict[str, str]:
        """Return the results for the record.

        A probe counts as open if it was not reported, or if its attempt was observed here, whatever the worker reports.
        """
        reached = self.touched()
        return {
            name: "refused" if reported.get(name) == "refused" and name not in reached else "open"
            for name in sorted(self.probes.names)
        }

    def close(self) -> None:
        """Close every socket; a second call has no effect."""
        for folder in self.probes.write.values():
            (folder / self._mark).unlink(missing_ok=True)
        self._stack.close()

    def __enter__(self) -> EscapeTargets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _has_arrived(opened: socket.socket) -> bool:
    try:
        if opened.type == socket.SOCK_DGRAM:
            opened.recv(1)
        else:
            opened.accept()[0].close()
    except BlockingIOError:
        return False
    return True
