"""The site's cluster: submits a worker as a job, finds it again after a restart of the service, clears up after it."""

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
from appliance.runners.output import open_output, read_output
from appliance.runners.program import START
from appliance.runners.sandbox import PACKAGE
from appliance.runners.slurm import folder as names
from appliance.runners.slurm.commands import REFUSED, UNREACHABLE, Commands, Job
from appliance.runners.slurm.folder import Description, File, Input
from appliance.runners.slurm.objects import PARTIAL, has_file, put_file
from appliance.runners.slurm.records import JobRecord, JobRecords
from appliance.runners.slurm.spool import SpoolWriter, shared_errors

NODE = "appliance.runners.slurm.node"
AGAIN_S = 2.0
_REMOVED = ".removed-"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Resources:
    """What sbatch is asked for, as the site set it; None: Slurm's own default. `warning_s`: how long before its time
    limit a job is told."""

    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    cpus: int = 1
    memory: str | None = None
    gres: str | None = None
    warning_s: int = 120


@dataclass(frozen=True)
class Site:
    """`shared`: the folder that the service and every node see under this path. `python`: the interpreter on the nodes,
    where it is another than the service's own. `patience_s`: how long slurmctld may be gone."""

    shared: Path
    resources: Resources
    python: str | None = None
    scratch: str = "/var/tmp"  # noqa: S108 on the node, where a private folder is made in it
    patience_s: float = 900.0


