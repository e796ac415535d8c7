"""A worker with parsers that end the process, take memory, or do not return, which `scripts/fuzz` must find."""

from __future__ import annotations

import os
import time

from tests.fuzz import worker
from tests.fuzz.target import TARGETS, Target


def end(data: bytes) -> None:
    if b"!" in data:
        os.abort()


def hang(data: bytes) -> None:
    if b"!" in data:
        time.sleep(60)


def grow(data: bytes) -> bytes:
    return bytes(1 << 30) if b"!" in data else b""


FAULTS = {"end": end, "hang": hang, "grow": grow}

if __name__ == "__main__":
    TARGETS.clear()
    for name, fault in FAULTS.items():
        TARGETS[name] = Target(fault, lambda: [b"good"], "bytes")
    worker.main()
