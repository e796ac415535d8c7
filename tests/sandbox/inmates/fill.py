"""Fills its output folder, 1 MiB at a time, without an end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.probes import probe_sandbox

write_frame(sys.stdout.buffer, {"frame": "sandbox", "results": probe_sandbox()})
frame = read_frame(sys.stdin.buffer)
assert frame is not None
with Path(frame[0]["output"], "model.safetensors").open("wb", buffering=0) as file:
    for _ in range(500):
        file.write(bytes(1 << 20))
        time.sleep(0.02)
write_frame(sys.stdout.buffer, {"frame": "result", "parameters": 1})
