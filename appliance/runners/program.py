"""Runs one of the appliance's programs in a separate process, so that its computation blocks no thread of the service.

It has no walls: it can read what the service can read. But it has nothing of the service's memory. Its interpreter is
isolated, its folder is neutral, its environment is empty, and what it needs comes through a pipe, which no other
process can read. The pipe stays open while the caller waits. When it closes, also because the service was killed, the
program ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.errors import TooLarge, Unavailable
from appliance.runners.sandbox import PACKAGE

END = b"\n"
"""The line after the last line of the program's input."""
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
    """Gives the module these lines, none of them empty, and returns what it wrote, once it has ended without an error.

    `log` is overwritten with its stderr. Unavailable where it ends otherwise (`program-ended`), or as soon as the
    caller has `cancelled`; TooLarge where it writes more than `most_bytes`.
    """
    process = _start(module, log)
    try:
        said = _exchange(process, lines, most_bytes, cancelled)
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
    return said


def _start(module: str, log: Path) -> subprocess.Popen[bytes]:
    # Not blocking: a pipe in the file's place would block the caller until the pipe is read.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        log.parent.mkdir(mode=0o700, exist_ok=True)
        beside = os.open(log, flags, 0o600)
    except OSError as error:
        raise Unavailable(f"{module}, {log}: expected a log that can be written, got {error.strerror}") from None
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", START, str(PACKAGE.parent), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=beside,
            bufsize=0,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{module}: expected a new process, got {error.strerror}") from None
    finally:
        os.close(beside)


def _exchange(
    process: subprocess.Popen[bytes], lines: Iterable[bytes], most_bytes: int, cancelled: Callable[[], bool]
) -> bytes:
    """Neither side waits for the other: what it writes is read while it is still being given lines."""
    assert process.stdin is not None and process.stdout is not None
    given, answer = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(given, False)
    unsent, said = _Unsent(lines), bytearray()
    ready = select.poll()
    ready.register(given, select.POLLOUT)
    ready.register(answer, select.POLLIN)
    while not cancelled():
        for descriptor, _ in ready.poll(_LOOK_MS):
            if descriptor == given:
                if not unsent.write(given):
                    ready.unregister(given)
            elif chunk := os.read(answer, 1 << 16):
                said += chunk
            else:
                return bytes(said)
        if len(said) > most_bytes:
            raise TooLarge(f"program: expected an answer of at most {most_bytes} bytes, got more")
    raise Unavailable("program: expected a caller that waits for its answer, got none", code=CANCELLED)


class _Unsent:
    """Lines that are still to be written, made only when there is room for them."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines: Iterator[bytes] = iter(lines)
        self._rest: memoryview | None = memoryview(b"")

    def write(self, descriptor: int) -> bool:
        """Whether there is more; nothing is where the program has ended."""
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
