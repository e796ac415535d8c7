"""The HTTP servers of all listeners, in one process and one event loop.

People connect to a Unix socket or TCP port, units to a TCP port.
"""

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
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import h11
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from appliance.systemd import notify, read_watchdog_s
from appliance.web.core.sockets import peer_of

_LENGTHS = {b"content-length", b"transfer-encoding"}
"""Headers that give the length of a body. A request has at most one of them."""
MAX_PARAMETERS = 256
"""Maximum number of parameters in an address. A form of the console has some dozens."""


def check_framing(app: ASGIApp) -> ASGIApp:
    """Return the app with a check: requests with both length headers or too many parameters are refused.

    The connection of a refused request is closed.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        problem = _find_problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await app(scope, receive, send)
        else:
            await PlainTextResponse(problem, 400, {"Connection": "close"})(scope, receive, send)

    return answer


def _find_problem(scope: Scope) -> str | None:
    if {name for name, _ in scope["headers"]} >= _LENGTHS:
        return "request: expected Content-Length or Transfer-Encoding, got both\n"
    if scope.get("query_string", b"").count(b"&") >= MAX_PARAMETERS:
        return f"request: expected at most {MAX_PARAMETERS} parameters in its address, got more\n"
    return None


log = logging.getLogger("appliance")

READY_S = 0.02
"""Seconds between two checks whether the listeners accept connections, at the start."""
GRACE_S = 3
"""Seconds that open requests have to end after the service begins to stop. Then answers end with an error."""
FINAL_GRACE_S = 1
"""Seconds that open requests have to end after `GRACE_S`. Then the service cancels them."""
TASKS_END_S = 1.0
"""Seconds that cancelled tasks have to end after that."""
HEADER_S = 10.0
"""Maximum seconds of a TLS handshake, and of the headers of a request.

The time for headers begins with the connection, the end of the handshake, or the first byte of a later request.
"""
UNREAD_S = 30.0
"""Seconds after which a client that reads nothing of its response is disconnected."""
IDLE_S = 30
"""Seconds after which an idle connection is closed."""
HEADER_BYTES = 16_384
"""Maximum bytes of a request's headers."""
SMALL_CHUNKS = 512
"""Chunks of a body that may be of any size. Each chunk costs the event loop some microseconds."""
CHUNK_BYTES = 512
"""Minimum average bytes of a body's further chunks."""


@dataclass(frozen=True)
class Listener:
    """A listener: its app, its socket and its TLS context.

    Only a `guarded` listener disconnects clients that do not read their response. At the people's socket that may be a
    person who reads the output page by page. While the service stops, the app `stopping` serves the socket until the
    other listeners have ended. Without it, new connections are refused at once.
    """

    app: ASGIApp
    socket: socket.socket
    tls: ssl.SSLContext | None = None
    guarded: bool = True
    stopping: ASGIApp | None = None


class _Parser(h11.Connection):
    """A parser of requests that refuses bodies in many small chunks."""

    problem = ""
    """The reason of the refusal."""
    _chunks = 0
    _bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event.

        Raises: RemoteProtocolError if a request is malformed, or the chunks of its body are too small.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > SMALL_CHUNKS + self._bytes // CHUNK_BYTES:
                self.problem = f"request: expected chunks of {CHUNK_BYTES} bytes on average, got smaller ones\n"
                raise h11.RemoteProtocolError(self.problem)
        return event


