"""Cedar in a separate process, for policy sets that no administrator has adopted yet.

Text within the bounds of appliance/access/bounds.py can still take long, and Cedar holds the interpreter lock while it
works. So untrusted text is parsed, validated and evaluated in a process whose CPU time the system limits.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import cedarpy

import appliance
from appliance.access.engine import PolicyDecision, PolicyEngine
from appliance.access.program import LOAD, ProcessLimits
from appliance.errors import BadInput, TooLarge, Unavailable

LIMITS = ProcessLimits(load_s=4.0, call_s=0.02, memory_bytes=4 << 30)
"""Limits of the process. The slowest text within the bounds needs a second, or two on a busy processor."""
MAX_WAIT_S = 60.0
"""Longest time in seconds of a start or a call, on a machine that does other work, too. `LIMITS` limit the
processor time of the text.
"""
_MOST_BYTES = 1 << 20
"""Largest number of bytes of one reply."""
_IMPORT_PATHS = tuple(str(Path(str(module.__file__)).resolve().parents[1]) for module in (appliance, cedarpy))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); del sys.argv[1:3]\n"
    "from appliance.access.program import main; main()"
)


class CedarProcess:
    """A policy set that is loaded in another process. It is not thread-safe."""

    def __init__(self, name: str, cedar: str, schema: str) -> None:
        """Start the process and load the set.

        Raises:
            TooLarge, BadInput: as for `PolicyEngine`.
            BadInput: the text ends the process or exceeds a limit.
            Unavailable: no process can be started here, whatever the text.
        """
        self._what = f"policy set {name}: expected Cedar text that a separate process can read within its limits"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, *_IMPORT_PATHS, *(json.dumps(limit) for limit in LIMITS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
            )
        except OSError as error:
            raise Unavailable(f"{self._what}, got no process: {error.strerror}") from None
        self._finalizer = weakref.finalize(self, _kill, self._process)
        try:
            self._read_line()
        except BadInput as error:
            raise Unavailable(f"{error.message}, before it read the text") from None
        try:
            self._call(LOAD, name, cedar, schema)
        except BadInput:
            self.close()
            raise

    def authorize(self, request: dict[str, Any], entities: str, worst: bool = False) -> PolicyDecision:
        """Decide a request as `PolicyEngine` does.

        Raises:
            BadInput: the process ends or exceeds a limit.
        """
        verdict = self._call(PolicyEngine.authorize.__name__, request, entities, worst)
        return PolicyDecision(tuple(verdict["forbids"]), tuple(verdict["errors"]), verdict["permitted"])

    def is_valid(self, policy: str) -> bool:
        """Return True if the schema accepts the text of this policy.

        Raises:
            BadInput: the process ends or exceeds a limit.
        """
        return bool(self._call(PolicyEngine.is_valid.__name__, policy))

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def _call(self, *call: Any) -> Any:
        assert self._process.stdin is not None
        unsent = memoryview(json.dumps(call).encode() + b"\n")
        try:
            while unsent:
                unsent = unsent[os.write(self._process.stdin.fileno(), unsent) :]
        except (OSError, ValueError):  # ValueError: closed after an earlier error
            raise self._build_end_error() from None
        reply = json.loads(self._read_line())
        if "error" in reply:
            raise (TooLarge if reply["code"] == TooLarge.code else BadInput)(reply["error"])
        return reply["answer"]

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + MAX_WAIT_S
        ready = select.poll()
        ready.register(self._process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1_000):
                self.close()
                raise BadInput(f"{self._what}, got no answer in {MAX_WAIT_S:g} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            line += chunk
            if not chunk or len(line) > _MOST_BYTES:
                raise self._build_end_error()
        return line

    def _build_end_error(self) -> BadInput:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.close()
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return BadInput(f"{self._what}, got one that ended it by {how}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:
        pass
