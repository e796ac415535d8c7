"""An honest worker: threads, children, temporary files, renames, random bytes."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import sys
import tempfile
from pathlib import Path

from appliance.formats.core.frame import read_frame, write_frame


def main() -> None:
    frame = read_frame(sys.stdin.buffer, max_blob=1 << 24)
    assert frame is not None
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threads = sum(pool.map(int, range(10)))
    child = os.fork()
    if child == 0:
        os._exit(42)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with tempfile.NamedTemporaryFile() as file:
        temporary = file.name
    Path("part").write_bytes(os.urandom(16))
    os.rename("part", "whole")
    Path("folder").mkdir()
    shutil.copyfile("whole", "folder/copy")
    read = Path(frame[0]["read"]).read_text()
    answer = {"threads": threads, "child": code, "temporary": temporary, "read": read}
    write_frame(sys.stdout.buffer, {"frame": "result", **answer}, frame[1])


main()
