"""Takes nothing of the CPU and never ends."""

from __future__ import annotations

import sys
import time

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.probes import probe_sandbox

write_frame(sys.stdout.buffer, {"frame": "sandbox", "results": probe_sandbox()})
frame = read_frame(sys.stdin.buffer)
while True:
    write_frame(sys.stdout.buffer, {"frame": "progress"})
    time.sleep(0.05)
