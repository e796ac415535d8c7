"""Python's garbage collector, once the log is folded."""

from __future__ import annotations

import gc


def tune_garbage_collector() -> None:
    """What is loaded stays, and a collection that goes through all of it stops every answer for some 30 ms. Few objects
    made later are garbage that their counts do not free: to look for them after each 700 took an eighth of what many
    appends at once take."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
