"""The other nodes of a run, as seen by the launcher on the first node.

It starts a launcher on each node by `srun`, collects their sandbox reports, and passes messages between rank 0 and
their ranks.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, Tampered, Unavailable
from appliance.sandbox.description import PACKAGE
from appliance.sandbox.local import Worker
from appliance.sandbox.output import ConfinedPath
from appliance.sandbox.program import START
from appliance.slurm.commands import Commands, command_environment
from appliance.slurm.folder import JobDescription
from appliance.slurm.peer import JOIN_S, LOST, Peer, greet, listen

AT_ONCE = 64
"""Number of connections that are authenticated at the same time; others wait in the kernel's queue."""
_RETRY_S = 0.1

Arrival = tuple[Peer, dict[str, Any]]
"""An authenticated launcher and its first frame."""


class Arrivals:
    """A listener for the launchers of the other nodes, which accepts connections until `close`."""

    def __init__(self, address: str, secret: bytes, attempt: int) -> None:
        """Listen on `address`, by which the cluster knows this node.

        Raises:
            Unavailable: the address is not one of this node.
        """
        self._listener = listen(address)
        self.port: int = self._listener.getsockname()[1]
        self._secret, self._attempt = secret, attempt
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._greeted: set[socket.socket] = set()
        self._joined: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._accept, name="arrivals", daemon=True).start()

    def take(self, timeout_s: float) -> Arrival | None:
        """Return the next launcher, or None if none joined in time."""
        with suppress(queue.Empty):
            return self._joined.get(timeout=timeout_s)
        return None

    def close(self) -> None:
        """Stop accepting launchers and close connections that were not taken."""
        with self._lock:
            self._closed = True
            # Wake up the threads that wait for these sockets; they close them.
            for open_socket in (self._listener, *self._greeted):
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
        while (left := self.take(0)) is not None:
            left[0].close()

    def _accept(self) -> None:
        with self._listener:
            while not self._closed:
                self._places.acquire()
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    # The listener was closed, or there are too many open files.
                    self._places.release()
                    time.sleep(_RETRY_S)
                    continue
                threading.Thread(target=self._greet, args=(connection,), name="arrival", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            if self._begin(connection):
                found = greet(connection, self._secret, self._attempt)
                self._end(connection, found)
        finally:
            self._places.release()

    def _begin(self, connection: socket.socket) -> bool:
        with self._lock:
            if self._closed:
                connection.close()
            else:
                self._greeted.add(connection)
            return not self._closed

    def _end(self, connection: socket.socket, found: Arrival | None) -> None:
        with self._lock:
            self._greeted.discard(connection)
            if found is None:
                return
            if self._closed:
                found[0].close()
            else:
                self._joined.put(found)


FOLLOWER = "appliance.slurm.follower"
READY_S = 1500.0
"""Seconds that a node has to copy the inputs of its workers and start them."""
DEAD_S = 600.0
_END_S = 10.0
_FORWARD_S = 86_400.0
"""Seconds to forward a frame, since a paused worker reads late."""


@dataclass(frozen=True)
class SandboxReport:
    """The combined sandbox report of all workers.

    A probe is refused if all workers refused it, and a layer is in force if it is for all. `nodes` are the names of the
    nodes, the first one first.
    """

    results: Mapping[str, str]
    layers: Mapping[str, bool]
    reasons: Mapping[str, str]
    nodes: tuple[str, ...]

    @property
    def is_closed(self) -> bool:
        """Return True if every probe was refused."""
        return all(result == "refused" for result in self.results.values())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON fields, without the nodes."""
        return {"results": dict(self.results), "layers": dict(self.layers), "reasons": dict(self.reasons)}

    def combined_with(self, said: Mapping[str, Any], node: str) -> SandboxReport:
        """Combine this report with that of another node."""
        results, layers = dict(said["results"]), dict(said["layers"])
        names = self.results.keys() | results.keys()
        reasons = {**{f"{layer} on {node}": why for layer, why in dict(said["reasons"]).items()}, **self.reasons}
        return SandboxReport(
            {
                name: "refused" if (self.results.get(name), results.get(name)) == ("refused", "refused") else "open"
                for name in sorted(names)
            },
            {name: is_active and layers.get(name) is True for name, is_active in self.layers.items()},
            reasons,
            (*self.nodes, node),
        )


class Team:
    """The other nodes of a job; `key` is the job's key, which the other launchers get on stdin."""

    def __init__(
        self, described: JobDescription, folder: ConfinedPath, key: bytes, attempt: int, node: str, code: str
    ) -> None:
        self._described, self._code = described, code
        self._peers: dict[int, Peer] = {}
        self._names: dict[int, str] = {}
        self._ready: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._worker: Worker | None = None
        self.problem: ApplianceError | None = None
        """Reason why this start of the run cannot continue, or None; its code is `node-lost` if a node vanished
        silently."""
        address = Commands(Path(described.commands), command_environment()).address(node)
        with ExitStack() as undo:
            self._arrivals = Arrivals(address, key, attempt)
            undo.callback(self._arrivals.close)
            arguments = [str(folder), str(attempt), address, str(self._arrivals.port)]
            self._steps = _start_followers(described, arguments, key)
            undo.pop_all()

    def __enter__(self) -> Team:
        return self

    def gather(self, report: SandboxReport) -> SandboxReport:
        """Wait for the sandbox reports of all nodes and return them combined with `report`."""
        deadline = time.monotonic() + JOIN_S
        while len(self._peers) < self._described.nodes - 1:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"nodes: expected {self._described.nodes - 1} other launchers within {JOIN_S:.0f} s, got "
                    f"{len(self._peers)}; the nodes of a run need TCP between them",
                    code="node-network",
                )
            # Admit launchers first: the error of one that joined and then failed says more than the end of srun.
            if (found := self._arrivals.take(1.0)) is not None:
                self._admit(*found)
            else:
                self._check_steps()
        self._arrivals.close()
        said: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + READY_S
        while len(said) < len(self._peers):
            if self.problem is not None:
                raise self.problem
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"nodes: expected their sandbox reports within {READY_S:.0f} s, got none", code="rank-silent"
                )
            with suppress(queue.Empty):
                number, frame = self._ready.get(timeout=0.1)
                said[number] = frame
        for number in sorted(said):
            report = report.combined_with(said[number], self._names[number])
        return report

    def _admit(self, peer: Peer, said: dict[str, Any]) -> None:
        number = said.get("number")
        if not isinstance(number, int) or not 0 < number < self._described.nodes or number in self._peers:
            peer.close()
            return
        if said.get("code") != self._code:
            peer.close()
            raise Unavailable(
                f"node {said.get('node')!s:.80}: expected the code that the service runs ({self._code}), got another; "
                "install the same version there",
                code="other-code",
            )
        self._peers[number], self._names[number] = peer, str(said.get("node"))
        threading.Thread(target=self._handle_frames, args=(number, peer), name=f"node-{number}", daemon=True).start()

    def begin(self, go: dict[str, Any], worker: Worker) -> None:
        """Make every other node train along with this worker, which is rank 0."""
        self._worker = worker
        for peer in self._peers.values():
            peer.send(go)

    def forward(self, header: dict[str, Any], blob: bytes) -> None:
        """Send a frame of rank 0 to a rank on another node."""
        rank = header.get("rank")
        number = rank // self._described.ranks_here if isinstance(rank, int) else 0
        if number not in self._peers:
            raise Tampered(f"worker: expected a rank on another node, got {rank!r:.20}")
        self._peers[number].send(header, blob)

    def say(self, word: str) -> None:
        """Send `pause` or `resume` to all nodes."""
        for peer in self._peers.values():
            with suppress(Unavailable):
                peer.send({"frame": word})

    def _handle_frames(self, number: int, peer: Peer) -> None:
        """Handle all frames of one other node."""
        problem: ApplianceError = Unavailable(
            f"node {self._names[number]}: expected it to train to the last step, got its end", code=LOST
        )
        try:
            while (frame := peer.receive()) is not None:
                header, blob = frame
                if header["frame"] == "sandbox":
                    self._ready.put((number, header))
                elif header["frame"] == "failed":
                    problem = Unavailable(
                        f"node {self._names[number]}: {header.get('message')!s:.1000}", code=str(header.get("code"))
                    )
                    break
                elif header["frame"] == "rank" and self._worker is not None:
                    # The end of rank 0 is detected where its frames are read.
                    with suppress(Unavailable):
                        self._worker.send({"frame": "rank", "rank": header.get("rank")}, blob, timeout_s=_FORWARD_S)
        except ApplianceError as error:
            problem = error
        if self.problem is None:
            self.problem = problem

    def await_slurm(self) -> None:
        """Wait, after a node is lost, until Slurm ends the job and with it this launcher.

        Return if only the launcher on that node had ended, or if Slurm takes too long.
        """
        deadline = time.monotonic() + DEAD_S
        while self._steps.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def _check_steps(self) -> None:
        if self._steps.poll() is not None:
            raise Unavailable(
                f"srun: expected the launchers on the other nodes to start, got its end with {self._steps.returncode}; "
                "the job's log says more",
                code="slurm-job",
            )

    def __exit__(self, *_: object) -> None:
        for peer in self._peers.values():
            with suppress(Unavailable):
                peer.send({"frame": "end"})
            peer.close()
        self._arrivals.close()
        with suppress(subprocess.TimeoutExpired):
            self._steps.wait(_END_S)
        if self._steps.poll() is None:
            self._steps.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._steps.wait(_END_S)
        self._steps.kill()
        self._steps.wait()


def _start_followers(described: JobDescription, arguments: list[str], key: bytes) -> subprocess.Popen[bytes]:
    """Start a launcher on each other node of the job; the key is given on stdin."""
    others = str(described.nodes - 1)
    options = [f"--nodes={others}", f"--ntasks={others}", "--ntasks-per-node=1", "--relative=1", "--mpi=none"]
    options += ["--kill-on-bad-exit=1", "--input=all"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        options.append(f"--cpus-per-task={cpus}")
    command = [sys.executable, "-I", "-c", START, str(PACKAGE.parent), FOLLOWER, *arguments]
    try:
        started = subprocess.Popen(
            [f"{described.commands}/srun", *options, *command], stdin=subprocess.PIPE, cwd="/", env=dict(os.environ)
        )
    except OSError as error:
        raise Unavailable(
            f"slurm, {described.commands}/srun: expected Slurm's command, got {error.strerror}; set slurm_commands",
            code="slurm-missing",
        ) from None
    assert started.stdin is not None
    with suppress(OSError):
        started.stdin.write(f"{key.hex()}\n".encode())
        started.stdin.close()
    return started
