"""The site's cluster: submitting workers as jobs, finding them after a restart of the service, and cleaning up."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from appliance.errors import ApplianceError, NotFound, Tampered, TooLarge, Unavailable
from appliance.sandbox.description import PACKAGE
from appliance.sandbox.output import ConfinedPath, open_output, read_output
from appliance.sandbox.program import START
from appliance.slurm.commands import REFUSED, UNREACHABLE, Commands, SlurmJob
from appliance.slurm.folder import (
    ATTEMPTS,
    JOB,
    JOBS,
    LOG,
    MAX_OWNER_BYTES,
    OBJECTS,
    OWNER,
    Input,
    JobDescription,
    JobRecord,
    JobRecords,
    TransferredFile,
    job_folder,
)
from appliance.slurm.objects import PARTIAL, has_file, put_file
from appliance.slurm.spool import SpoolWriter, shared_errors

NODE = "appliance.slurm.node"
AGAIN_S = 2.0
_REMOVED = ".removed-"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Resources:
    """Resources to request from sbatch, as configured by the site; None is Slurm's default.

    `warning_s` is how many seconds before its time limit a job is signalled.
    """

    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    cpus: int = 1
    memory: str | None = None
    gres: str | None = None
    warning_s: int = 120


@dataclass(frozen=True)
class ClusterSettings:
    """The site's configuration of the cluster.

    `shared` is the folder that the service and every node see under this path. `python` is the interpreter on the
    nodes, if it differs from the service's. `patience_s` is how many seconds slurmctld may be unreachable.
    """

    shared: Path
    resources: Resources
    python: str | None = None
    scratch: str = "/var/tmp"  # noqa: S108 - on the node, which creates a private folder in it
    patience_s: float = 900.0


class Cluster:
    """The jobs of the service on the site's cluster."""

    def __init__(
        self,
        site: ClusterSettings,
        commands: Commands,
        records: JobRecords,
        closing: threading.Event,
        name: str = "appliance",
    ) -> None:
        """Set up the cluster.

        `closing` is set when the service ends; its jobs then continue. `name` is the prefix of the jobs' names.
        """
        self.site, self.commands, self.records, self.closing = site, commands, records, closing
        self._name = name
        self._objects = threading.Lock()
        self._submitting = 0
        """Number of submissions that are copying files."""

    def submit(
        self, description: JobDescription, inputs: tuple[Path, ...], account: str | None, stop: Callable[[], bool]
    ) -> JobRecord:
        """Submit a job that will start this worker. After a crash at any point, `find_job` finds the job.

        Raises:
            Unavailable: `stop` returned True before Slurm was asked (code `closing`), or Slurm cannot be reached.
            BadInput: Slurm refused the job (code `slurm-refused`).
        """
        digests = tuple(sorted({file.digest for one in description.inputs for file in one.files}))
        with self._objects:
            record = self.records.begin(description.key, self.site.shared, digests)
            self._submitting += 1
        try:
            return self._submit(record, description, inputs, account, stop)
        except ApplianceError:
            # Remove the record if certainly no job was submitted. Otherwise keep it, so that the job is searched for.
            if self.records.find(description.key) == record and not self._may_exist(record):
                # If the folder cannot be removed now, the record is kept, too.
                with suppress(ApplianceError):
                    self._forget(record)
            raise
        finally:
            with self._objects:
                self._submitting -= 1

    def _submit(
        self,
        record: JobRecord,
        description: JobDescription,
        inputs: tuple[Path, ...],
        account: str | None,
        stop: Callable[[], bool],
    ) -> JobRecord:
        folder = job_folder(record.folder)
        for place in (folder / ATTEMPTS, folder / OBJECTS, self._shared_objects):
            with shared_errors(str(self.site.shared)), place.opened(make=True):
                pass
        self._publish(description, inputs, stop)
        writer = SpoolWriter(folder, JOB, bytes.fromhex(record.secret), JOB)
        try:
            writer.append(description.encode())
        finally:
            writer.close()
        return self._send(record, account, description.nodes, stop)

    def _may_exist(self, record: JobRecord) -> bool:
        try:
            return bool(self.commands.find(record.comment))
        except ApplianceError:
            return True

    def _publish(self, description: JobDescription, inputs: tuple[Path, ...], stop: Callable[[], bool]) -> None:
        """Copy missing inputs to the shared folder, never as links, through which a node could change a sealed file.

        `stop` is called before each file and after the last, since large files take minutes.
        """
        objects = self._shared_objects
        for one, path in zip(description.inputs, inputs, strict=True):
            for file in one.files:
                _check_not_stopped(description.key, stop)
                if has_file(objects, file.digest, file.size):
                    continue
                source = open_output(path, file.path)
                try:
                    digest, _ = put_file(source, objects)
                finally:
                    os.close(source)
                if digest != file.digest:
                    raise Tampered(f"artifact {one.name}, {file.path}: expected {file.digest}, got {digest}")
        _check_not_stopped(description.key, stop)

    def _send(self, record: JobRecord, account: str | None, nodes: int, stop: Callable[[], bool]) -> JobRecord:
        """Submit by sbatch exactly once: if a response was lost, search for the job before submitting again."""
        options, script = self._options(record, account, nodes), self._script(record)

        def send() -> int:
            found = self.commands.find(record.comment)
            return found[0].id if found else self.commands.submit(options, script)

        number = self.ask(send, stop)
        record = record.model_copy(update={"job": number})
        self.records.keep(record)
        return record

    def ask(self, act: Callable[[], Answer], stop: Callable[[], bool]) -> Answer:
        """Call `act` until Slurm responds, for at most the site's patience.

        Raises:
            Unavailable: Slurm did not respond, or `stop` returned True.
        """
        deadline = time.monotonic() + self.site.patience_s
        while True:
            try:
                return act()
            except Unavailable as error:
                if error.code != UNREACHABLE or time.monotonic() > deadline or stop():
                    raise
                self.closing.wait(AGAIN_S)

    def _options(self, record: JobRecord, account: str | None, nodes: int) -> list[str]:
        asked, folder = self.site.resources, Path(record.folder)
        given = {
            "--job-name": f"{self._name}-{record.key}",
            "--comment": record.comment,
            "--output": str(folder / LOG),
            "--open-mode": "append",
            "--chdir": "/",
            "--export": "NIL",
            "--nodes": str(nodes),
            "--ntasks": str(nodes),
            "--ntasks-per-node": None if nodes == 1 else "1",
            "--cpus-per-task": str(asked.cpus),
            "--signal": f"B:USR1@{asked.warning_s}",
            "--partition": asked.partition,
            "--account": account or asked.account,
            "--time": asked.time_limit,
            "--mem": asked.memory,
            "--gres": asked.gres,
        }
        return ["--requeue", *(f"{name}={value}" for name, value in given.items() if value is not None)]

    def _script(self, record: JobRecord) -> bytes:
        """Return the job's script. The key of the job comes on stdin, since all users of the cluster can see
        arguments."""
        if self.site.python is None:
            command = [sys.executable, "-I", "-c", START, str(PACKAGE.parent), NODE, record.folder]
        else:
            command = [self.site.python, "-I", "-m", NODE, record.folder]
        return f"#!/bin/sh\nexec {shlex.join(command)} <<'END'\n{record.secret}\nEND\n".encode()

    def find_job(self, key: str, stop: Callable[[], bool]) -> JobRecord | None:
        """Return the record of the submitted job with its number, or None if there is none or the submission failed."""
        record = self.records.find(key)
        if record is None or record.job is not None:
            return record
        found = self.ask(partial(self.commands.find, record.comment), stop)
        number = found[0].id if found else self._owner(record)
        if number is None:
            with suppress(Unavailable):  # the record is then a leftover, and another job can be submitted
                self._forget(record)
            return None
        record = record.model_copy(update={"job": number})
        self.records.keep(record)
        return record

    def _owner(self, record: JobRecord) -> int | None:
        """Return the number that the job wrote into its folder, since Slurm forgets a job minutes after its end."""
        try:
            with shared_errors(OWNER):
                text = read_output(job_folder(record.folder), OWNER, MAX_OWNER_BYTES)
        except (Tampered, TooLarge, Unavailable):
            return None
        return int(text) if text.isdigit() else None

    def look(self, record: JobRecord) -> SlurmJob | None:
        """Return the current state of a job, or None if Slurm does not know it."""
        return None if record.job is None else self.commands.show(record.job)

    def release(self, key: str) -> None:
        """End the job of this key, if there is one, and remove its folder.

        Raises:
            Unavailable: slurmctld does not respond; the record is kept, and `release` must be called again.
        """
        record = self.records.find(key)
        if record is None:
            return
        numbers = {one.id for one in self.commands.find(record.comment) if not one.over}
        for number in numbers:
            self.commands.cancel(number)
        self._forget(record)

    def list_keys(self) -> list[str]:
        """Return the keys of jobs that were submitted, or may have been, and are not released."""
        return list(self.records.keys())

    def _forget(self, record: JobRecord) -> None:
        """Remove the files of a job, so that rows of a dataset stay in the shared folder only while a job reads them.

        Raises:
            Unavailable: the folder could not be removed, such as one that is not mounted; its record becomes that of a
                leftover, which `clear` removes later.
        """
        with self._objects:
            self.records.leave(record)
            self._remove_leftovers()

    def clear(self) -> None:
        """Remove leftovers of earlier jobs, partially removed folders and partial files.

        Raises:
            Unavailable: that failed.
        """
        with self._objects:
            self._remove_leftovers()
            if self._submitting:
                return
            with shared_errors(str(self.site.shared)), suppress(NotFound), self._shared_objects.opened() as objects:
                for name in os.listdir(objects):
                    if name.startswith(PARTIAL):
                        _unlink(name, objects)

    def _remove_leftovers(self) -> None:
        """Remove the folder and the files of each leftover.

        A missing folder is searched for again for some time, since the shared folder may not be mounted or complete.
        """
        leftovers = self.records.list_left()
        if not leftovers and not (self.site.shared / JOBS).exists():
            return
        records = [self.records.find(key) for key in self.list_keys()]
        kept = {digest for one in records if one is not None for digest in one.objects}
        with shared_errors(str(self.site.shared)), (self._shared / JOBS).opened() as jobs:
            for left in leftovers:
                with suppress(NotFound), self._shared_objects.opened() as objects:
                    for digest in set(left.record.objects) - kept:
                        _unlink(digest.removeprefix("sha256:"), objects)
                # Rename it first, so that a node that still runs finds no folder to write to.
                name, found = Path(left.record.folder).name, False
                with suppress(FileNotFoundError):
                    os.rename(name, f"{_REMOVED}{name}", src_dir_fd=jobs, dst_dir_fd=jobs)
                    found = True
                if found or left.is_old():
                    self.records.drop_left(left)
            # If a node nested folders too deeply, the administrator must remove them.
            for name in os.listdir(jobs):
                if name.startswith(_REMOVED):
                    with suppress(RecursionError):
                        shutil.rmtree(name, ignore_errors=True, dir_fd=jobs)

    @property
    def _shared(self) -> ConfinedPath:
        return ConfinedPath(self.site.shared)

    @property
    def _shared_objects(self) -> ConfinedPath:
        return self._shared / OBJECTS


def _unlink(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _check_not_stopped(key: str, stop: Callable[[], bool]) -> None:
    if stop():
        raise Unavailable(f"job {key}: expected to submit it, got the end of its run or of the service", code="closing")


def describe_inputs(name: str, files: list[tuple[str, int, str]]) -> Input:
    """Return the description of a sealed folder for the node; `files` are (path, size, digest)."""
    return Input(
        name=name, files=tuple(TransferredFile(path=path, size=size, digest=digest) for path, size, digest in files)
    )


__all__ = ["REFUSED", "UNREACHABLE", "Cluster", "ClusterSettings", "Resources", "describe_inputs"]
