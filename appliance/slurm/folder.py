"""The shared folder of a job, the messages in it, and the service's records of its jobs.

    FOLDER/job                   one record: the description
    FOLDER/attempts/N/out        records of the node: hello, sandbox, the worker's frames with the files that belong to
        them
    FOLDER/attempts/N/in         records of the service: go, pause, resume, checkpoint, end
    FOLDER/objects/HEX           files of this job, by digest
    FOLDER/owner                 the number of the Slurm job that owns the folder
    FOLDER/finished              marks that the worker has sent its last frame: another start of the job does nothing
    FOLDER/log                   the output of the job itself
    objects/HEX                  files that several jobs read

N counts the starts of the job: it is requeued if its node dies or another job is more urgent.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.frame import read_frame, write_frame
from appliance.sandbox.output import ConfinedPath, read_output

JOBS = "jobs"
"""Folder below the shared folder that holds the folders of all jobs."""
ATTEMPTS, OBJECTS, JOB, LOG, OWNER, FINISHED = "attempts", "objects", "job", "log", "owner", "finished"
IN, OUT = "in", "out"
MAX_FILES = 64
"""Maximum number of files with one frame of a worker."""

MAX_OWNER_BYTES = 10
"""Maximum length of a job's number."""
_MAX_ATTEMPTS = 10_000
_MAX_RECORD_BYTES = 1 << 20
_DIGEST = r"^sha256:[0-9a-f]{64}$"

log = logging.getLogger("appliance")

Record = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TransferredFile(_Strict):
    """A file that is transferred; `path` is relative to its folder."""

    path: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=0)
    digest: str = Field(pattern=_DIGEST)


class WorkerFile(TransferredFile):
    """A file that a worker wrote into one of its writable folders, which is given by number."""

    folder: int = Field(ge=0, le=15)


class Input(_Strict):
    """A sealed folder that the worker reads."""

    name: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: tuple[TransferredFile, ...]


class JobDescription(_Strict):
    """The description of a job for its nodes.

    `code` is the digest of the code that service and nodes must run, `writes` the number of writable folders, and
    `scratch` the parent of the node's folders. `nodes` is the number of nodes, each with `ranks_here` ranks, and
    `commands` the folder of Slurm's commands.
    """

    key: str
    module: str
    code: str
    gpu: bool
    accepted_missing: tuple[str, ...]
    inputs: tuple[Input, ...]
    writes: int
    scratch: str
    nodes: int = 1
    ranks_here: int = 1
    commands: str = "/usr/bin"

    def encode(self) -> bytes:
        return encode_record(self.model_dump(mode="json") | {"frame": "job"})


def parse_description(payload: bytes) -> JobDescription:
    """Parse the description of a job.

    Raises:
        BadInput: it is malformed, or of another build.
    """
    value = parse_record(payload)
    value.pop("frame")
    described: JobDescription = _parse(JobDescription, value)
    return described


def encode_record(value: Record) -> bytes:
    buffer = io.BytesIO()
    write_frame(buffer, value)
    return buffer.getvalue()


def parse_record(payload: bytes) -> Record:
    """Parse a record.

    Raises:
        BadInput: it is not a frame, has a blob, or has no kind.
    """
    found = read_frame(io.BytesIO(payload), len(payload))
    if found is None or not isinstance(found[0].get("frame"), str):
        raise BadInput("shared folder, record: expected a frame, got another")
    return found[0]


def parse_left(value: object) -> tuple[WorkerFile, ...]:
    """Parse the descriptions of the files of a frame.

    Raises:
        BadInput: there are too many, or one is malformed.
    """
    if not isinstance(value, list) or len(value) > MAX_FILES:
        raise BadInput(f"shared folder, files: expected a list of at most {MAX_FILES}, got another")
    return tuple(_parse(WorkerFile, one) for one in value)


def _parse(model: type[Any], value: object) -> Any:
    try:
        return model.model_validate(_tuples(value))
    except ValidationError as error:
        raise BadInput(f"shared folder, {model.__name__}: {error.errors()[0]['msg']}") from None


def _tuples(value: object) -> object:
    """Return the value with lists replaced by tuples, as the models hold them."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(one) for name, one in value.items()} if isinstance(value, dict) else value


def job_folder(path: str | Path) -> ConfinedPath:
    """Return the folder of a job, reached from the shared folder without links; `path` is SHARED/jobs/NAME."""
    return ConfinedPath(Path(path).parents[1], f"{JOBS}/{Path(path).name}")


def attempts_of(folder: ConfinedPath) -> list[int]:
    """Return the numbers of the job's starts in ascending order, empty if the folder cannot be read."""
    try:
        with (folder / ATTEMPTS).opened() as opened, os.scandir(opened) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ATTEMPTS)]
    except (ApplianceError, OSError):
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))


def log_of(rank: int) -> str:
    """Return the name of the log of a rank on another node than the first."""
    return f"{LOG}-{rank}"


def label_of(attempt: int, stream: str) -> str:
    """Return the label that a record's MAC covers in addition to its bytes: the start of the job and the direction."""
    return f"{attempt}/{stream}"


