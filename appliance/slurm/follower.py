"""The program on each node of a job but the first: a worker for each rank, in the same sandbox.

It communicates with the launcher on the first node only, and writes only its workers' logs into the shared folder. It
starts training when the first node sends `go`, after the service has sent it.
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
from appliance.sandbox import local
from appliance.sandbox.host import digest_code
from appliance.sandbox.output import ConfinedPath
from appliance.slurm.folder import ATTEMPTS, JobDescription, job_folder, log_of, place_paths
from appliance.slurm.node import SANDBOX_CHECK_S, read_description, start_worker
from appliance.slurm.objects import fetch_inputs, private_folder, read_blob
from appliance.slurm.peer import Peer, join
from appliance.slurm.spool import Outbox
from appliance.slurm.team import SandboxReport


class NodeFollower:
    """The part of a run on one node; `number` is that of the node, from 1."""

    def __init__(self, folder: ConfinedPath, key: bytes, attempt: int, number: int, peer: Peer) -> None:
        self._folder, self._attempt, self._number, self._peer = folder, attempt, number, peer
        self._description: JobDescription = read_description(folder, key)
        self._workers: dict[int, local.Worker] = {}
        self._outboxes: dict[int, Outbox] = {}

    def run(self, stack: ExitStack) -> None:
        """Start the workers, report their sandboxes, and pass frames on until the run ends."""
        described, name = self._description, node_name()
        job = int(os.environ["SLURM_JOB_ID"])
        scratch = stack.enter_context(private_folder(described.scratch, name, job, self._attempt))
        read = fetch_inputs(self._folder, described, scratch)
        first = self._number * described.ranks_here
        write: dict[int, list[Path]] = {}
        report: SandboxReport | None = None
        for rank in range(first, first + described.ranks_here):
            home, *write[rank] = _make_folders(scratch / f"rank-{rank}", described.writes)
            log = self._folder / ATTEMPTS / str(self._attempt) / log_of(rank)
            started = start_worker(stack, described, self._folder, read, [home, *write[rank]], log)
            results = started.check_sandbox(SANDBOX_CHECK_S)
            self._workers[rank] = started
            found = SandboxReport(results, started.layers, started.reasons, (name,))
            report = found if report is None else report.combined_with(found.to_json(), name)
        assert report is not None
        self._peer.send({"frame": "sandbox", **report.to_json()})
        go = self._peer.receive()
        if go is None or go[0]["frame"] != "go" or not report.is_closed:
            return
        blob = read_blob(self._folder, go[0].get("blob"), scratch)
        for rank, started in self._workers.items():
            task = {"frame": "go", **dict(place_paths(go[0]["task"], read, write[rank])), "rank": rank}
            started.send(task, blob, timeout_s=SANDBOX_CHECK_S)
            self._outboxes[rank] = Outbox(started, f"to-rank-{rank}")
            threading.Thread(target=self._pass_out, args=(rank, started), name=f"rank-{rank}", daemon=True).start()
        self._pass_in()

    def _pass_in(self) -> None:
        """Pass on frames from the first node until it sends `end` or closes the connection; a paused worker delays
        none."""
        while (frame := self._peer.receive()) is not None and frame[0]["frame"] != "end":
            header, blob = frame
            if header["frame"] == "rank" and (outbox := self._outboxes.get(header.get("rank", 0))) is not None:
                outbox.put(header, blob)
            elif header["frame"] in ("pause", "resume"):
                for outbox in self._outboxes.values():
                    (outbox.pause if header["frame"] == "pause" else outbox.resume)()

    def _pass_out(self, rank: int, started: local.Worker) -> None:
        """Pass on the frames of one worker. If it ends without a result, the run fails."""
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
    """Create a worker's home and the folders that its task names."""
    place.mkdir(mode=0o700)
    paths = [place / name for name in ("home", *(f"write-{number}" for number in range(writes)))]
    for path in paths:
        path.mkdir(mode=0o700)
    return paths


def main(arguments: list[str]) -> int:
    """Run the follower.

    The arguments are the job's folder, the number of the job's start, and the first node's address and port. The first
    line of stdin is the job's key.
    """
    folder, attempt, address, port = job_folder(arguments[0]), int(arguments[1]), arguments[2], int(arguments[3])
    key = bytes.fromhex(sys.stdin.readline().strip())
    number = int(os.environ["SLURM_PROCID"]) + 1
    # Slurm's warning of a preemption; only the launcher on the first node acts on it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    introduction: dict[str, Any] = {"number": number, "node": node_name(), "code": digest_code()}
    peer = join(address, port, key, attempt, introduction)
    with ExitStack() as stack:
        stack.callback(peer.close)
        try:
            NodeFollower(folder, key, attempt, number, peer).run(stack)
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
