"""Running one of this project's programs in a separate process, so that its computation blocks no thread of the
service.

The program has no sandbox: it can read what the service can read. It has none of the service's memory: its interpreter
is isolated, its folder neutral, its environment empty, and its input comes through a pipe that no other process can
read. The pipe stays open while the caller waits. When the pipe closes, such as because the service was killed, the
program ends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from appliance.errors import ApplianceError, TooLarge, Unavailable
from appliance.sandbox.description import PACKAGE
from appliance.sandbox.kernel import forbid_dumps

END = b"\n"
"""Line that ends the program's input."""
NICENESS = 10
"""Niceness of a program, so that serving has precedence on the processor."""
CANCELLED = "cancelled"
START = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path.insert(0, root); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_LOOK_MS = 200
_END_S = 30.0


def run_program(
    module: str, lines: Iterable[bytes], *, log: Path, most_bytes: int, cancelled: Callable[[], bool]
) -> bytes:
    """Give the module these lines, all non-empty, and return its output once it has ended without an error.

    `log` is overwritten with its stderr.

    Raises:
        Unavailable: it ended otherwise (code `program-ended`), or `cancelled` returned True.
        TooLarge: its output has more than `most_bytes`.
    """
    process = _start(module, log)
    try:
        output = _exchange(process, lines, most_bytes, cancelled)
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{module}: expected its end after its answer, got none", code="program-ended") from None
    finally:
        process.kill()
        with process:
            pass
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise Unavailable(f"{module}: expected an answer, got its end by {how}; see {log}", code="program-ended")
    return output


def _start(module: str, log: Path) -> subprocess.Popen[bytes]:
    # O_NONBLOCK: a pipe in place of the file would block the caller until somebody reads it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        log.parent.mkdir(mode=0o700, exist_ok=True)
        log_file = os.open(log, flags, 0o600)
    except OSError as error:
        raise Unavailable(f"{module}, {log}: expected a log that can be written, got {error.strerror}") from None
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(PACKAGE.parent), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            bufsize=0,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{module}: expected a new process, got {error.strerror}") from None
    finally:
        os.close(log_file)


def _exchange(
    process: subprocess.Popen[bytes], lines: Iterable[bytes], most_bytes: int, cancelled: Callable[[], bool]
) -> bytes:
    """Write the lines and read the output concurrently, so that neither side blocks the other."""
    assert process.stdin is not None and process.stdout is not None
    input_pipe, output_pipe = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(input_pipe, False)
    unsent, output = _Unsent(lines), bytearray()
    ready = select.poll()
    ready.register(input_pipe, select.POLLOUT)
    ready.register(output_pipe, select.POLLIN)
    while not cancelled():
        for descriptor, _ in ready.poll(_LOOK_MS):
            if descriptor == input_pipe:
                if not unsent.write(input_pipe):
                    ready.unregister(input_pipe)
            elif chunk := os.read(output_pipe, 1 << 16):
                output += chunk
            else:
                return bytes(output)
        if len(output) > most_bytes:
            raise TooLarge(f"program: expected an answer of at most {most_bytes} bytes, got more")
    raise Unavailable("program: expected a caller that waits for its answer, got none", code=CANCELLED)


class _Unsent:
    """The remaining input lines, generated only when there is space in the pipe."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines: Iterator[bytes] = iter(lines)
        self._rest: memoryview | None = memoryview(b"")

    def write(self, descriptor: int) -> bool:
        """Write a part of the input; return True if there is more, and False at its end or if the program has ended."""
        if not self._rest:
            line = next(self._lines, None)
            self._rest = memoryview(END if line is None else line)
            self._last = line is None
        assert self._rest is not None
        try:
            self._rest = self._rest[os.write(descriptor, self._rest[: 1 << 16]) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(self._rest) or not self._last


# --- inside the program -----------------------------------------------------------------------------------------------


def answer_once(answer: Callable[[BinaryIO], Mapping[str, Any]]) -> int:
    """Answer the question of descriptor 0 by one JSON object on descriptor 1, and return the exit code."""
    forbid_dumps()  # the input may have secrets, such as the database's password
    os.nice(NICENESS)
    source, output = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        reply = answer(source)
    except ApplianceError as error:
        reply = {"failure": {"code": error.code, "message": error.message}}
    with output:
        output.write(json.dumps(reply).encode())
    return 0


def end_with_service() -> None:
    """Start a thread that ends the program when the service ends. The program must have read all of its input."""
    threading.Thread(target=_wait_for_end, name="end-with-service", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)
