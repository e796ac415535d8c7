"""Who sent what lies uploaded, and how much of it there may be: of one person, and of all together.

Uploads lie outside the log, and nothing but an import or a check removes them early. So they are bounded, also by what
the ledger needs of the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import TooLarge, Unavailable
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.uploads import Upload
from appliance.workflows.core.defects import DISK
from appliance.workflows.core.disk_reserve import reserve_of

OF_ONE, OF_ALL = 1 / 2, 3 / 4
"""Parts of the disk: what one person's uploads have at most, and all together."""


class Uploads:
    """Who sent what lies there. It is forgotten with the uploads themselves, at the service's start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._senders: dict[str, str] = {}
        self._coming: dict[object, tuple[str, int]] = {}

    @contextmanager
    def receive(self, artifacts: Artifacts, sender: str, digest: str, size: int) -> Iterator[Upload]:
        """Where the bytes go. `finish` makes them durable under the digest, or raises and leaves nothing.

        TooLarge where the sender, or all together, would have too much that no import has read; Unavailable where the
        disk has no room for it.
        """
        token = object()
        with self._lock:
            self._check(artifacts, sender, digest, size)
            self._coming[token] = (sender, size)
        try:
            with artifacts.receive(digest, size) as upload:
                yield upload
                with self._lock:
                    self._senders[digest] = sender
        finally:
            with self._lock:
                del self._coming[token]

    def _check(self, artifacts: Artifacts, sender: str, digest: str, size: int) -> None:
        there = artifacts.uploads()
        self._senders = {known: who for known, who in self._senders.items() if known in there}
        coming = sum(most for _, most in self._coming.values())
        theirs = sum(most for who, most in self._coming.values() if who == sender)
        theirs += sum(one.size for known, one in there.items() if self._senders.get(known) == sender)
        disk, free, reserve = reserve_of(artifacts.uploads_folder)
        for whose, held, most in (
            (f"uploads of {sender}", theirs, int(disk * OF_ONE)),
            ("uploads", coming + sum(one.size for one in there.values()), int(disk * OF_ALL)),
        ):
            if held + size > most:
                raise TooLarge(
                    f"{whose}: expected at most {most} bytes that no import has read, got {held} and {size} more; "
                    "wait for the imports, or for the day after which they are removed"
                )
        if size + coming > free - reserve:
            expected = f"{size + coming} bytes free beside the {reserve} that the log needs"
            raise Unavailable(f"upload {digest}, disk: expected {expected}, got {free}; make room", code=DISK)
