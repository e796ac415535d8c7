"""Folders in folders, as a worker can make them."""

from __future__ import annotations

import os
from pathlib import Path


def nest(folder: Path, depth: int) -> int:
    """So many levels below the folder, `n/n/…`, however long their path would be; a descriptor of the deepest."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("n", dir_fd=here)
        below = os.open("n", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    return here
