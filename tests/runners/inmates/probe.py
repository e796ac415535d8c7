"""An honest worker's beginning: its walls, then nothing until the service says go."""

from __future__ import annotations

import sys

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.walls import probe_walls

write_frame(sys.stdout.buffer, {"frame": "walls", "results": probe_walls()})
read_frame(sys.stdin.buffer)
