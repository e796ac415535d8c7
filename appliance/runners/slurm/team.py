"""The other nodes of a run, as the launcher on its first node has them: it starts a launcher on each by `srun`, waits
for their walls, and passes on what their ranks and rank 0 exchange.
"""

from __future__ import annotations

import os
import queue
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
from appliance.runners.local import Worker
from appliance.runners.program import START
from appliance.runners.sandbox import PACKAGE
from appliance.runners.slurm.arrivals import Arrivals
from appliance.runners.slurm.commands import Commands, command_environment
from appliance.runners.slurm.folder import Description
from appliance.runners.slurm.peer import JOIN_S, LOST, Peer

FOLLOWER = "appliance.runners.slurm.follower"
READY_S = 1500.0
"""A node whose launcher has started has so long to copy what its workers read, and to start them."""
DEAD_S = 600.0
_END_S = 10.0
_FORWARD_S = 86_400.0
"""A paused worker reads later."""


@dataclass(frozen=True)
class Walls:
    """What is known of the walls of all workers: a probe is refused where each of them was, a layer stands where it
    stands around each. `nodes`: their names, the first one first."""

    results: Mapping[str, str]
    layers: Mapping[str, bool]
    reasons: Mapping[str, str]
    nodes: tuple[str, ...]

    @property
    def hold(self) -> bool:
        return all(result == "refused" for result in self.results.values())

    def told(self) -> dict[str, Any]:
        return {"results": dict(self.results), "layers": dict(self.layers), "reasons": dict(self.reasons)}

    def and_those_of(self, said: Mapping[str, Any], node: str) -> Walls:
        results, layers = dict(said["results"]), dict(said["layers"])
        names = self.results.keys() | results.keys()
        reasons = {**{f"{layer} on {node}": why for layer, why in dict(said["reasons"]).items()}, **self.reasons}
        return Walls(
            {
                name: "refused" if (self.results.get(name), results.get(name)) == ("refused", "refused") else "open"
                for name in sorted(names)
            },
            {name: standing and layers.get(name) is True for name, standing in self.layers.items()},
            reasons,
            (*self.nodes, node),
        )


class Team:
    """`described`: the job's; `key` is its own, which the other launchers get on stdin."""

    def __init__(self, described: Description, folder: Path, key: bytes, attempt: int, node: str, code: str) -> None:
        self._described, self._code = described, code
        self._peers: dict[int, Peer] = {}
        self._names: dict[int, str] = {}
        self._ready: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._worker: Worker | None = None
        self.problem: ApplianceError | None = None
        """Why this start of the run cannot go on; `node-lost` where a node has gone without a word."""
        address = Commands(Path(described.commands), command_environment()).address(node)
        with ExitStack() as undo:
            self._arrivals = Arrivals(address, key, attempt)
            undo.callback(self._arrivals.close)
            arguments = [str(folder), str(attempt), address, str(self._arrivals.port)]
            self._steps = _start_followers(described, arguments, key)
            undo.pop_all()

    def __enter__(self) -> Team:
        return self

    def gather(self, walls: Walls) -> Walls:
        """The walls of every worker of the run, once all of them stand."""
        deadline = time.monotonic() + JOIN_S
        while len(self._peers) < self._described.nodes - 1:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"nodes: expected {self._described.nodes - 1} other launchers within {JOIN_S:.0f} s, got "
                    f"{len(self._peers)}; the nodes of a run need TCP between them",
                    code="node-network",
                )
            # One that joined and then ended says more than the end of all.
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
                raise Unavailable(f"nodes: expected their walls within {READY_S:.0f} s, got none", code="rank-silent")
            with suppress(queue.Empty):
                number, frame = self._ready.get(timeout=0.1)
                said[number] = frame
        for number in sorted(said):
            walls = walls.and_those_of(said[number], self._names[number])
        return walls

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
        threading.Thread(target=self._hear, args=(number, peer), name=f"node-{number}", daemon=True).start()

    def begin(self, go: dict[str, Any], worker: Worker) -> None:
        """Has every other node train along with this worker, which is rank 0."""
        self._worker = worker
        for peer in self._peers.values():
            peer.send(go)

    def forward(self, header: dict[str, Any], blob: bytes) -> None:
        """What rank 0 sends to a rank on another node."""
        rank = header.get("rank")
        number = rank // self._described.ranks_here if isinstance(rank, int) else 0
        if number not in self._peers:
            raise Tampered(f"worker: expected a rank on another node, got {rank!r:.20}")
        self._peers[number].send(header, blob)

    def say(self, word: str) -> None:
        """`pause` or `resume`, to all."""
        for peer in self._peers.values():
            with suppress(Unavailable):
                peer.send({"frame": word})

    def _hear(self, number: int, peer: Peer) -> None:
        """All that one other node says."""
        problem: ApplianceError = Unavailable(
            f"node {self._names[number]}: expected it to train to the last step, got its end", code=LOST
        )
        try:
            while (frame := peer.receive()) is not None:
                header, blob = frame
                if header["frame"] == "walls":
                    self._ready.put((number, header))
                elif header["frame"] == "failed":
                    problem = Unavailable(
                        f"node {self._names[number]}: {header.get('message')!s:.1000}", code=str(header.get("code"))
                    )
                    break
                elif header["frame"] == "rank" and self._worker is not None:
                    # That rank 0 has ended is seen where its frames are read.
                    with suppress(Unavailable):
                        self._worker.send({"frame": "rank", "rank": header.get("rank")}, blob, timeout_s=_FORWARD_S)
        except ApplianceError as error:
            problem = error
        if self.problem is None:
            self.problem = problem

    def await_slurm(self) -> None:
        """After a node has gone: Slurm ends the job, and this launcher with it, once it knows that the node is dead.
        Returns where only the launcher there had ended, or Slurm takes too long."""
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


def _start_followers(described: Description, arguments: list[str], key: bytes) -> subprocess.Popen[bytes]:
    """A launcher on each node of the job but this one. The key comes on stdin, as it came here."""
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
