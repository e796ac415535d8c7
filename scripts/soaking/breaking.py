"""The serving worker with injected faults: a whole batch fails, one row fails, logits are not finite, it dies."""

from __future__ import annotations

import os
import sys
from typing import Any

from appliance.worker import serve
from appliance.worker.link import Header, WorkerLink

SAID = "soak, injected: "
BATCH_EVERY, ROW_EVERY, NAN_EVERY, DEATH_EVERY = 61, 101, 149, 2503
"""So many batches apart; primes, so that they rarely fall together."""


class Breaking:
    """Wraps the function that computes a batch, and injects faults."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._batches = 0
        self._victim: object | None = None

    def __call__(self, base: Any, slots: Any, cache: Any, held: list[Any], last: list[int]) -> Any:
        import torch

        if self._victim is not None:
            return self._fail_victim(base, slots, cache, held, last)
        self._batches += 1
        if self._batches % DEATH_EVERY == 0:
            say("death")
            os._exit(9)
        if len(held) > 1 and self._batches % ROW_EVERY == 0:
            say("row")
            self._victim = held[self._batches % len(held)]
            raise RuntimeError("injected")
        if self._batches % BATCH_EVERY == 0 and len(held) > 1:
            say("batch")
            raise MemoryError
        logits = self._real(base, slots, cache, held, last)
        if self._batches % NAN_EVERY == 0:
            say("not-finite")
            logits = logits.clone()
            logits[self._batches % len(held)] = torch.nan
        return logits

    def _fail_victim(self, base: Any, slots: Any, cache: Any, held: list[Any], last: list[int]) -> Any:
        """Fail the victim's row once more when the engine tries the rows one by one."""
        if held[0] is self._victim and len(held) == 1:
            self._victim = None
            raise RuntimeError("injected")
        return self._real(base, slots, cache, held, last)


def say(kind: str) -> None:
    print(f"{SAID}{kind}", file=sys.stderr, flush=True)


def work(session: WorkerLink) -> Header:
    lanes = serve.Lanes()
    from appliance.ml.serving import engine

    changed: Any = engine
    changed.read_drawn = Breaking(engine.read_drawn)
    changed = serve
    changed.Lanes = lambda: lanes
    return serve.work(session)
