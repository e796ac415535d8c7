"""Somebody follows work that goes on: a request is answered once there is news, or after so many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from appliance.workflows.core.progress import Progress

Answer = dict[str, Any]


async def follow(
    progress: Progress, key: str, look: Callable[[], Answer], is_news: Callable[[Answer], bool], wait_s: float
) -> Answer:
    """What `look` finds of the stream `key`. It waits in the event loop: who follows holds no thread."""
    until = time.monotonic() + wait_s
    while True:
        seen = progress.changes_of(key)
        found = await run_in_threadpool(look)
        left = until - time.monotonic()
        if left <= 0 or is_news(found):
            return found
        await progress.wait(key, seen, left)


def has_ended(answer: Answer) -> bool:
    return bool(answer["ended"])


def is_settled(answer: Answer) -> bool:
    """Of an order that the log knows: nothing is under way any more."""
    return bool(answer["status"] != "requested")


def has_frames(answer: Answer) -> bool:
    return bool(answer["frames"] or answer["ended"])
