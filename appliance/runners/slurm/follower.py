"""What a job runs on each of its nodes but the first: a worker for each rank there, inside the same walls.

It speaks with the first node's launcher alone, and puts nothing into the shared folder but its workers' logs. It trains
nothing before the first node says `go`, which the service said first.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, Unavailable
from appliance.runners import local
from appliance.runners.host import digest_code
from appliance.runners.slurm import folder as names
from appliance.runners.slurm import peer as connections
from appliance.runners.slurm.folder import Description
from appliance.runners.slurm.inputs import fetch_inputs, read_blob
from appliance.runners.slurm.node import WALLS_S, read_description, start_worker
from appliance.runners.slurm.outbox import Outbox
from appliance.runners.slurm.peer import Peer
from appliance.runners.slurm.scratch import private_folder
from appliance.runners.slurm.team import Walls


class Follower:
    """One node's part of a run. `number`: of the node, from 1."""

    def __init__(self, folder: Path, key: bytes, attempt: int, number: int, peer: Peer) -> None:
        self._folder, self._attempt, self._number, self._peer = folder, attempt, number, peer
        self._described: Description = read_description(folder, key)
        self._workers: dict[int, local.Worker] = {}
        self._outboxes: dict[int, Outbox] = {}

    def run(self, stack: ExitStack) -> None:
        described, name = self._described, node_name()
        job = int(os.environ["SLURM_JOB_ID"])
        scratch = stack.enter_context(private_folder(described.scratch, name, job, self._attempt))
        read = fetch_inputs(self._folder, described, scratch)
        first = self._number * described.ranks_here
        write: dict[int, list[Path]] = {}
        walls: Walls | None = None
        for rank in range(first, first + described.ranks_here):
            home, *write[rank] = _make_folders(scratch / f"rank-{rank}", described.writes)
            log = self._folder / names.ATTEMPTS / str(self._attempt) / names.log_of(rank)
            started = start_worker(stack, described, self._folder, read, [home, *write[rank]], log)
            results = started.check_walls(WALLS_S)
            self._workers[rank] = started
            found = Walls(results, started.layers, started.reasons, (name,))
            walls = found if walls is None else walls.and_those_of(found.told(), name)
        assert walls is not None
        self._peer.send({"frame": "walls", **walls.told()})
        go = self._peer.receive()
        if go is None or go[0]["frame"] != "go" or not walls.hold:
            return
        blob = read_blob(self._folder, go[0].get("blob"), scratch)
        for rank, started in self._workers.items():
            task = {"frame": "go", **dict(names.place_paths(go[0]["task"], read, write[rank])), "rank": rank}
            started.send(task, blob, timeout_s=WALLS_S)
            self._outboxes[rank] = Outbox(started, f"to-rank-{rank}")
            threading.Thread(target=self._pass_out, args=(rank, started), name=f"rank-{rank}", daemon=True).start()
        self._pass_in()

    def _pass_in(self) -> None:
        """Frames of the first node, until it says the end or has gone. A worker that is paused delays none of them."""
        while (frame := self._peer.receive()) is not None and frame[0]["frame"] != "end":
            header, blob = frame
            if header["frame"] == "rank" and (outbox := self._outboxes.get(header.get("rank", 0))) is not None:
                outbox.put(header, blob)
            elif header["frame"] in ("pause", "resume"):
                for outbox in self._outboxes.values():
                    (outbox.pause if header["frame"] == "pause" else outbox.resume)()

    def _pass_out(self, rank: int, started: local.Worker) -> None:
        """Frames of one worker. One that ends without a result ends the run."""
        try:
            while (frame := started.receive()) is not None:
                header, blob = frame
                if header.get("frame") == "rank":
                    self._peer.send({"frame": "rank", "rank": rank}, blob)
                elif header.get("frame") == "failure":
                    self._fail(str(header.get("code")), f"rank {rank}: {header.get('message')!s:.1000}")
                    return
                elif header.get("frame") == "result":
                    return
            code = started.wait(local._KILL_S)
            self._fail("rank-ended", f"rank {rank}: expected it to train to the last step, got its end with {code}")
        except ApplianceError as error:
            self._fail(error.code, f"rank {rank}: {error.message}")

    def _fail(self, code: str, message: str) -> None:
        with suppress(ApplianceError):
            self._peer.send({"frame": "failed", "code": code, "message": message})


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _make_folders(place: Path, writes: int) -> list[Path]:
    """A worker's home, and the folders that its task names."""
    place.mkdir(mode=0o700)
    made = [place / name for name in ("home", *(f"write-{number}" for number in range(writes)))]
    for path in made:
        path.mkdir(mode=0o700)
    return made


def main(arguments: list[str]) -> int:
    """Arguments: the job's folder, which start of the job this is, and the first node's address and port. The first
    line of stdin is the job's key."""
    folder, attempt, address, port = Path(arguments[0]), int(arguments[1]), arguments[2], int(arguments[3])
    key = bytes.fromhex(sys.stdin.readline().strip())
    number = int(os.environ["SLURM_PROCID"]) + 1
    # By which Slurm warns of a preemption: the first node's launcher acts on it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    said: dict[str, Any] = {"number": number, "node": node_name(), "code": digest_code()}
    peer = connections.join(address, port, key, attempt, said)
    with ExitStack() as stack:
        stack.callback(peer.close)
        try:
            Follower(folder, key, attempt, number, peer).run(stack)
        except ApplianceError as error:
            print(f"node {number}: {error.code}: {error.message}", file=sys.stderr, flush=True)
            with suppress(Unavailable):
                peer.send({"frame": "failed", "code": error.code, "message": error.message})
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ApplianceError as error:
        sys.exit(f"{error.code}: {error.message}")
