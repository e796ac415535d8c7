"""Request bodies, uploads, and responses whose delivery is recorded."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from appliance.domain.core.roles import refuse_without_role, require_enrolled
from appliance.errors import ApplianceError, BadInput, Denied, RateLimited, TooLarge, Unavailable
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.core.jobs import contain_defects

SENDERS = ("operator", "validator")
"""Roles that may upload: they import bases, datasets and validation sets."""
BODY_BYTES = 2 * 1024 * 1024
"""Maximum bytes of a body."""
BODY_S = 30.0
"""Seconds in which a body, or the next part of an upload, must arrive."""
BODY_MEMORY_BYTES = 256 * 1024 * 1024
"""Maximum bytes of all bodies of one listener together."""
_DRAINED_BYTES = 16 * 1024 * 1024
"""Maximum bytes that are read from a client after its request was refused."""


def authorization_of(scope: Scope) -> str | None:
    """Return the request's `Authorization` header, or None if it has none or several."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    return values[0] if len(values) == 1 else None


def source_of(scope: Scope) -> str:
    """Return the source of a request as entries have it, such as `unix:1000` or `tcp:10.0.0.7`.

    Only the people's socket gives an account. A connection whose peer is not known counts as one of a network.
    """
    client = scope.get("client")
    if client is None:
        return "tcp"
    host: str = client[0]
    return host if host.startswith("unix:") else f"tcp:{host}"


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        continue


class BodyMemory:
    """The memory limit for the bodies of all requests, used in one event loop.

    A slow sender uses only as much as it has sent.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Reserve `size` bytes.

        Raises: RateLimited if all bodies together would exceed the limit.
        """
        if self._taken + size > self._most:
            raise RateLimited(f"request: expected bodies of {self._most} bytes at most at once, got more; ask again")
        self._taken += size

    def leave(self, size: int) -> None:
        """Release `size` bytes."""
        self._taken -= size


class Body:
    """The body of one request, read as a whole within a limit of bytes and of seconds.

    With a `memory`, its bytes count there until `close`.
    """

    def __init__(
        self, receive: Receive, most: int = BODY_BYTES, memory: BodyMemory | None = None, within_s: float = BODY_S
    ) -> None:
        self._receive = receive
        self._most = most
        self._within_s = within_s
        self._memory = memory
        self._held = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._more = True
        self._given = False

    async def read(self, scope: Scope) -> None:
        """Read the whole body.

        Raises: TooLarge if the `Content-Length` header or the received bytes exceed the limit; RateLimited if the
        memory is full; BadInput if the body does not arrive in time or the connection ends.
        """
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value) > self._most for value in lengths):
            raise TooLarge(f"request: expected at most {self._most} bytes")
        try:
            async with asyncio.timeout(self._within_s):
                while self._more:
                    await self._take()
                    if self._size > self._most:
                        self._chunks.clear()
                        raise TooLarge(f"request: expected at most {self._most} bytes")
                    self._hold(len(self._chunks[-1]))
        except TimeoutError:
            raise BadInput(f"request: expected its body within {self._within_s:.0f} s", code="too-slow") from None

    def _hold(self, size: int) -> None:
        if self._memory is not None:
            self._memory.take(size)
            self._held += size

    def close(self) -> None:
        """Drop the body and release its bytes."""
        self._chunks.clear()
        if self._memory is not None:
            self._memory.leave(self._held)
            self._held = 0

    async def _take(self) -> None:
        message = await self._receive()
        if message["type"] != "http.request":
            raise BadInput("request: expected its whole body, got the end of the connection", code="disconnected")
        self._chunks.append(message.get("body", b""))
        self._size += len(self._chunks[-1])
        self._more = message.get("more_body", False)

    async def replay(self) -> Message:
        """Return the body as one ASGI message. Later calls return the connection's next messages."""
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": b"".join(self._chunks), "more_body": False}
        return await self._receive()

    async def drain(self) -> None:
        """Read and drop what a refused client still sends, so that it can read the response.

        This ends after 2 seconds or `_DRAINED_BYTES`.
        """
        try:
            async with asyncio.timeout(2.0):
                while self._more and self._size < _DRAINED_BYTES:
                    await self._take()
                    self._chunks.clear()
        except (TimeoutError, BadInput):
            return


def read_size(headers: Headers) -> int:
    """Return the bytes of an upload, from its `Content-Length` header.

    Raises: BadInput if there is none.
    """
    size = headers.get("content-length", "")
    if not size.isascii() or not size.isdecimal() or len(size) > 18:
        raise BadInput("upload, content-length: expected a number of bytes, got none")
    return int(size)


