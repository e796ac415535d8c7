"""What a job runs on its node: copies and hashes what the worker reads, starts the worker inside its walls, and passes
frames between it and the shared folder.

It holds the job's own key, which comes in the job's script, and no other. It trains nothing before the service has
answered its walls with `go`, and it does nothing where the job has finished before. SIGUSR1 and SIGTERM, by which Slurm
says that it will take the node away, ask the worker for a training checkpoint; it then trains on until it is killed.
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

from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.runners import local
from appliance.runners.decoys import Probes
from appliance.runners.host import digest_code
from appliance.runners.output import list_output, open_output, read_output
from appliance.runners.sandbox import Sandbox
from appliance.runners.slurm import folder as names
from appliance.runners.slurm.folder import Description, Record, encode_record, label_of, parse_record
from appliance.runners.slurm.inputs import fetch_inputs, read_blob
from appliance.runners.slurm.objects import put_file
from appliance.runners.slurm.peer import LOST
from appliance.runners.slurm.scratch import private_folder
from appliance.runners.slurm.spool import SpoolReader, SpoolWriter, shared_errors
from appliance.runners.slurm.team import Team, Walls

LOOK_S = 0.1
WALLS_S = 120.0
GO_S = 3600.0
"""A service that is not there has so long to come back before the node is given up."""
WITH_FILES = frozenset({"checkpoint", "result"})
OTHER_CODE = "other-code"


class Node:
    """One start of the job. `folder` is the job's own, in the shared folder."""

    def __init__(self, folder: Path, key: bytes, job: int, attempt: int, asked: threading.Event) -> None:
        self._folder, self._key, self._job, self._attempt, self._asked = folder, key, job, attempt, asked
        self._own_up(job)
        self.description: Description = read_description(folder, key)
        place = folder / names.ATTEMPTS / str(attempt)
        with shared_errors(str(place)):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._out = SpoolWriter(place, names.OUT, key, label_of(attempt, names.OUT))
        self._in = SpoolReader(place, names.IN, key, label_of(attempt, names.IN))
        self._put: dict[tuple[int, str], int] = {}
        self._looked = 0.0
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self.say({"frame": "hello", "job": job, "node": self._node, "code": digest_code()})

    def _own_up(self, job: int) -> None:
        """One job of Slurm has the folder: where the answer to a submission was lost, there may be two. The file gets
        its name once its bytes are on disk: a node may die at any line, and the job's next start begins here again."""
        mine = f".{names.OWNER}-{job}-"
        partial = self._folder / f"{mine}{secrets.token_hex(8)}"
        with shared_errors(names.OWNER):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, str(job).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # Another start of the same job may have been quicker, and have removed this file.
            with suppress(FileExistsError, FileNotFoundError):
                os.link(partial, self._folder / names.OWNER)
            for left in self._folder.glob(f"{mine}*"):
                left.unlink(missing_ok=True)
        with shared_errors(names.OWNER):
            found = read_output(self._folder, names.OWNER, names.MAX_OWNER_BYTES)
        if found != str(job).encode():
            raise BadInput(f"job {job}: expected a folder of its own, got that of job {found[:20]!r}")

    def say(self, record: Record) -> None:
        self._out.append(encode_record(record))

    def fail(self, error: ApplianceError) -> None:
        """A node that is lost is no failure of the run: the service starts it again."""
        if error.code == LOST:
            self.say({"frame": "ended", "code": None, "why": error.message})
            return
        self.say({"frame": "frame", "header": {"frame": "failure", "code": error.code, "message": error.message}})

    def run(self, stack: ExitStack) -> bool:
        """Whether the worker has said its last word: a result, or why there is none."""
        told = self.description
        if told.code != (mine := digest_code()):
            raise Unavailable(f"node: expected the service's code {told.code}, got {mine}", code=OTHER_CODE)
        # The other nodes copy and start at the same time.
        team = None
        if told.nodes > 1:
            team = stack.enter_context(Team(told, self._folder, self._key, self._attempt, self._node, mine))
        scratch = stack.enter_context(private_folder(told.scratch, self._node, self._job, self._attempt))
        read = fetch_inputs(self._folder, told, scratch, lambda size: self.say({"frame": "copied", "bytes": size}))
        home, *write = [scratch / name for name in ("home", *(f"write-{number}" for number in range(told.writes)))]
        for path in (home, *write):
            path.mkdir(mode=0o700)
        log = self._folder / names.ATTEMPTS / str(self._attempt) / names.LOG
        started = start_worker(stack, told, self._folder, read, [home, *write], log)
        walls = Walls(started.check_walls(WALLS_S), started.layers, started.reasons, (self._node,))
        if team is not None:
            walls = team.gather(walls)
        self.say({"frame": "walls", **walls.told(), "nodes": list(walls.nodes)})
        go = self._wait_for_go()
        if go is None or not walls.hold:
            return True
        blob = read_blob(self._folder, go.get("blob"), scratch)
        if team is not None:
            team.begin(go, started)
        task = {"frame": "go", **dict(names.place_paths(go["task"], read, write))}
        started.send(task, blob, timeout_s=WALLS_S)
        return self._pass_frames(started, write, team)

    def _wait_for_go(self) -> Record | None:
        """None where the service ended the job instead."""
        deadline = time.monotonic() + GO_S
        while time.monotonic() < deadline:
            record = self._take()
            if record is None:
                time.sleep(LOOK_S)
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
        while self._goes_on(started, team, passing):
            try:
                received = started.receive(LOOK_S)
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
            files = self._leave(write) if header.get("frame") in WITH_FILES else []
            self.say({"frame": "frame", "header": header, "files": files})
            if header.get("frame") == "checkpoint":
                self._forget(write, files)
            if header.get("frame") in ("result", "failure"):
                return True
        return True

    def _goes_on(self, started: local.Worker, team: Team | None, passing: bool) -> bool:
        """Does what the service and Slurm have asked for; False where the service has ended the job. The shared folder
        is slow: it is not looked at for each message between ranks."""
        if not passing or time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if (record := self._take()) is not None and not self._obey(started, record, team):
                return False
        if team is not None and team.problem is not None:
            self._give_up(started, team, team.problem)
        if self._asked.is_set():
            self._asked.clear()
            self._ask(started)
        return True

    def _give_up(self, started: local.Worker, team: Team, problem: ApplianceError) -> NoReturn:
        """Another node has failed, or has gone. The worker has no use without it."""
        started.kill()
        if problem.code == LOST:
            team.await_slurm()
        raise problem

    def _obey(self, started: local.Worker, record: Record, team: Team | None) -> bool:
        """Whether the worker goes on."""
        if team is not None and record["frame"] in ("pause", "resume"):
            team.say(record["frame"])
        acts: dict[str, Callable[[], None]] = {
            "pause": started.pause,
            "resume": started.resume,
            "checkpoint": lambda: self._ask(started),
        }
        if record["frame"] == "end":
            return False
        acts.get(record["frame"], lambda: None)()
        return True

    def _ask(self, started: local.Worker) -> None:
        """A worker that does not read, or has just ended, has nothing to keep."""
        with suppress(Unavailable):
            started.send({"frame": "checkpoint"}, timeout_s=1.0)

    def _leave(self, write: list[Path]) -> list[dict[str, Any]]:
        """Puts what the worker wrote since into the job's objects."""
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
                    digest, size = put_file(descriptor, self._folder / names.OBJECTS)
                finally:
                    os.close(descriptor)
                self._put[number, name] = changed
                found.append({"folder": number, "path": name, "size": size, "digest": digest})
        if len(found) > names.MAX_FILES:
            raise Tampered(f"worker: expected at most {names.MAX_FILES} files with one frame, got {len(found)}")
        return found

    def _forget(self, write: list[Path], files: list[dict[str, Any]]) -> None:
        """A training checkpoint that has crossed takes no more room here."""
        for file in files:
            (write[file["folder"]] / file["path"]).unlink(missing_ok=True)


