"""The doors are opened: a Unix socket for people, TCP for units, in one process and one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from appliance.errors import Conflict, Unavailable

GRACE_S = 5


class _Server(uvicorn.Server):
    """Two servers share a loop, so neither may take the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Activity:
    """When the last request came, so that an embedded service can end when nobody needs it."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def touch(self) -> None:
        self.last = time.monotonic()

    def idle_s(self) -> float:
        return time.monotonic() - self.last


def serve(
    people: FastAPI,
    units: FastAPI,
    *,
    path: Path,
    listen: tuple[str, int] | None,
    beat: Callable[[], None],
    ended: Callable[[], bool],
    beat_s: float,
) -> str:
    """Serves until a signal comes or `ended` says so, and returns why. `beat` is called every `beat_s` seconds."""
    doors = [(people, open_unix(path))]
    try:
        if listen is not None:
            doors.append((units, open_tcp(listen)))
        return asyncio.run(_serve(doors, beat, ended, beat_s))
    finally:
        for _, door in doors:
            door.close()
        path.unlink(missing_ok=True)


async def _serve(
    doors: list[tuple[FastAPI, socket.socket]], beat: Callable[[], None], ended: Callable[[], bool], beat_s: float
) -> str:
    reason = "signal"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [
        _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S))
        for app, _ in doors
    ]
    running = [
        asyncio.create_task(server.serve(sockets=[door])) for server, (_, door) in zip(servers, doors, strict=True)
    ]
    beats = asyncio.create_task(_beat(beat, beat_s))
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if ended():
            reason = "idle"
            stop.set()
        if any(task.done() for task in running):
            reason = "door closed"
            stop.set()
    beats.cancel()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*running)
    return reason


async def _beat(beat: Callable[[], None], beat_s: float) -> None:
    while True:
        await asyncio.sleep(beat_s)
        await asyncio.to_thread(beat)


def open_unix(path: Path) -> socket.socket:
    """The people's door, mode 0600 from its first moment; a socket that an ended service left is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.fsencode(path)) > 100:
        raise Unavailable(f"socket {path}: expected a path of at most 100 bytes; choose a shorter APPLIANCE_HOME")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Conflict(f"socket {path}: expected nothing or a socket there, got another kind of file")
        path.unlink()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        door.bind(str(path))
    finally:
        os.umask(before)
    door.listen(128)
    return door


def open_tcp(listen: tuple[str, int]) -> socket.socket:
    host, port = listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise Unavailable(f"units' door, {host}:{port}: expected to listen there, got {error.strerror}") from None
    door.listen(128)
    return door
