"""Starts a worker that probes its sandbox, as the service does, and writes what it found: confined.py FOLDER RESULT.

It runs as a unit, so that the worker is started inside of what systemd restricts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from appliance.sandbox.description import Sandbox
from appliance.sandbox.escape_targets import Probes
from appliance.sandbox.local import start_worker

INMATES = Path(__file__).resolve().parents[1] / "sandbox" / "inmates"


def main(folder: Path, result: Path) -> None:
    (folder / "output").mkdir(parents=True)
    (folder / "keys").mkdir(mode=0o700)
    probes = Probes(read={"read-keys": folder / "keys"}, write={"write-outside": folder})
    sandbox = Sandbox(read=(), write=(folder / "output",))
    with start_worker("inmates.probe", sandbox, log=folder / "log", probes=probes, code=INMATES) as worker:
        found = {
            "probes": worker.check_sandbox(),
            "layers": dict(worker.layers),
            "reasons": dict(worker.reasons),
            "user": os.geteuid(),
            "seccomp": Path("/proc/self/status").read_text().partition("Seccomp:\t")[2][:1],
        }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
