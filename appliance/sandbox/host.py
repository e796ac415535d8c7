"""Properties of this machine, the interface of a running worker, and the site's notification command."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from appliance.build import find_folder
from appliance.errors import BadInput, Denied, Unavailable
from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.sandbox.description import PACKAGE


def multiplies_bfloat16() -> bool:
    """Return True if the CPU reports hardware support for bf16 multiplication."""
    return bool(set(_read_text(Path("/proc/cpuinfo")).split()) & {"avx512_bf16", "amx_bf16", "bf16"})


def describe_host(cuda: bool) -> str:
    """Return the kind of this machine as its GPU driver or CPU names it; calibrations are labelled with it."""
    threads = len(os.sched_getaffinity(0))
    texts = (
        [_read_text(path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))] if cuda else []
    )
    for text, key in [*((text, "Model") for text in texts), (_read_text(Path("/proc/cpuinfo")), "model name")]:
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return f"{value.strip()}, {threads} threads"
    return f"{os.uname().machine}, {threads} threads"


def digest_code() -> str:
    """Return a digest over the service's source files and migrations on this machine."""
    paths = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    migrations = find_folder("migrations")
    paths |= {f"migrations/{path.relative_to(migrations)}": path for path in migrations.rglob("*.py")}
    files = {name: digest_file(path) for name, path in paths.items()}
    return digest_bytes(json.dumps(files, sort_keys=True).encode())


def _read_text(path: Path) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def visible_cards() -> list[str]:
    """Return the GPUs that a worker may use, as CUDA names them: those that the site gave the service, or the first."""
    return [card.strip() for card in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if card.strip()]


Frame = tuple[dict[str, Any], bytes]


class RunningWorker(Protocol):
    """A started worker. After `check_sandbox`, `layers` has True for each layer of the sandbox that is in force."""

    @property
    def layers(self) -> Mapping[str, bool]: ...

    @property
    def pid(self) -> int:
        """Return its process id on this machine, or the number of its job."""

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float = 60.0) -> None: ...

    def receive(self, timeout_s: float | None = None) -> Frame | None: ...

    def check_sandbox(self, timeout_s: float = 60.0) -> dict[str, str]: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def end(self) -> None:
        """Begin what `kill` does and return at once, for threads that must not wait."""

    def kill(self) -> None: ...

    def wait(self, timeout_s: float | None = None) -> int: ...


LIMIT_S = 10.0
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def check_hook(words: Sequence[str]) -> None:
    """Check that the notification command can be run and that no other account can change it.

    Raises:
        BadInput: there is no such program.
        Denied: another account could change it.
    """
    path = Path(words[0])
    try:
        status = path.stat()
    except OSError as error:
        raise BadInput(f"notification command, {path}: expected a program, got: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK):
        raise BadInput(f"notification command, {path}: expected a program that the service may run, got another file")
    if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"notification command, {path}: expected a file of root or of the service's account that others cannot "
            f"write to, got mode {stat.S_IMODE(status.st_mode):04o} of user id {status.st_uid}"
        )


def run_hook(words: Sequence[str], line: bytes, limit_s: float = LIMIT_S) -> None:
    """Run the notification command with one line on its stdin; at the end, kill it and all processes that it started.

    Raises:
        Unavailable: it does not end with exit code 0 in time.
    """
    check_hook(words)
    try:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"notification command: expected it to start, got: {error.strerror}") from None
    with process:
        try:
            process.communicate(line, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"notification command: expected its end within {limit_s:.0f} s, got none") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Unavailable(f"notification command: expected exit code 0, got {process.returncode}")
