"""Carries out the attacks that the test names in frames, one after another, and reports their results."""

from __future__ import annotations

import errno
import sys

from appliance.formats.core.frame import read_frame, write_frame
from inmates import attacks


def main() -> None:
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        try:
            getattr(attacks, frame[0]["attack"])(*frame[0]["arguments"])
            outcome = "open"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, repr(error))
        write_frame(sys.stdout.buffer, {"frame": "result", "outcome": outcome})


main()
