"""The doors are opened: a Unix socket for people, TCP for units, in one process and one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.errors import Conflict, Unavailable

GRACE_S = 5
HEADER_S = 10.0
"""From the first byte of a connection, or of its next request, to the end of the headers."""
UNREAD_S = 30.0
"""A client that does not take what it is sent for so long is left."""
IDLE_S = 30
HEADER_BYTES = 16_384
CONNECTIONS = 512


@dataclass(frozen=True)
class Door:
    """Who stands behind it, where it is open, and under which certificate. Only a `guarded` one has limits of time:
    behind the people's stands whoever may read the service's own socket."""

    app: ASGIApp
    socket: socket.socket
    tls: ssl.SSLContext | None = None
    guarded: bool = True


class _Guarded(H11Protocol):
    """One connection of a stranger: it has so long for its headers and so long to take an answer, or it is cut."""

    _owed: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._owed = self.loop.call_later(HEADER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        ours, theirs = self.conn.our_state, self.conn.their_state
        begun = theirs is h11.IDLE and bool(self.conn.trailing_data[0])
        answered = ours is h11.DONE and theirs is h11.SEND_BODY
        if begun or answered:
            # Headers that have no end yet, or a body that goes on although its refusal was sent.
            self._owed = self._owed or self.loop.call_later(HEADER_S, self.transport.abort)
        elif theirs is not h11.IDLE:
            _cancel(self._owed)
            self._owed = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._owed)
        _cancel(self._unread)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """Two servers share a loop, so neither may take the process's signals; nor need each look ten times a second
    whether it is to end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        # A tick at a multiple of ten dates the answers of the next second.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

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


def serve(doors: Sequence[Door], *, beat: Callable[[], None], ended: Callable[[], str | None], beat_s: float) -> str:
    """Serves until a signal comes or `ended` says so, and returns why. `beat` is called every `beat_s` seconds."""
    try:
        return asyncio.run(_serve(doors, beat, ended, beat_s))
    finally:
        for door in doors:
            door.socket.close()


def _server(door: Door) -> _Server:
    """No header of a proxy is believed: where a request came from is who connected."""
    config = uvicorn.Config(
        door.app,
        http=_Guarded if door.guarded else H11Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    config.load()
    config.ssl = door.tls
    return _Server(config)


async def _serve(
    doors: Sequence[Door], beat: Callable[[], None], ended: Callable[[], str | None], beat_s: float
) -> str:
    reason = "signal"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [_server(door) for door in doors]
    running = [
        asyncio.create_task(server.serve(sockets=[door.socket])) for server, door in zip(servers, doors, strict=True)
    ]
    beats = asyncio.create_task(_beat(beat, beat_s))
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if why := ended():
            reason = why
            stop.set()
        if any(task.done() for task in running):
            reason = "door closed"
            stop.set()
    beats.cancel()
    for server in servers:
        server.end()
    await asyncio.gather(*running)
    return reason


async def _beat(beat: Callable[[], None], beat_s: float) -> None:
    while True:
        await asyncio.sleep(beat_s)
        await asyncio.to_thread(beat)


@contextlib.contextmanager
def open_unix(path: Path) -> Iterator[socket.socket]:
    """The people's door, mode 0600 from its first moment, gone with the service; one that an ended service left is
    replaced."""
    door = _bind_unix(path)
    try:
        yield door
    finally:
        door.close()
        path.unlink(missing_ok=True)


def _bind_unix(path: Path) -> socket.socket:
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


def open_tcp(listen: tuple[str, int], what: str = "units' door") -> socket.socket:
    host, port = listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise Unavailable(f"{what}, {host}:{port}: expected to listen there, got {error.strerror}") from None
    door.listen(128)
    return door
