"""A job's private folder on its node, with the rows and the base in plain form: removed when the launcher ends.

Slurm kills a launcher at a preemption or a time limit, which leaves the folder. So the launcher holds a lock on it for
as long as it lives, and each start first removes those of its node and account whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from appliance.errors import Unavailable

_PREFIX = "appliance-job-"


@contextmanager
def private_folder(scratch: str, node: str, job: int, attempt: int) -> Iterator[Path]:
    """A new one below `scratch`, of mode 0700. Several nodes may see the same `scratch`: each looks after its own."""
    suffix = f"@{node}"
    _remove_leftovers(Path(scratch), suffix)
    with ExitStack() as stack:
        try:
            path = _make(stack, Path(scratch), f"{_PREFIX}{job}-{attempt}-", suffix)
        except OSError as error:
            raise Unavailable(
                f"node, {scratch}: expected to make a folder there, got {error.strerror or error}; set slurm_scratch"
            ) from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _make(stack: ExitStack, scratch: Path, prefix: str, suffix: str) -> Path:
    """Locked until the stack is closed. Another launcher may have removed it before it was locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=scratch))
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            with suppress(OSError):  # a file system without locks: then nobody removes it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return path


def _remove_leftovers(scratch: Path, suffix: str) -> None:
    with suppress(OSError):
        for path in sorted(scratch.glob(f"{_PREFIX}*")):
            if path.name.endswith(suffix):
                _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(RecursionError):  # a worker nested it too deeply
            shutil.rmtree(path, ignore_errors=True)
