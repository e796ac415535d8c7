"""The command line as one of several people on one machine types it: root becomes that account first.

`someone.py UID GROUP WORD...`; GROUP "-": in none besides their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.cli import main
from tests.sandbox.service import show_to_everyone


def run() -> int:
    uid, group, *words = sys.argv[1:]
    show_to_everyone([sys.base_prefix, sys.prefix, str(Path(__file__).resolve().parents[2])])
    os.setgroups([] if group == "-" else [int(group)])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    return main.run(words)


if __name__ == "__main__":
    sys.exit(run())
