"""The program on the first node of a job: it copies and hashes inputs, starts the worker, and passes its frames on.

It holds the job's own key, from the job's script, and no other. It starts training after the service has answered the
sandbox report with `go`, and does nothing if the job has finished before. SIGUSR1 and SIGTERM, by which Slurm announces
that it will take the node away, request a training checkpoint from the worker, which then continues until it is killed.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, Unavailable
from appliance.sandbox import local
from appliance.sandbox.description import Sandbox
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.host import digest_code
from appliance.sandbox.output import ConfinedPath, list_output, open_output, read_output
from appliance.slurm.folder import (
    ATTEMPTS,
    FINISHED,
    IN,
    JOB,
    LOG,
    MAX_FILES,
    MAX_OWNER_BYTES,
    OBJECTS,
    OUT,
    OWNER,
    JobDescription,
    Record,
    encode_record,
    job_folder,
    label_of,
    parse_description,
    parse_record,
    place_paths,
)
from appliance.slurm.objects import fetch_inputs, private_folder, put_file, read_blob
from appliance.slurm.peer import LOST
from appliance.slurm.spool import SpoolReader, SpoolWriter, shared_errors
from appliance.slurm.team import SandboxReport, Team

POLL_S = 0.1
SANDBOX_CHECK_S = 120.0
GO_S = 3600.0
"""Seconds that the node waits for the service's `go` before it gives up."""
WITH_FILES = frozenset({"checkpoint", "result"})
OTHER_CODE = "other-code"