class _Timed(H11Protocol):
    """A connection that is closed if its headers take longer than `HEADER_S`.

    Its parser receives at most `HEADER_BYTES` at once, so that the limit of headers holds for each request. Later bytes
    wait until the request before them has its response, and the client has read most of it: a request takes a place of
    its listener, which a client that reads nothing would keep from others.
    """

    conn: _Parser
    _owed: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = _Parser(h11.SERVER, HEADER_BYTES)
        self._unparsed = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owed = self.loop.call_later(HEADER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # a TLS connection still delivers what was sent
            return
        self._unset_keepalive_if_required()
        self._unparsed += data
        self.handle_events()
        ours, theirs = self.conn.our_state, self.conn.their_state
        has_begun = theirs is h11.IDLE and bool(self.conn.trailing_data[0])
        is_answered = ours is h11.DONE and theirs is h11.SEND_BODY
        if has_begun or is_answered:
            # The headers are incomplete, or the client still sends a body although its refusal was sent.
            self._owed = self._owed or self.loop.call_later(HEADER_S, self.transport.abort)
        elif theirs is not h11.IDLE:
            _cancel(self._owed)
            self._owed = None

    def handle_events(self) -> None:
        if self._is_unread():
            self.flow.pause_reading()
            return
        super().handle_events()
        while self._unparsed and self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self._is_unread():
            part = bytes(self._unparsed[:HEADER_BYTES])
            del self._unparsed[:HEADER_BYTES]
            self.conn.receive_data(part)
            super().handle_events()
            if self.transport.is_closing():
                self._unparsed.clear()
        if self._unparsed:
            self.flow.pause_reading()

    def _is_unread(self) -> bool:
        """Return True between two requests while much of the last response is unread."""
        return self.flow.write_paused and self.conn.our_state is h11.IDLE

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.flow.resume_reading()
            self.handle_events()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request and close its connection, without a response if another one has begun."""
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(self.conn.problem or msg)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._owed)


class _Guarded(_Timed):
    """A connection at a network listener. It is also closed if the client does not read its response for `UNREAD_S`."""

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
    """A connection at a Unix socket. Its client is the account that the kernel reports."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (peer := _peer(transport.get_extra_info("socket"))) is not None:
            self.client = peer


def _peer(connection: socket.socket) -> tuple[str, int] | None:
    """Return the client as ("unix:USER_ID", process id), or None if the socket is not a Unix socket."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid = peer_of(connection)
    return f"unix:{uid}", pid


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """A uvicorn server that shares its event loop with others.

    It does not handle signals, and it wakes once a second instead of ten times to check whether it has to end.
    """

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._tls = tls
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Make the server end."""
        self.should_exit = True
        self._ended.set()

    @property
    def is_listening(self) -> bool:
        """Return True while the server accepts connections."""
        return self.started and bool(self.servers) and all(one.is_serving() for one in self.servers)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets, with `HEADER_S` as the time limit for TLS handshakes.

        uvicorn's own method uses asyncio's limit of a minute.
        """
        await super().startup(sockets=[])
        loop = asyncio.get_running_loop()
        handshake_s = None if self._tls is None else HEADER_S
        for listener in sockets or []:
            server = await loop.create_server(
                self._connection,
                sock=listener,
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
        # uvicorn renews the `Date` header of its responses at ticks that are a multiple of ten.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Heart:
    """The service's heartbeat.

    `beat` is called again `every_s` seconds after it ended. If it raises, the service ends. `stalled` receives the
    seconds that a beat has been running, each time that the next one was due meanwhile, and 0 once it has ended.
    """

    beat: Callable[[], None]
    every_s: float
    stalled: Callable[[float], None]


def serve(
    listeners: Sequence[Listener],
    *,
    heart: Heart,
    ended: Callable[[], str | None],
    signalled: Callable[[], None] = lambda: None,
    reload: Callable[[], None] = lambda: None,
    end_responses: Callable[[], None] = lambda: None,
    probe: Callable[[], None] | None = None,
) -> str:
    """Serve until a signal arrives or `ended` returns a reason. Return the reason.

    Open requests have `GRACE_S` to end. Then `end_responses` is called in a thread and ends the others with an error.
    `signalled` is called in a thread at the first signal, also while the event loop is busy. `reload` is called in the
    event loop at each SIGHUP, which the caller has blocked. If the heartbeat raises, the service ends in order and the
    error is raised again here. Busy threads are not joined, as `asyncio.run` would do. With `probe`, systemd is
    notified when the listeners are ready, when they end, and at each interval of its watchdog while they accept
    connections and `probe` returns.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_serve(listeners, heart, ended, signalled, reload, end_responses, probe))
    finally:
        loop.run_until_complete(_end_tasks())
        loop.close()
        for listener in listeners:
            listener.socket.close()


