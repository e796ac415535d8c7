"""A token of Debian's SoftHSM. The module reads its configuration once in a process."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = b"correct horse"


@cache
def make_token(folder: Path, label: str = "appliance") -> str:
    """Make a token, and return its URI."""
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", PIN.decode()],
        check=True,
        capture_output=True,
    )
    return f"pkcs11:token={label}?module-path={MODULE}"