class Node:
    """One start of a job; `folder` is the job's folder in the shared folder."""

    def __init__(
        self, folder: ConfinedPath, key: bytes, job: int, attempt: int, checkpoint_requested: threading.Event
    ) -> None:
        self._folder, self._key, self._job, self._attempt, self._checkpoint_requested = (
            folder,
            key,
            job,
            attempt,
            checkpoint_requested,
        )
        self._claim_folder(job)
        self.description: JobDescription = read_description(folder, key)
        place = folder / ATTEMPTS / str(attempt)
        with shared_errors(str(place)), place.opened(make=True):
            pass
        self._out = SpoolWriter(place, OUT, key, label_of(attempt, OUT))
        self._in = SpoolReader(place, IN, key, label_of(attempt, IN))
        self._put: dict[tuple[int, str], int] = {}
        self._last_poll = 0.0
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self.say({"frame": "hello", "job": job, "node": self._node, "code": digest_code()})

    def _claim_folder(self, job: int) -> None:
        """Claim the folder for one Slurm job, since there may be two if the response to a submission was lost.

        The file gets its name once its bytes are on disk, since a node may die at any point and the next start of the
        job repeats this.
        """
        mine = f".{OWNER}-{job}-"
        partial = f"{mine}{secrets.token_hex(8)}"
        with shared_errors(OWNER), self._folder.opened() as folder:
            descriptor = self._folder.open_file(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                os.write(descriptor, str(job).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # Another start of the same job may have been faster and may have removed this file.
            with suppress(FileExistsError, FileNotFoundError):
                os.link(partial, OWNER, src_dir_fd=folder, dst_dir_fd=folder)
            for left in os.listdir(folder):
                if left.startswith(mine):
                    with suppress(FileNotFoundError):
                        os.unlink(left, dir_fd=folder)
        with shared_errors(OWNER):
            found = read_output(self._folder, OWNER, MAX_OWNER_BYTES)
        if found != str(job).encode():
            raise BadInput(f"job {job}: expected a folder of its own, got that of job {found[:20]!r}")

    def say(self, record: Record) -> None:
        """Send a record to the service."""
        self._out.append(encode_record(record))

    def fail(self, error: ApplianceError) -> None:
        """Report an error. A lost node does not fail the run: the service starts it again."""
        if error.code == LOST:
            self.say({"frame": "ended", "code": None, "why": error.message})
            return
        self.say({"frame": "frame", "header": {"frame": "failure", "code": error.code, "message": error.message}})

    def run(self, stack: ExitStack) -> bool:
        """Run the worker; return True if its last frame was sent: a result or a failure."""
        description = self.description
        if description.code != (mine := digest_code()):
            raise Unavailable(f"node: expected the service's code {description.code}, got {mine}", code=OTHER_CODE)
        # Start the other nodes first, so that they copy and start at the same time.
        team = None
        if description.nodes > 1:
            team = stack.enter_context(Team(description, self._folder, self._key, self._attempt, self._node, mine))
        scratch = stack.enter_context(private_folder(description.scratch, self._node, self._job, self._attempt))
        read = fetch_inputs(
            self._folder, description, scratch, lambda size: self.say({"frame": "copied", "bytes": size})
        )
        home, *write = [
            scratch / name for name in ("home", *(f"write-{number}" for number in range(description.writes)))
        ]
        for path in (home, *write):
            path.mkdir(mode=0o700)
        log = self._folder / ATTEMPTS / str(self._attempt) / LOG
        started = start_worker(stack, description, self._folder, read, [home, *write], log)
        report = SandboxReport(started.check_sandbox(SANDBOX_CHECK_S), started.layers, started.reasons, (self._node,))
        if team is not None:
            report = team.gather(report)
        self.say({"frame": "sandbox", **report.to_json(), "nodes": list(report.nodes)})
        go = self._wait_for_go()
        if go is None or not report.is_closed:
            return True
        blob = read_blob(self._folder, go.get("blob"), scratch)
        if team is not None:
            team.begin(go, started)
        task = {"frame": "go", **dict(place_paths(go["task"], read, write))}
        started.send(task, blob, timeout_s=SANDBOX_CHECK_S)
        return self._pass_frames(started, write, team)

    def _wait_for_go(self) -> Record | None:
        """Wait for the service's `go`; return None if the service ended the job instead."""
        deadline = time.monotonic() + GO_S
        while time.monotonic() < deadline:
            record = self._take()
            if record is None:
                time.sleep(POLL_S)
            elif record["frame"] == "go":
                return record
            elif record["frame"] == "end":
                return None
        raise Unavailable(f"node: expected the service's go within {GO_S:.0f} s, got none", code="service-silent")

    def _take(self) -> Record | None:
        payload = self._in.take()
        return None if payload is None else parse_record(payload)

    def _pass_frames(self, started: local.Worker, write: list[Path], team: Team | None) -> bool:
        passing = False
        while self._handle_requests(started, team, passing):
            try:
                received = started.receive(POLL_S)
            except Unavailable as error:
                if error.code == "worker-silent":
                    continue
                raise
            if received is None:
                self.say({"frame": "ended", "code": started.wait(local._KILL_S)})
                return False
            header = received[0]
            passing = header.get("frame") == "rank"
            if passing and team is not None:
                team.forward(header, received[1])
                continue
            files = self._collect_files(write) if header.get("frame") in WITH_FILES else []
            self.say({"frame": "frame", "header": header, "files": files})
            if header.get("frame") == "checkpoint":
                self._remove_files(write, files)
            if header.get("frame") in ("result", "failure"):
                return True
        return True

    def _handle_requests(self, started: local.Worker, team: Team | None, passing: bool) -> bool:
        """Handle requests of the service and of Slurm; return False if the service has ended the job.

        The shared folder is slow, so it is not read for each message between ranks.
        """
        if not passing or time.monotonic() - self._last_poll > POLL_S:
            self._last_poll = time.monotonic()
            if (record := self._take()) is not None and not self._carry_out(started, record, team):
                return False
        if team is not None and team.problem is not None:
            self._give_up(started, team, team.problem)
        if self._checkpoint_requested.is_set():
            self._checkpoint_requested.clear()
            self._request_checkpoint(started)
        return True

    def _give_up(self, started: local.Worker, team: Team, problem: ApplianceError) -> NoReturn:
        """Stop the worker because another node has failed or is lost, and raise the error."""
        started.kill()
        if problem.code == LOST:
            team.await_slurm()
        raise problem

    def _carry_out(self, started: local.Worker, record: Record, team: Team | None) -> bool:
        """Carry out a request of the service; return False if the worker must end."""
        if team is not None and record["frame"] in ("pause", "resume"):
            team.say(record["frame"])
        acts: dict[str, Callable[[], None]] = {
            "pause": started.pause,
            "resume": started.resume,
            "checkpoint": lambda: self._request_checkpoint(started),
        }
        if record["frame"] == "end":
            return False
        acts.get(record["frame"], lambda: None)()
        return True

    def _request_checkpoint(self, started: local.Worker) -> None:
        """Request a training checkpoint; a worker that does not read, or has ended, is ignored."""
        with suppress(Unavailable):
            started.send({"frame": "checkpoint"}, timeout_s=1.0)

    def _collect_files(self, write: list[Path]) -> list[dict[str, Any]]:
        """Copy the files that the worker has changed into the job's objects and return their descriptions."""
        found = []
        for number, path in enumerate(write):
            for name in list_output(path):
                if name.endswith("/"):
                    continue
                descriptor = open_output(path, name)
                try:
                    changed = os.fstat(descriptor).st_mtime_ns
                    if self._put.get((number, name)) == changed:
                        continue
                    digest, size = put_file(descriptor, self._folder / OBJECTS)
                finally:
                    os.close(descriptor)
                self._put[number, name] = changed
                found.append({"folder": number, "path": name, "size": size, "digest": digest})
        if len(found) > MAX_FILES:
            raise Tampered(f"worker: expected at most {MAX_FILES} files with one frame, got {len(found)}")
        return found

    def _remove_files(self, write: list[Path], files: list[dict[str, Any]]) -> None:
        """Delete the local files of a transferred training checkpoint."""
        for file in files:
            (write[file["folder"]] / file["path"]).unlink(missing_ok=True)


def read_description(folder: ConfinedPath, key: bytes) -> JobDescription:
    """Read the job's description from its folder.

    Raises:
        Unavailable: there is none.
    """
    description = SpoolReader(folder, JOB, key, JOB).take()
    if description is None:
        raise Unavailable(f"job {folder}: expected its description, got none")
    return parse_description(description)


def start_worker(
    stack: ExitStack,
    description: JobDescription,
    folder: ConfinedPath,
    read: list[Path],
    write: list[Path],
    log: ConfinedPath,
) -> local.Worker:
    """Start the job's worker in its sandbox; it also tests that it cannot reach the shared folder."""
    probes = Probes(read={"read-shared": (folder / JOB).path}, write={"write-shared": folder.path})
    return stack.enter_context(
        local.start_worker(
            description.module,
            Sandbox(read=tuple(read), write=tuple(write), devices=description.gpu),
            log=log,
            accepted_missing=frozenset(description.accepted_missing),
            probes=probes,
        )
    )


def main(arguments: list[str]) -> int:
    """Run the node; the argument is the job's folder, and the first line of stdin is the job's key."""
    folder = job_folder(arguments[0])
    key = bytes.fromhex(sys.stdin.readline().strip())
    job, attempt = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if FINISHED in folder.names():
        print(f"job {job}: it has finished before; nothing is done", flush=True)
        return 0
    checkpoint_requested = threading.Event()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: checkpoint_requested.set())
    node = Node(folder, key, job, attempt, checkpoint_requested)
    with ExitStack() as stack:
        try:
            done = node.run(stack)
        except ApplianceError as error:
            print(f"job {job}: {error.code}: {error.message}", file=sys.stderr, flush=True)
            node.fail(error)
            return 1
    if done:
        # The service may have removed the folder already after reading the result.
        with shared_errors(FINISHED), suppress(NotFound):
            os.close(folder.open_file(FINISHED, os.O_WRONLY | os.O_CREAT))
    return 0 if done else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ApplianceError as error:
        sys.exit(f"{error.code}: {error.message}")
