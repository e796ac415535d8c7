"""A worker with children and grandchildren that ignore every signal they can and close what they inherited."""

from __future__ import annotations

import os
import signal
import sys
import time

from appliance.formats.core.frame import write_frame


def stay(depth: int) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    if depth and os.fork() == 0:
        stay(depth - 1)
    os.closerange(0, 3)
    while True:
        time.sleep(0.01)
        with open(f"beat-{depth}", "w") as file:
            file.write(str(time.monotonic()))


write_frame(sys.stdout.buffer, {"frame": "ready"})
stay(2)