def read_description(folder: Path, key: bytes) -> Description:
    description = SpoolReader(folder, names.JOB, key, names.JOB).take()
    if description is None:
        raise Unavailable(f"job {folder}: expected its description, got none")
    return names.parse_description(description)


def start_worker(
    stack: ExitStack, told: Description, folder: Path, read: list[Path], write: list[Path], log: Path
) -> local.Worker:
    """The job's worker inside its walls. Beside the usual probes it tries to reach the shared folder."""
    probes = Probes(read={"read-shared": folder / names.JOB}, write={"write-shared": folder})
    return stack.enter_context(
        local.start_worker(
            told.module,
            Sandbox(read=tuple(read), write=tuple(write), devices=told.gpu),
            log=log,
            accepted_missing=frozenset(told.accepted_missing),
            probes=probes,
        )
    )


def main(arguments: list[str]) -> int:
    """Arguments: the job's folder. The first line of stdin is the job's key."""
    folder = Path(arguments[0])
    key = bytes.fromhex(sys.stdin.readline().strip())
    job, attempt = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if (folder / names.FINISHED).exists():
        print(f"job {job}: it has finished before; nothing is done", flush=True)
        return 0
    asked = threading.Event()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    node = Node(folder, key, job, attempt, asked)
    with ExitStack() as stack:
        try:
            done = node.run(stack)
        except ApplianceError as error:
            print(f"job {job}: {error.code}: {error.message}", file=sys.stderr, flush=True)
            node.fail(error)
            return 1
    if done:
        # A service that has the result may have removed the folder already.
        with shared_errors(names.FINISHED), suppress(FileNotFoundError):
            (folder / names.FINISHED).touch(mode=0o600)
    return 0 if done else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ApplianceError as error:
        sys.exit(f"{error.code}: {error.message}")
