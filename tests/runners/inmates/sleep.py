"""Takes nothing of the CPU and never ends."""

from __future__ import annotations

import sys
import time

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.walls import probe_walls

write_frame(sys.stdout.buffer, {"frame": "walls", "results": probe_walls()})
frame = read_frame(sys.stdin.buffer)
while True:
    write_frame(sys.stdout.buffer, {"frame": "progress"})
    time.sleep(0.05)
