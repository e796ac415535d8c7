"""What the service keeps of a job on its own disk: enough to find it again after a power cut, before Slurm has said its
number too; and the job's key, which nobody else has but the node.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import Tampered, Unavailable

_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SUFFIX = ".json"


class JobRecord(BaseModel):
    """`key`: whose worker it is, such as a run. `submission`: what the job's comment names it by. `job`: its number,
    once Slurm has said it. `done`: the start of the job that was read to its end last; -1 before the first. `objects`:
    the digests of what it reads of the shared folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str
    submission: str = Field(pattern=r"^[0-9a-f]{32}$")
    secret: str = Field(pattern=r"^[0-9a-f]{64}$")
    folder: str
    job: int | None = None
    done: int = -1
    objects: tuple[str, ...] = ()

    @property
    def comment(self) -> str:
        return f"appliance:{self.submission}"


class JobRecords:
    """One file a job, mode 0600, below the appliance's home."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, key: str, shared: Path, objects: tuple[str, ...]) -> JobRecord:
        """A record of a submission that is about to be made."""
        if _KEY.fullmatch(key) is None:
            raise Tampered(f"job: expected a key of letters, digits and -, got {key[:80]!r}")
        submission = secrets.token_hex(16)
        folder = shared / "jobs" / f"{key}-{submission[:12]}"
        secret = secrets.token_hex(32)
        record = JobRecord(key=key, submission=submission, secret=secret, folder=str(folder), objects=objects)
        self.keep(record)
        return record

    def keep(self, record: JobRecord) -> None:
        """Whole on the disk, or as it was before."""
        path = self._folder / f"{record.key}{_SUFFIX}"
        partial = path.with_suffix(".partial")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:
                file.write(record.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(partial, path)
            self._sync()
        except OSError as error:
            raise Unavailable(f"job {record.key}: expected the disk to work, got {error.strerror}") from None

    def find(self, key: str) -> JobRecord | None:
        try:
            return JobRecord.model_validate_json((self._folder / f"{key}{_SUFFIX}").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise Tampered(f"job {key}: expected its record in {self._folder}, got other bytes") from None

    def drop(self, key: str) -> None:
        (self._folder / f"{key}{_SUFFIX}").unlink(missing_ok=True)
        if self._folder.is_dir():
            self._sync()

    def keys(self) -> Iterator[str]:
        return (path.name.removesuffix(_SUFFIX) for path in sorted(self._folder.glob(f"*{_SUFFIX}")))

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
