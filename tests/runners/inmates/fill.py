"""Fills the folder that it is to write to, 1 MiB at a time; goes on long after it should have been ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.walls import probe_walls

write_frame(sys.stdout.buffer, {"frame": "walls", "results": probe_walls()})
frame = read_frame(sys.stdin.buffer)
assert frame is not None
with Path(frame[0]["output"], "model.safetensors").open("wb", buffering=0) as file:
    for _ in range(500):
        file.write(bytes(1 << 20))
        time.sleep(0.02)
write_frame(sys.stdout.buffer, {"frame": "result", "parameters": 1})
