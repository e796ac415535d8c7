"""Does what a preparing worker is asked for: writes a file, and says what it found."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.walls import probe_walls

write_frame(sys.stdout.buffer, {"frame": "walls", "results": probe_walls()})
frame = read_frame(sys.stdin.buffer)
assert frame is not None
Path(frame[0]["output"], "weights").write_bytes(b"weights")
write_frame(sys.stdout.buffer, {"frame": "result", "parameters": 1})
