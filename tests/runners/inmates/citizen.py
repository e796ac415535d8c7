"""What an honest worker needs: threads, children, its own interpreter, temporary files, renames, random bytes."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from appliance.formats.frame import read_frame, write_frame


def main() -> None:
    frame = read_frame(sys.stdin.buffer, max_blob=1 << 24)
    assert frame is not None
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threads = sum(pool.map(int, range(10)))
    child = subprocess.run([sys.executable, "-c", "print(6*7)"], check=True, capture_output=True, text=True)
    with tempfile.NamedTemporaryFile() as file:
        temporary = file.name
    Path("part").write_bytes(os.urandom(16))
    os.rename("part", "whole")
    Path("folder").mkdir()
    shutil.copyfile("whole", "folder/copy")
    read = Path(frame[0]["read"]).read_text()
    answer = {"threads": threads, "child": child.stdout.strip(), "temporary": temporary, "read": read}
    write_frame(sys.stdout.buffer, {"frame": "result", **answer}, frame[1])


main()
