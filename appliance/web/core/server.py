"""Opens the listeners: a Unix socket for people, TCP for units, in one process and one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.web.core.framing import once_framed
from appliance.web.core.sockets import peer_of

log = logging.getLogger("appliance")

GRACE_S = 5
HEADER_S = 10.0
"""From a connection's accept to the end of its handshake, from there, or from the first byte of its next request, to
the end of the headers."""
UNREAD_S = 30.0
"""A client that does not take what it is sent for so long is left."""
IDLE_S = 30
HEADER_BYTES = 16_384


@dataclass(frozen=True)
class Door:
    """Who stands behind it, where it is open, and under which certificate. Only a `guarded` one cuts a client that does
    not take its answer: at the people's socket that may be a person who reads it page by page."""

    app: ASGIApp
    socket: socket.socket
    tls: ssl.SSLContext | None = None
    guarded: bool = True


class _Timed(H11Protocol):
    """One connection, which has so long for its headers, or it is cut."""

    _owed: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
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

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._owed)


class _Guarded(_Timed):
    """One connection of a stranger, which has so long to take an answer, too."""

    _unread: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._unread)


class _Local(_Timed):
    """One connection at a Unix socket: who connected is the account, as the kernel says it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (peer := _peer(transport.get_extra_info("socket"))) is not None:
            self.client = peer


def _peer(connection: socket.socket) -> tuple[str, int] | None:
    """As (unix:user id, process id), in the place of (host, port)."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid = peer_of(connection)
    return f"unix:{uid}", pid


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """Two servers share a loop, so neither may take the process's signals; nor need each look ten times a second
    whether it is to end."""

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls
        self._ended = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own leaves a handshake the minute that asyncio gives it."""
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        handshake_s = None if self._tls is None else HEADER_S
        for door in sockets or []:
            server = await loop.create_server(
                self._connection,
                sock=door,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s,
                backlog=self.config.backlog,
            )
            self.servers.append(server)

    def _connection(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def main_loop(self) -> None:
        # A tick at a multiple of ten dates the answers of the next second.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Heart:
    """`beat` is called again `every_s` after it ended; what it raises ends the service. `stalled` gets how long one has
    not ended, each time that the next one was due meanwhile, and 0 once it has ended."""

    beat: Callable[[], None]
    every_s: float
    stalled: Callable[[float], None]


def serve(doors: Sequence[Door], *, heart: Heart, ended: Callable[[], str | None]) -> str:
    """Serves until a signal comes or `ended` says so, and returns why. What the heartbeat raises ends the service, in
    order, and is raised again here."""
    try:
        return asyncio.run(_serve(doors, heart, ended))
    finally:
        for door in doors:
            door.socket.close()


def _server(door: Door) -> _Server:
    """No header of a proxy is used: the source of a request is the connection's peer."""
    config = uvicorn.Config(
        once_framed(door.app),
        http=_Guarded if door.guarded else _Local,
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
    return _Server(config, door.tls)


async def _serve(doors: Sequence[Door], heart: Heart, ended: Callable[[], str | None]) -> str:
    reason = "signal"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = [_server(door) for door in doors]
    running = [
        asyncio.create_task(server.serve(sockets=[door.socket])) for server, door in zip(servers, doors, strict=True)
    ]
    beats = asyncio.create_task(_beat(heart, stop))
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if why := ended():
            reason = why
            stop.set()
        if any(task.done() for task in running):
            reason = "door closed"
            stop.set()
    if failed := beats.done():
        log.critical("ALARM: the heartbeat failed, the service ends", exc_info=beats.exception())
    beats.cancel()
    for server in servers:
        server.end()
    await asyncio.gather(*running)
    if failed:
        beats.result()
    return reason


async def _beat(heart: Heart, stop: asyncio.Event) -> None:
    """Never returns, and raises what a beat raises: the listeners close when the heartbeat fails."""
    try:
        while True:
            await asyncio.sleep(heart.every_s)
            running = _run_apart(heart.beat)
            began, has_stalled = time.monotonic(), False
            while not (await asyncio.wait([running], timeout=heart.every_s))[0]:
                has_stalled = True
                heart.stalled(time.monotonic() - began)
            running.result()
            if has_stalled:
                heart.stalled(0.0)
    finally:
        stop.set()


def _run_apart(work: Callable[[], None]) -> asyncio.Future[None]:
    """In a thread of its own that is not joined: one that hangs, on a disk or a database, does not hold up the end, as
    asyncio's own threads would."""
    loop = asyncio.get_running_loop()
    running: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if running.done():
            return  # given up at the end
        if error is None:
            running.set_result(None)
        else:
            running.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
    return running
