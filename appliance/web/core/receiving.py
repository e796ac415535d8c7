"""An upload's bytes on their way to the disk, part by part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from appliance.errors import BadInput
from appliance.web.core import bodies
from appliance.workflows.core.context import Context


def read_size(headers: Headers) -> int:
    """How many bytes are said to come."""
    size = headers.get("content-length", "")
    if not size.isascii() or not size.isdecimal() or len(size) > 18:
        raise BadInput("upload, content-length: expected a number of bytes, got none")
    return int(size)


async def take_upload(context: Context, sender: str, digest: str, size: int, parts: AsyncIterator[bytes]) -> None:
    """Durable under the digest, or nothing of it."""
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


def paced(receive: Receive) -> Receive:
    """An upload may be large; its next part comes in time, or it ends."""

    async def part() -> Message:
        try:
            async with asyncio.timeout(bodies.BODY_S):
                return await receive()
        except TimeoutError:
            raise BadInput(
                f"upload: expected its next part within {bodies.BODY_S:.0f} s, got none", code="too-slow"
            ) from None

    return part
