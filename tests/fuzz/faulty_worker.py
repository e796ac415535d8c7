"""A worker with parsers that end the process, take memory, or do not return, which `scripts/fuzz` must find."""

from __future__ import annotations

import os
import time

from tests.fuzz import worker
from tests.fuzz.target import TARGETS, Target

GOOD = b"good"


def end(data: bytes) -> None:
    if data != GOOD:
        os.abort()


def hang(data: bytes) -> None:
    if data != GOOD:
        time.sleep(60)


def grow(data: bytes) -> bytes:
    return bytes(1 << 30) if data != GOOD else b""


FAULTS = {"end": end, "hang": hang, "grow": grow}

if __name__ == "__main__":
    for name, fault in FAULTS.items():
        TARGETS[name] = Target(fault, lambda: [GOOD], "bytes")
    worker.main()