def map_paths(task: dict[str, Any], read: tuple[Path, ...], write: tuple[Path, ...]) -> dict[str, Any]:
    """Replace the service's folders in a task by numbers, since they have other paths on the node."""
    places = [("read", number, path) for number, path in enumerate(read)]
    places += [("write", number, path) for number, path in enumerate(write)]
    return {name: _map_path(value, places) for name, value in task.items()}


def _map_path(value: Any, places: list[tuple[str, int, Path]]) -> Any:
    if isinstance(value, str) and value.startswith("/"):
        for kind, number, path in places:
            if Path(value).is_relative_to(path):
                return {"place": kind, "number": number, "below": str(Path(value).relative_to(path))}
    return value


def place_paths(task: dict[str, Any], read: list[Path], write: list[Path]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a task with the numbers replaced by the node's folders."""
    for name, value in task.items():
        if isinstance(value, dict) and value.keys() == {"place", "number", "below"}:
            folders = read if value["place"] == "read" else write
            yield name, str(folders[value["number"]] / value["below"])
        else:
            yield name, value


_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SUFFIX, _LEFT = ".json", ".left"
LEFT_S = 30 * 86_400
"""Seconds for which a leftover is kept while its folder is missing."""


class JobRecord(BaseModel):
    """The service's record of a job.

    `key` is the owner of the worker, such as a run. `submission` identifies the job in its comment. `job` is its
    number, once Slurm has returned it. `done` is the last start of the job that was read to its end, or -1. `objects`
    are the digests of the shared files that it reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str = Field(pattern=rf"^{_KEY.pattern}$")
    submission: str = Field(pattern=r"^[0-9a-f]{32}$")
    secret: str = Field(pattern=r"^[0-9a-f]{64}$")
    folder: str
    job: int | None = None
    done: int = -1
    objects: tuple[Annotated[str, Field(pattern=_DIGEST)], ...] = ()

    @property
    def comment(self) -> str:
        """Return the comment that identifies the job in Slurm."""
        return f"appliance:{self.submission}"


@dataclass(frozen=True)
class Leftover:
    """A job that has ended and whose folder may still exist; `path` is the file of its record."""

    path: Path
    record: JobRecord

    def is_old(self) -> bool:
        """Return True if its folder was searched for long enough."""
        return time.time() - self.path.stat().st_mtime > LEFT_S


class JobRecords:
    """Records of jobs, one file per job with mode 0600, in the home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, key: str, shared: Path, objects: tuple[str, ...]) -> JobRecord:
        """Create and store the record of a submission that is about to be made."""
        if _KEY.fullmatch(key) is None:
            raise Tampered(f"job: expected a key of letters, digits and -, got {key[:80]!r}")
        submission = secrets.token_hex(16)
        folder = shared / "jobs" / f"{key}-{submission[:12]}"
        secret = secrets.token_hex(32)
        record = JobRecord(key=key, submission=submission, secret=secret, folder=str(folder), objects=objects)
        self.keep(record)
        return record

    def keep(self, record: JobRecord) -> None:
        """Store a record atomically and durably."""
        path = self._folder / f"{record.key}{_SUFFIX}"
        partial = path.with_suffix(".partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(partial, flags, 0o600)
            with open(descriptor, "wb") as file:
                file.write(record.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(partial, path)
            self._sync()
        except OSError as error:
            raise Unavailable(f"job {record.key}: expected the disk to work, got {error.strerror}") from None

    def find(self, key: str) -> JobRecord | None:
        """Return the record of this key, or None if there is none.

        Raises:
            Tampered: the file is malformed.
        """
        return self._read(f"{key}{_SUFFIX}")

    def _read(self, name: str) -> JobRecord | None:
        try:
            return JobRecord.model_validate_json(read_output(self._folder, name, _MAX_RECORD_BYTES))
        except NotFound:
            return None
        except ValidationError:
            what = f"job {name.partition('.')[0]}"
            raise Tampered(f"{what}: expected its record in {self._folder / name}, got other bytes") from None
        except OSError as error:
            raise Unavailable(f"job, {name}: expected the disk to work, got {error.strerror}") from None

    def leave(self, record: JobRecord) -> None:
        """Turn the record into that of a leftover, so that its key is free for another job."""
        path, left = self._folder / f"{record.key}{_SUFFIX}", self._folder / f"{record.submission}{_LEFT}"
        try:
            os.utime(path)
            os.rename(path, left)
            self._sync()
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"job {record.key}: expected the disk to work, got {error.strerror}") from None

    def list_left(self) -> list[Leftover]:
        """Return the leftovers, in any order. Others than this service has written are logged and left out."""
        found = []
        for path in sorted(self._folder.glob(f"*{_LEFT}")):
            try:
                record = self._read(path.name)
            except (Tampered, TooLarge) as error:
                log.warning("a leftover of a job is left out: %s", error.message)
                continue
            if record is not None:
                found.append(Leftover(path, record))
        return found

    def drop_left(self, left: Leftover) -> None:
        """Remove the record of a leftover."""
        left.path.unlink(missing_ok=True)
        self._sync()

    def keys(self) -> Iterator[str]:
        """Yield the keys of all records, except leftovers."""
        return (path.name.removesuffix(_SUFFIX) for path in sorted(self._folder.glob(f"*{_SUFFIX}")))

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
