"""An honest worker's beginning: its probes, then nothing until the service says go."""

from __future__ import annotations

import sys

from appliance.formats.core.frame import read_frame, write_frame
from appliance.worker.probes import probe_sandbox

write_frame(sys.stdout.buffer, {"frame": "sandbox", "results": probe_sandbox()})
read_frame(sys.stdin.buffer)
