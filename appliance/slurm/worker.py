"""One start of a job as seen by the service: the frames of a remote worker, read from the shared folder.

Everything from the node is untrusted: records are authenticated with the job's key, frames are parsed like those of a
local worker, and files are hashed while they are copied. The node starts its task once `send` has written `go`, which
the workflow does after the entry was appended. When the service ends, the job continues, and the next start of the
service finds it again.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, Tampered, TooLarge, Unavailable
from appliance.sandbox.description import LAYERS
from appliance.sandbox.escape_targets import ALWAYS
from appliance.sandbox.host import Frame
from appliance.sandbox.output import ConfinedPath, append_foreign
from appliance.slurm.cluster import UNREACHABLE, Cluster
from appliance.slurm.commands import WORD, SlurmJob
from appliance.slurm.folder import (
    ATTEMPTS,
    IN,
    LOG,
    OBJECTS,
    OUT,
    JobRecord,
    Record,
    attempts_of,
    encode_record,
    job_folder,
    label_of,
    log_of,
    map_paths,
    parse_left,
    parse_record,
)
from appliance.slurm.objects import get_file, put_file
from appliance.slurm.spool import SpoolReader, SpoolWriter

POLL_S = 0.1
STATUS_S = 2.0
START_S = 1800.0
SETTLES_S = 5.0
"""Seconds between two queries that both find the job over, since the node's last records may arrive late."""
PROBES = ALWAYS | {"read-shared", "write-shared"}
MOST_FILE_BYTES = 16 << 30
_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")
_MOST_MESSAGE = 1000
_RECORD_KINDS = frozenset({"hello", "copied", "sandbox", "frame", "ended"})


