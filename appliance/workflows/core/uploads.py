"""Limits on uploads: those of one person, and those of all people together.

Uploads are not part of the log. An import or a check removes them, and otherwise they are kept for a day. So their
number and size are limited, also by the disk space that the ledger needs.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from appliance.errors import TooLarge, Unavailable
from appliance.store.files.artifacts import Artifacts, Upload, UploadKey
from appliance.store.files.space import Reserve, measure_space
from appliance.workflows.core.jobs import DISK

OF_ONE, OF_ALL = 1 / 2, 3 / 4
"""Largest shares of the disk for the uploads of one person, and for all uploads together."""
MOST_OF_ONE = 1024
"""Most uploads of one person. A base has at most 512 files and a manifest."""


class Uploads:
    """Uploads that are being received or stored, and those that orders name."""

    def __init__(self, reserve: Reserve | None = None) -> None:
        self._reserve = reserve
        self._lock = threading.Lock()
        self._receiving: dict[object, tuple[str, int]] = {}
        self._stored: dict[str, dict[str, int]] | None = None
        """Sizes of complete uploads by sender and digest; None until the disk was read."""
        self._bytes: Counter[str] = Counter()
        """Bytes of complete uploads by sender."""
        self._naming = threading.Lock()
        self._named: dict[str, frozenset[UploadKey]] = {}
        """Uploads that an order names, by the order's digest."""

    @contextmanager
    def receive(self, artifacts: Artifacts, sender: str, digest: str, size: int) -> Iterator[Upload]:
        """Open an upload. `finish` makes the bytes durable under the digest, or raises and leaves no file.

        Raises:
            TooLarge: The uploads of the sender, or all uploads together, would be too large or too many.
            Unavailable: The disk has not enough free space.
        """
        token = object()
        with self._lock:
            self._check(artifacts, sender, digest, size)
            self._receiving[token] = (sender, size)
        upload: Upload | None = None
        try:
            with artifacts.receive(sender, digest, size) as upload:
                yield upload
        finally:
            with self._lock:
                del self._receiving[token]
                if upload is not None and upload.finished:
                    self._count(artifacts, UploadKey(sender, digest), size)

    def discard(self, artifacts: Artifacts, upload: UploadKey, sent_by: float = math.inf) -> None:
        """Remove an upload that no order names, unless it is later than `sent_by`, in seconds since 1970."""
        with self._naming:
            if any(upload in named for named in self._named.values()):
                return
            gone = artifacts.discard_upload(*upload, sent_by)
        if gone:
            with self._lock:
                self._count(artifacts, upload, None)

    def name(self, order: str, uploads: Iterable[UploadKey]) -> None:
        """Keep these uploads for the order of this digest until `forget`."""
        with self._naming:
            self._named[order] = frozenset(uploads)

    def named(self, order: str) -> frozenset[UploadKey]:
        """Return the uploads that are kept for the order of this digest."""
        return self._named.get(order, frozenset())

    def forget(self, order: str) -> None:
        """Keep no more uploads for the order of this digest."""
        with self._naming:
            self._named.pop(order, None)

    def _read(self, artifacts: Artifacts) -> dict[str, dict[str, int]]:
        """Return the sizes of complete uploads, read from the disk once and counted since."""
        if self._stored is None:
            found = artifacts.uploads()
            self._stored = {}
            for key, upload in found.items():
                self._stored.setdefault(key.sender, {})[key.digest] = upload.size
                self._bytes[key.sender] += upload.size
        return self._stored

    def _count(self, artifacts: Artifacts, upload: UploadKey, size: int | None) -> None:
        """Note the size of a stored upload; None removes it."""
        own = self._read(artifacts).setdefault(upload.sender, {})
        self._bytes[upload.sender] += (size or 0) - own.pop(upload.digest, 0)
        if size is not None:
            own[upload.digest] = size

    def _check(self, artifacts: Artifacts, sender: str, digest: str, size: int) -> None:
        stored = self._read(artifacts)
        incoming = sum(most for _, most in self._receiving.values())
        receiving = [most for who, most in self._receiving.values() if who == sender]
        disk, free, needed = measure_space(artifacts.uploads_folder, self._reserve)
        own = stored.get(sender, {})
        if len(receiving) + len(own) >= MOST_OF_ONE and digest not in own:
            raise TooLarge(
                f"uploads of {sender}: expected at most {MOST_OF_ONE} files that no import has read, got one more; "
                "wait for the imports, or for the day after which they are removed"
            )
        for whose, held, most in (
            (f"uploads of {sender}", sum(receiving) + self._bytes[sender], int(disk * OF_ONE)),
            ("uploads", incoming + self._bytes.total(), int(disk * OF_ALL)),
        ):
            if held + size > most:
                raise TooLarge(
                    f"{whose}: expected at most {most} bytes that no import has read, got {held} and {size} more; "
                    "wait for the imports, or for the day after which they are removed"
                )
        if size + incoming > free - needed:
            expected = f"{size + incoming} bytes free beside the {needed} that the log needs"
            raise Unavailable(f"upload {digest}, disk: expected {expected}, got {free}; make room", code=DISK)