class Cluster:
    def __init__(
        self, site: Site, commands: Commands, records: JobRecords, closing: threading.Event, name: str = "appliance"
    ) -> None:
        """`closing`: set once the service ends, whose jobs then go on. `name`: what its jobs are called."""
        self.site, self.commands, self.records, self.closing = site, commands, records, closing
        self._name = name
        self._objects = threading.Lock()
        self._submitting = 0
        """How many submissions copy files now."""

    def submit(
        self, description: Description, inputs: tuple[Path, ...], account: str | None, stop: Callable[[], bool]
    ) -> JobRecord:
        """A job that will start this worker. What the power cut off between any two lines is found by `find_job`.
        Unavailable (`closing`) where `stop` says so before Slurm is asked."""
        digests = tuple(sorted({file.digest for one in description.inputs for file in one.files}))
        with self._objects:
            record = self.records.begin(description.key, self.site.shared, digests)
            self._submitting += 1
        try:
            return self._submit(record, description, inputs, account, stop)
        except ApplianceError:
            # Nothing was submitted, or nobody knows: then the record stays, and the job is looked for.
            if self.records.find(description.key) == record and not self._may_exist(record):
                # What cannot be removed now keeps its record too.
                with suppress(ApplianceError):
                    self._forget(record)
            raise
        finally:
            with self._objects:
                self._submitting -= 1

    def _submit(
        self,
        record: JobRecord,
        description: Description,
        inputs: tuple[Path, ...],
        account: str | None,
        stop: Callable[[], bool],
    ) -> JobRecord:
        folder = Path(record.folder)
        with shared_errors(str(self.site.shared)):
            for path in (folder / names.ATTEMPTS, folder / names.OBJECTS, self.site.shared / names.OBJECTS):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._publish(description, inputs, stop)
        writer = SpoolWriter(folder, names.JOB, bytes.fromhex(record.secret), names.JOB)
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

    def _publish(self, description: Description, inputs: tuple[Path, ...], stop: Callable[[], bool]) -> None:
        """Copies what is missing: never a link, through which a node could change a sealed file. `stop` is asked before
        each file and after the last, since large ones take minutes."""
        objects = self.site.shared / names.OBJECTS
        for one, path in zip(description.inputs, inputs, strict=True):
            for file in one.files:
                _check_goes_on(description.key, stop)
                if has_file(objects, file.digest, file.size):
                    continue
                source = open_output(path, file.path)
                try:
                    digest, _ = put_file(source, objects)
                finally:
                    os.close(source)
                if digest != file.digest:
                    raise Tampered(f"artifact {one.name}, {file.path}: expected {file.digest}, got {digest}")
        _check_goes_on(description.key, stop)

    def _send(self, record: JobRecord, account: str | None, nodes: int, stop: Callable[[], bool]) -> JobRecord:
        """By sbatch, once: an answer that was lost is looked for before it is sent again."""
        options, script = self._options(record, account, nodes), self._script(record)

        def send() -> int:
            found = self.commands.find(record.comment)
            return found[0].id if found else self.commands.submit(options, script)

        number = self.ask(send, stop)
        record = record.model_copy(update={"job": number})
        self.records.keep(record)
        return record

    def ask(self, act: Callable[[], Answer], stop: Callable[[], bool]) -> Answer:
        """What Slurm answers, which may be gone for the site's patience; Unavailable then, or once `stop` says so."""
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
            "--output": str(folder / names.LOG),
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
        """The job's key comes on stdin: an argument is seen by every user of the cluster."""
        if self.site.python is None:
            command = [sys.executable, "-I", "-c", START, str(PACKAGE.parent), NODE, record.folder]
        else:
            command = [self.site.python, "-I", "-m", NODE, record.folder]
        return f"#!/bin/sh\nexec {shlex.join(command)} <<'END'\n{record.secret}\nEND\n".encode()

    def find_job(self, key: str, stop: Callable[[], bool]) -> JobRecord | None:
        """The submission that stands, with its number; None where there is none, or nothing came of it."""
        record = self.records.find(key)
        if record is None or record.job is not None:
            return record
        found = self.ask(partial(self.commands.find, record.comment), stop)
        number = found[0].id if found else self._owner(record)
        if number is None:
            self._forget(record)
            return None
        record = record.model_copy(update={"job": number})
        self.records.keep(record)
        return record

    def _owner(self, record: JobRecord) -> int | None:
        """The job that left its number in the folder: Slurm forgets a job minutes after its end."""
        try:
            text = read_output(Path(record.folder), names.OWNER, names.MAX_OWNER_BYTES)
        except (NotFound, Tampered, TooLarge):
            return None
        return int(text) if text.isdigit() else None

    def look(self, record: JobRecord) -> Job | None:
        return None if record.job is None else self.commands.show(record.job)

    def release(self, key: str) -> None:
        """Ends the job of this key, where there is one, and removes its folder. Unavailable where slurmctld does not
        answer: the record stays, and `release` is to be called again."""
        record = self.records.find(key)
        if record is None:
            return
        numbers = {one.id for one in self.commands.find(record.comment) if not one.over}
        for number in numbers:
            self.commands.cancel(number)
        self._forget(record)

    def list_keys(self) -> list[str]:
        """Of the jobs that were submitted, or may have been, and are not released."""
        return list(self.records.keys())

    def _forget(self, record: JobRecord) -> None:
        """Removes what crossed: the rows of a dataset stay in the shared folder no longer than a job reads them.
        Unavailable where something could not be removed: the record stays, for another try."""
        with self._objects:
            others = [self.records.find(key) for key in list(self.records.keys()) if key != record.key]
            kept = {digest for one in others if one is not None for digest in one.objects}
            folder = Path(record.folder)
            with shared_errors(str(self.site.shared)):
                # Under another name first: a node that still runs finds no folder to write to.
                with suppress(FileNotFoundError):
                    folder.rename(folder.with_name(f"{_REMOVED}{folder.name}"))
                self._remove()
                for digest in set(record.objects) - kept:
                    (self.site.shared / names.OBJECTS / digest.removeprefix("sha256:")).unlink(missing_ok=True)
            self.records.drop(record.key)

    def clear(self) -> None:
        """Removes what was cut off: folders that were half removed, and files that were half copied, which have no
        record. Unavailable where that fails."""
        with self._objects, shared_errors(str(self.site.shared)):
            self._remove()
            if not self._submitting:
                for path in (self.site.shared / names.OBJECTS).glob(f"{PARTIAL}*"):
                    path.unlink(missing_ok=True)

    def _remove(self) -> None:
        """... and what an earlier attempt could not remove. A folder that a node nested too deeply is the
        administrator's to remove."""
        for folder in (self.site.shared / "jobs").glob(f"{_REMOVED}*"):
            with suppress(RecursionError):
                shutil.rmtree(folder, ignore_errors=True)


def _check_goes_on(key: str, stop: Callable[[], bool]) -> None:
    if stop():
        raise Unavailable(f"job {key}: expected to submit it, got the end of its run or of the service", code="closing")


def describe_inputs(name: str, files: list[tuple[str, int, str]]) -> Input:
    """A sealed folder as the node is told of it: `files` are (path, size, digest)."""
    return Input(name=name, files=tuple(File(path=path, size=size, digest=digest) for path, size, digest in files))


__all__ = ["REFUSED", "UNREACHABLE", "Cluster", "Resources", "Site", "describe_inputs"]
