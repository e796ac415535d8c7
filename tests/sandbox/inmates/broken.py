"""Workers that send malformed frames, as the first frame requests."""

from __future__ import annotations

import sys
import time

from appliance.formats.core.frame import read_frame, write_frame

frame = read_frame(sys.stdin.buffer)
assert frame is not None
kind = frame[0]["kind"]
if kind == "huge":
    sys.stdout.buffer.write(b"\xff\xff\xff\xff")
elif kind == "cut":
    sys.stdout.buffer.write(b"\x00\x00\x00\x09{}")
elif kind == "loud":
    sys.stderr.write("first words\n" + "\x1b[2J and more\n" * 200_000 + "last words\n")
elif kind == "silent":
    time.sleep(60)
elif kind == "flood":
    for number in range(10_000):
        write_frame(sys.stdout.buffer, {"number": number}, bytes(1 << 16))
sys.stdout.buffer.flush()
