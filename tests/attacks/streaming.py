"""Responses that are in progress while a test revokes or removes something."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from scripts.kit.appliance import Appliance
from tests.attacks.stopped import HOLD_RESPONSES, PIECES
from tests.attacks.stopping import LAUNCHER

LONG = {"type": "json_schema", "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 900}}}
"""A schema that fills nearly the whole context of the attacks' base; a response without it may be short."""


@contextmanager
def under_way(
    site: Appliance,
    wanted: Sequence[tuple[str, int]],
    response_format: dict[str, Any] | None = LONG,
    *,
    hold: bool = True,
) -> Iterator[list[Future[Any]]]:
    """Start a response for each token and seed, and wait until all have begun. Each future gives the last event.

    With `hold`, none goes on until `let_go` or the end of the block; one that is cut ends at once.
    """
    assert not hold or site.launcher == LAUNCHER
    more = {} if response_format is None else {"response_format": response_format}
    begun = threading.Semaphore(0)
    if hold:
        (site.home / HOLD_RESPONSES).touch()
    with ThreadPoolExecutor(len(wanted)) as pool:
        try:
            streams = [pool.submit(_stream, site, token, {"seed": seed, **more}, begun) for token, seed in wanted]
            for _ in streams:
                assert begun.acquire(timeout=120)
            yield streams
        finally:
            let_go(site)  # else the pool would wait for them for ever


def let_go(site: Appliance) -> None:
    """Let responses that are held go on."""
    (site.home / HOLD_RESPONSES).unlink(missing_ok=True)


def _stream(site: Appliance, token: str, more: dict[str, Any], begun: threading.Semaphore) -> Any:
    body = {"model": "labels", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1000, "stream": True}
    head, last, seen = {"Authorization": f"Bearer {token}"}, "", 0
    wanted = {**body, "temperature": 2.0, **more}
    with site.units() as client, client.stream("POST", "/v1/chat/completions", json=wanted, headers=head) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last, seen = line[6:], seen + 1
                if seen == PIECES:
                    begun.release()
    return last if last == "[DONE]" else json.loads(last)
