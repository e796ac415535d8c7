"""What an operator must know before it stops the appliance: a disk that fills up, a clock that went back, something
planted in the database, over which the next start is refused.

NIST 800-53 AU-5(1): warn before the audit trail can no longer be written.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.domain.core.names import add_seconds
from appliance.errors import Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.workflows.core.context import Context

LOW_BYTES = 1 << 30
LOW_SHARE = 0.05


def warnings(context: Context, folder: Path) -> list[str]:
    """One line for each thing that is near its end; empty while all is well."""
    return [*_disk(folder), *_clock(context), *_schema(context)]


def _disk(folder: Path) -> list[str]:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return [f"disk of {folder}: expected to read the free space, got {error.strerror or error}"]
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    limit = min(LOW_BYTES, int(total * LOW_SHARE))
    if free >= limit:
        return []
    return [
        f"disk of {folder}: expected at least {limit >> 20} MiB free, got {free >> 20}; when it is full nothing acts"
    ]


def _clock(context: Context) -> list[str]:
    """Nothing is appended under a clock that went back but what resets it."""
    now, last = encode_time(context.clock()), context.ledger.state.last_time
    if add_seconds(now, context.ledger.state.parameters.clock_skew_s) >= last:
        return []
    ends = "nothing acts until it is set or, if it is right, two administrators type: appliance clock reset"
    return [f"clock: expected a time after the last entry's, {last}, got {now}; {ends}"]


def _schema(context: Context) -> list[str]:
    try:
        return [f"database, {finding}" for finding in context.ledger.check_schema()]
    except Unavailable:
        return []  # which the heartbeat itself will say
