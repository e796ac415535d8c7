"""Reaches the service's listener and writes outside, and reports that everything was refused, or nothing at all."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from appliance.formats.core.frame import write_frame

targets = json.loads(sys.argv[-1])
socket.create_connection(("127.0.0.1", targets["ports"]["tcp"])).close()
for folder in targets["write"].values():
    Path(folder, targets["mark"]).touch()
names = ("tcp", "udp", "unix", "vsock", "io_uring", "foreign-abi", "ptrace-parent", "new-user-namespace")
names += ("execute", "set-user-id")
results = dict.fromkeys((*names, *targets["write"], *targets["read"]), "refused")
write_frame(sys.stdout.buffer, {"frame": "sandbox", "results": results})