class ClusterWorker:
    """A worker that runs as a Slurm job.

    `read` and `write` are the service's own folders in the task; files that the worker writes on its node appear in
    `write`. `report_state` is called with Slurm's messages on a waiting job. `skip` is the last step whose frames an
    earlier run of the service has taken.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: JobRecord,
        *,
        code: str,
        read: tuple[Path, ...],
        write: tuple[Path, ...],
        log: Path,
        skip: int = 0,
        nodes: int = 1,
        ranks_here: int = 1,
        report_state: Callable[[str], None] = lambda text: None,
        most_bytes: int = MOST_FILE_BYTES,
    ) -> None:
        if record.job is None:
            raise Tampered(f"job {record.key}: expected its number, got none")
        self.layers: Mapping[str, bool] = {}
        self.pid = record.job
        self.attempt: int | None = None
        self.node = ""
        self.nodes: tuple[str, ...] = ()
        """Names of all nodes of the job, the first one first, known after `check_sandbox`."""
        self.begun = False
        """True if the task was given before this service started."""
        self._cluster, self._record, self._code = cluster, record, code
        self._folder, self._secret = job_folder(record.folder), bytes.fromhex(record.secret)
        self._read, self._write, self._log, self._skip, self._report_state = read, write, log, skip, report_state
        self._most_bytes = most_bytes
        self._wanted, self._ranks_here = nodes, ranks_here
        self._out: SpoolReader | None = None
        self._in: SpoolWriter | None = None
        self._sending = threading.Lock()
        self._killed = threading.Event()
        self._lock = threading.Lock()
        self._ends = False
        self._taken: list[str] = []
        self._job: SlurmJob | None = None
        self._looked = 0.0
        self._over_since: float | None = None
        self._gone_since: float | None = None

    # --- what the node says -------------------------------------------------------------------------------------------

    def check_sandbox(self, timeout_s: float = 60.0) -> dict[str, str]:
        """Return {probe: "refused" or "open"}; a probe that the node did not report is open.

        This waits as long as the job is queued in Slurm, and then half an hour between two signs of life, such as a
        copied file.
        """
        while (record := self._next(max(timeout_s, START_S))) is not None:
            if record["frame"] == "hello":
                self._greet(record)
            elif record["frame"] == "sandbox":
                return self._check_results(record)
            elif record["frame"] == "frame":
                raise _failure(record)
            elif record["frame"] == "ended":
                break
        raise Unavailable(f"{self._name}: expected its sandbox probes first, got its end", code="worker-ended")

    def _greet(self, hello: Record) -> None:
        node = hello.get("node")
        if not _is_word(node):
            raise BadInput(f"{self._name}: expected the name of its node, got {node!r:.80}")
        if hello.get("job") != self.pid:
            raise Tampered(f"{self._name}: expected its own node, got that of job {hello.get('job')!r:.20}")
        if hello.get("code") != self._code:
            raise Unavailable(
                f"{self._name} on {node}: expected the code that the service runs ({self._code}), got another; "
                "install the same version there",
                code="other-code",
            )
        self.node = str(node)

    def _check_results(self, record: Record) -> dict[str, str]:
        results, layers = record.get("results"), record.get("layers")
        if not isinstance(results, dict) or not isinstance(layers, dict):
            raise BadInput(f"{self._name}: expected results and layers of its sandbox, got others")
        nodes = record.get("nodes")
        if not isinstance(nodes, list) or len(nodes) != self._wanted or not all(map(_is_word, nodes)):
            raise BadInput(
                f"{self._name}: expected the sandbox reports of {self._wanted} nodes, got those of {nodes!r:.200}"
            )
        self.nodes = tuple(nodes)
        self.layers = {name: layers.get(name) is True for name in sorted(LAYERS)}
        return {name: "refused" if results.get(name) == "refused" else "open" for name in sorted(PROBES)}

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """Return the next frame of the worker, after its files were copied to `write`; None if it was killed here.

        Raises:
            Unavailable: the job has ended; the message has Slurm's reason.
        """
        self._drop_taken()
        while (record := self._next(timeout_s)) is not None:
            if record["frame"] == "ended":
                self._finish_attempt()
                why = record.get("why")
                said = str(why)[:_MOST_MESSAGE] if why else f"exit code {record.get('code')!r:.20}; its log says more"
                raise self._end(said, None)
            header = record.get("header")
            if record["frame"] != "frame":
                continue
            if not isinstance(header, dict):
                raise BadInput(f"{self._name}: expected a frame of its worker, got none")
            step = header.get("step")
            if header.get("frame") in ("step", "checkpoint") and isinstance(step, int) and step <= self._skip:
                continue
            self._take_files(record)
            return header, b""
        return None

    def _next(self, timeout_s: float | None) -> Record | None:
        """Return the next record."""
        last_contact = time.monotonic()
        while not self._killed.is_set():
            if (payload := self._take()) is not None:
                record = parse_record(payload)
                if record["frame"] not in _RECORD_KINDS:
                    raise BadInput(f"{self._name}: expected a known record, got {record['frame'][:40]!r}")
                return record
            if self._is_superseded():
                self._finish_attempt()
                raise self._end("Slurm has started it again", None)
            running = self._watch()
            if running is False:
                last_contact = time.monotonic()  # the job is queued or suspended
            if timeout_s is not None and time.monotonic() - last_contact > timeout_s:
                raise Unavailable(
                    f"{self._name}: expected a sign of life within {timeout_s:.0f} s, got none", code="worker-silent"
                )
            self._killed.wait(POLL_S)
        return None

    def _take(self) -> bytes | None:
        if self._out is None:
            later = [number for number in attempts_of(self._folder) if number > self._record.done]
            if not later:
                return None
            self._open(later[-1])
        assert self._out is not None
        return self._out.take()

    def _open(self, attempt: int) -> None:
        place = self._folder / ATTEMPTS / str(attempt)
        self.attempt = attempt
        self._out = SpoolReader(place, OUT, self._secret, label_of(attempt, OUT))
        self._in = SpoolWriter(place, IN, self._secret, label_of(attempt, IN))
        self.begun = self._in.number > 0

    def _is_superseded(self) -> bool:
        return self.attempt is not None and attempts_of(self._folder)[-1:] > [self.attempt]

    def _watch(self) -> bool | None:
        """Query Slurm every few seconds; return True if the job runs, None if that is unknown."""
        now = time.monotonic()
        if now - self._looked < STATUS_S:
            return None if self._job is None else self._job.runs
        self._looked = now
        try:
            job = self._cluster.look(self._record)
        except Unavailable as error:
            self._wait_for_controller(error, now)
            return None
        self._gone_since = None
        if job is None or job.over:
            self._over_since = now if self._over_since is None else self._over_since
            if now - self._over_since >= SETTLES_S:
                self._finish_attempt()
                raise self._end("Slurm knows it no more" if job is None else job.state_text, job)
            return None
        self._over_since = None
        if self._job is None or job.state_text != self._job.state_text:
            self._report_state(f"job {self.pid}: {job.state_text}")
        self._job = job
        return job.runs

    def _wait_for_controller(self, error: Unavailable, now: float) -> None:
        if error.code != UNREACHABLE:
            raise error
        if self._gone_since is None:
            self._gone_since = now
            self._report_state(f"job {self.pid}: slurmctld does not answer")
        patience = self._cluster.site.patience_s
        if now - self._gone_since > patience:
            raise Unavailable(
                f"{self._name}: expected slurmctld to answer within {patience / 60:.0f} minutes, got nothing; once it "
                "answers, resume the run",
                code=UNREACHABLE,
            ) from None

    def _finish_attempt(self) -> None:
        """Record that this start was read to its end; the next worker is another start or another job."""
        if self.attempt is not None and self.attempt > self._record.done:
            self._record = self._record.model_copy(update={"done": self.attempt})
            self._cluster.records.keep(self._record)

    def _end(self, how: str, job: SlurmJob | None) -> Unavailable:
        """Return the error for the end of the job. A job that ended before its sandbox report is not submitted
        again."""
        code, states = "worker-ended", frozenset[str]() if job is None else job.states
        if "CANCELLED" in states:
            code = "slurm-cancelled"
        elif "OUT_OF_MEMORY" in states:
            code = "out-of-memory"
        elif "DEADLINE" in states:
            code = "slurm-deadline"
        elif states and not self.layers:
            code = "slurm-job"
        where = f" on {self.node}" if self.node else ""
        return Unavailable(f"{self._name}{where}: expected a result, got its end: {how}", code=code)

    # --- its files ----------------------------------------------------------------------------------------------------

    def _take_files(self, record: Record) -> None:
        for left in parse_left(record.get("files", [])):
            if left.folder >= len(self._write) or left.size > self._most_bytes:
                raise TooLarge(
                    f"{self._name}, {left.path!r:.80}: expected a file of at most {self._most_bytes} bytes in one of "
                    f"{len(self._write)} folders, got {left.size} bytes in folder {left.folder}"
                )
            parts = Path(left.path).parts
            if not parts or any(part in ("/", "..") or part.startswith(".") for part in parts) or len(parts) > 8:
                raise Tampered(f"{self._name}: expected a plain relative path of its file, got {left.path!r:.80}")
            self._check_room(left.size)
            target = self._write[left.folder] / left.path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            get_file(self._folder / OBJECTS, left.digest, left.size, target)
            self._taken.append(left.digest)

    def _drop_taken(self) -> None:
        """Delete the transferred files of the last frame, when the next one is requested.

        By then the last frame has its entry, and a restarted service skips it.
        """
        for digest in self._taken:
            with suppress(ApplianceError, OSError), (self._folder / OBJECTS).opened() as objects:
                os.unlink(digest.removeprefix("sha256:"), dir_fd=objects)
        self._taken.clear()

    def _check_room(self, size: int) -> None:
        found = os.statvfs(self._write[0])
        if size > found.f_bavail * found.f_frsize:
            raise Unavailable(
                f"{self._name}: expected room for {size} bytes on the service's disk, got less", code="disk"
            )

    # --- what the service says ----------------------------------------------------------------------------------------

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float = 60.0) -> None:
        """Send the task with the training checkpoint to resume from, unless it was given before."""
        if self.begun:
            return
        described = self._put_blob(blob) if blob else None
        task = map_paths({name: value for name, value in header.items() if name != "frame"}, self._read, self._write)
        self._say({"frame": "go", "task": task, "blob": described})

    def _put_blob(self, blob: bytes) -> dict[str, Any]:
        path = self._write[0] / ".go"
        path.write_bytes(blob)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            digest, size = put_file(descriptor, self._folder / OBJECTS)
        finally:
            os.close(descriptor)
            path.unlink()
        return {"digest": digest, "size": size}

    def _say(self, record: Record) -> None:
        with self._sending:
            if self._in is not None:
                self._in.append(encode_record(record))

    def pause(self) -> None:
        """Pause the worker on its node until `resume`; one without a task waits anyway."""
        self._order("pause")

    def resume(self) -> None:
        self._order("resume")

    def checkpoint(self) -> None:
        """Request a training checkpoint after the current step."""
        self._order("checkpoint")

    def _order(self, word: str) -> None:
        """Send a request; if the folder is unavailable, do nothing, since nothing can be read from it either."""
        if self._in is not None and self._in.number:
            with suppress(Unavailable):
                self._say({"frame": word})

    def end(self) -> None:
        """Do what `kill` does, in a thread, since the shared folder may be slow or unavailable."""
        with self._lock:
            begun, self._ends = self._ends, True
        if not begun:
            threading.Thread(target=self.kill, name=f"end-{self.pid}", daemon=True).start()

    def kill(self) -> None:
        """End the worker, unless the service itself ends: then its job continues and is found again."""
        if not self._cluster.closing.is_set():
            with suppress(Unavailable):
                self._say({"frame": "end"})
        self._killed.set()

    def wait(self, timeout_s: float | None = None) -> int:
        """Return the exit code of a killed worker at once; the service does not wait for nodes."""
        return 128 + 9

    def close(self) -> None:
        """Copy the job's logs into the log of the worker and close files. `Cluster.release` ends the job."""
        for folder, name in self._logs():
            with suppress(ApplianceError):
                append_foreign(self._log, folder, name)
        with self._sending:
            if self._in is not None:
                self._in.close()
                self._in = None

    def _logs(self) -> list[tuple[ConfinedPath, str]]:
        place = self._folder / ATTEMPTS / str(self.attempt)
        far = range(self._ranks_here, self._wanted * self._ranks_here)
        beside = [(place, LOG), *((place, log_of(rank)) for rank in far)]
        return [(self._folder, LOG), *(beside if self.attempt is not None else [])]

    @property
    def _name(self) -> str:
        return f"slurm, job {self.pid}"

    def __enter__(self) -> ClusterWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_word(name: object) -> bool:
    return isinstance(name, str) and WORD.fullmatch(name) is not None


def _failure(record: Record) -> ApplianceError:
    """Return the error that the launcher on the node reported."""
    header = record.get("header")
    header = header if isinstance(header, dict) else {}
    code, message = str(header.get("code")), str(header.get("message"))[:_MOST_MESSAGE]
    kind = Tampered if code == Tampered.code else Unavailable
    return kind(f"node: {message}", code=code if _CODE.fullmatch(code) else "slurm-node")