async def take_upload(context: LedgerContext, sender: str, digest: str, size: int, parts: AsyncIterator[bytes]) -> None:
    """Write an upload durably under its digest. Remove all of it if any step fails.

    Raises: Denied before a part is read, if the sender has none of the roles that import files.
    """
    state = context.ledger.state
    principal = state.principals.get(sender)
    if reasons := require_enrolled(state, sender) if principal is None else refuse_without_role(principal, *SENDERS):
        raise Denied("upload", refusals=reasons)
    receiving = context.uploads.receive(context.artifacts, sender, digest, size)
    incoming = await run_in_threadpool(receiving.__enter__)
    try:
        async for part in parts:
            await run_in_threadpool(incoming.write, part)
        await run_in_threadpool(incoming.finish)
    except BaseException as error:
        receiving.__exit__(type(error), error, error.__traceback__)
        raise
    await run_in_threadpool(receiving.__exit__, None, None, None)


def limit_pace(receive: Receive) -> Receive:
    """Return `receive` with a time limit of `BODY_S` seconds for each part of an upload."""

    async def part() -> Message:
        try:
            async with asyncio.timeout(BODY_S):
                return await receive()
        except TimeoutError:
            raise BadInput(f"upload: expected its next part within {BODY_S:.0f} s, got none", code="too-slow") from None

    return part


log = logging.getLogger("appliance")

Answer = TypeVar("Answer")
SETTLE_S = 0.05
"""Seconds in which the end of a connection is noticed after the body was sent."""
RECORD_S = 10.0
"""Maximum seconds that the end of a response waits for its record. Recording continues after that."""


async def run_while_awaited(request: Request, work: Callable[[Callable[[], bool]], Answer]) -> Answer:
    """Run `work` in a thread and return its result.

    `work` receives a function that returns True once the client has left or the service ends.

    Raises: Unavailable if the service ends first.
    """
    left = threading.Event()
    listening = asyncio.create_task(_listen(request, left))
    try:
        return await run_in_threadpool(work, left.is_set)
    except asyncio.CancelledError:
        raise make_shutdown_error() from None
    finally:
        left.set()
        listening.cancel()


def make_shutdown_error() -> Unavailable:
    """Return the error of a request that the server cancels, because it is still open when the service ends.

    The thread that works on it ends by itself.
    """
    return Unavailable(
        "service: expected it to run until the answer, got its shutdown; send the request again", code="service-ends"
    )


async def _listen(request: Request, left: threading.Event) -> None:
    await wait_for_disconnect(request.receive)
    left.set()


class Delivery(Response):
    """A response whose delivery is recorded before the response ends.

    The body is sent without its length. Its end follows the record, so a client that has the whole response finds its
    entry in the log.
    """

    def __init__(self, content: bytes, media_type: str, record: Callable[[bool], None]) -> None:
        """Create the response.

        `record` is called once in a thread, with True if all of `content` was sent over an open connection.
        """
        super().__init__(content, media_type=media_type)
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        is_whole = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            for piece in (self.body, b""):  # sending the empty one waits until the server has written the other
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            is_whole = not await _has_left(receive)
        finally:
            recording = asyncio.get_running_loop().run_in_executor(None, self._write, is_whole)
        await asyncio.wait([recording], timeout=RECORD_S)
        await send({"type": "http.response.body", "body": b""})

    def _write(self, is_whole: bool) -> None:
        try:
            with contain_defects("delivery"):
                self._record(is_whole)
        except ApplianceError as error:
            log.error("delivery: expected its record in the log, got: %s", error.message)


async def _has_left(receive: Receive) -> bool:
    """Return True if the client closed the connection."""
    try:
        async with asyncio.timeout(SETTLE_S):
            await wait_for_disconnect(receive)
    except TimeoutError:
        return False
    return True


class RequestLimit:
    """A limit on concurrent requests, in total and per caller, used in one event loop.

    `most_of_one` is the limit per caller; None means no limit other than the total.
    """

    def __init__(self, most: int, what: str = "requests", most_of_one: int | None = None) -> None:
        self._most = most
        self._most_of_one = most if most_of_one is None else most_of_one
        self._what = what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, who: str = "") -> Iterator[None]:
        """Hold a place during the block.

        Raises: RateLimited if no place is free, in total or for this caller.
        """
        if self._taken.total() >= self._most:
            raise RateLimited(f"{self._what}: expected at most {self._most} at once, got one more")
        if self._taken[who] >= self._most_of_one:
            raise RateLimited(f"{self._what}: expected at most {self._most_of_one} at once of yours, got one more")
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            self._taken += Counter()  # removes callers without a place