async def _end_tasks() -> None:
    """Cancel the remaining tasks. A task that waits for a thread does not end before that thread does."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=TASKS_END_S)
    await asyncio.get_running_loop().shutdown_asyncgens()


@contextlib.contextmanager
def serve_in_thread(listener: Listener) -> Iterator[Callable[[], None]]:
    """Serve one listener in its own thread until the block ends or the yielded function is called.

    The socket stays open. Clients that connect between this and `serve` wait and are not refused. Open requests have
    `FINAL_GRACE_S` to end.
    """
    server, loop = _server(listener, FINAL_GRACE_S), asyncio.new_event_loop()
    copy = listener.socket.dup()

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(server.serve(sockets=[copy]))

    thread = threading.Thread(target=run, name="listener", daemon=True)
    thread.start()

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(server.end)
        thread.join()

    try:
        yield end
    finally:
        end()


def _server(listener: Listener, grace_s: int = GRACE_S + FINAL_GRACE_S) -> _Server:
    """Return a server for the listener, whose open requests have these seconds to end.

    It ignores headers of proxies: the source of a request is the connection's peer.
    """
    config = uvicorn.Config(
        check_framing(listener.app),
        http=_Guarded if listener.guarded else _Local,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=grace_s,
    )
    config.load()
    return _Server(config, listener.tls)


async def _serve(
    listeners: Sequence[Listener],
    heart: Heart,
    ended: Callable[[], str | None],
    signalled: Callable[[], None],
    reload: Callable[[], None],
    end_responses: Callable[[], None],
    probe: Callable[[], None] | None,
) -> str:
    reason = "signal"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    _take_signals(loop, stop, signalled)
    _take_hangups(loop, reload)
    servers = [_server(listener) for listener in listeners]
    running = [
        asyncio.create_task(server.serve(sockets=[listener.socket]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    beats = asyncio.create_task(_beat(heart, stop))
    supervised = None if probe is None else asyncio.create_task(_report(servers, probe))
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if why := ended():
            reason = why
            stop.set()
        if any(task.done() for task in running):
            reason = "listener closed"
            stop.set()
        if supervised is not None and supervised.done() and supervised.exception() is not None:
            log.critical("ALARM: the probe of the ledger failed, the service ends", exc_info=supervised.exception())
            reason = "probe failed"
            stop.set()
    if failed := beats.done():
        log.critical("ALARM: the heartbeat failed, the service ends", exc_info=beats.exception())
    beats.cancel()
    if supervised is not None:
        supervised.cancel()
        notify("STOPPING=1")
    with contextlib.ExitStack() as replacements:
        for listener in listeners:
            if listener.stopping is not None:
                replacements.enter_context(serve_in_thread(replace(listener, app=listener.stopping)))
        for server in servers:
            server.end()
        ending = loop.call_later(GRACE_S, _run_in_thread, end_responses)
        await asyncio.gather(*running)
        ending.cancel()
    if failed:
        beats.result()
    return reason


async def _report(servers: Sequence[_Server], probe: Callable[[], None]) -> None:
    """Notify systemd that the servers are ready, and then regularly that they still are.

    Its watchdog is notified three times in its interval, and only after `probe` has returned.
    """
    while not all(server.is_listening for server in servers):
        await asyncio.sleep(READY_S)
    notify("READY=1")
    watchdog_s = read_watchdog_s()
    while watchdog_s is not None:
        await asyncio.sleep(watchdog_s / 3)
        await _run_in_thread(probe)
        if all(server.is_listening for server in servers):
            notify("WATCHDOG=1")


def _take_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, signalled: Callable[[], None]) -> None:
    """Set `stop` and call `signalled` at a signal that ends the service.

    `signalled` runs in a thread, which a busy event loop does not delay.
    """
    arrived: SimpleQueue[int] = SimpleQueue()

    def wait() -> None:
        arrived.get()
        signalled()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)  # wakes the loop
        signal.signal(number, lambda number, _: arrived.put(number))
    threading.Thread(target=wait, name="signals", daemon=True).start()


def _take_hangups(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    """Call `reload` in the event loop at each SIGHUP."""

    def wait() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while True:
                signal.sigwait({signal.SIGHUP})
                loop.call_soon_threadsafe(reload)

    threading.Thread(target=wait, name="hangups", daemon=True).start()


async def _beat(heart: Heart, stop: asyncio.Event) -> None:
    """Beat until an error. Stop the listeners when the heartbeat fails, and raise its error."""
    try:
        while True:
            await asyncio.sleep(heart.every_s)
            running = _run_in_thread(heart.beat)
            began, has_stalled = time.monotonic(), False
            while not (await asyncio.wait([running], timeout=heart.every_s))[0]:
                has_stalled = True
                heart.stalled(time.monotonic() - began)
            running.result()
            if has_stalled:
                heart.stalled(0.0)
    finally:
        stop.set()


def _run_in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work` in a daemon thread and return its future.

    The thread is not joined, so that one that hangs on a disk or a database does not delay the end of the service.
    """
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


class Activity:
    """A count of the open requests of the listeners that it watches, all in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._last = clock()

    def watching(self, app: ASGIApp) -> ASGIApp:
        """Return the app with its requests counted.

        A request is open from its headers until its response is sent or abandoned.
        """

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":  # the app's own lifespan is as long as the service's
                await app(scope, receive, send)
                return
            self._touch(1)
            try:
                await app(scope, receive, send)
            finally:
                self._touch(-1)

        return watched

    def idle_s(self) -> float:
        """Return the seconds since the last request ended, or 0 while one is open."""
        return 0.0 if self._open else self._clock() - self._last

    def _touch(self, change: int) -> None:
        self._open += change
        self._last = self._clock()
