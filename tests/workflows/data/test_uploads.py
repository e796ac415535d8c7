"""Uploads are bounded, for one person and for all, and what nobody imports goes after a day."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import BadInput, TooLarge, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.artifacts import Artifacts
from appliance.workflows.core import uploads as bounds
from appliance.workflows.core.uploads import Uploads
from appliance.workflows.data import uploads as sweeping


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """On a disk of 400 bytes, of which 300 are free and 20 are the log's."""
    monkeypatch.setattr(bounds, "reserve_of", lambda folder: (400, 300, 20))
    return Artifacts(tmp_path)


def send(uploads: Uploads, artifacts: Artifacts, who: str, data: bytes) -> str:
    with uploads.receive(artifacts, who, digest_bytes(data), len(data)) as incoming:
        incoming.write(data)
        incoming.finish()
    return digest_bytes(data)


def test_one_person_fills_no_more_than_their_part_and_keeps_nobody_else_out(artifacts: Artifacts) -> None:
    uploads = Uploads()
    first = send(uploads, artifacts, "olga", b"a" * 150)
    with pytest.raises(TooLarge, match=r"uploads of olga: expected at most 200 bytes .* got 150 and 51 more"):
        send(uploads, artifacts, "olga", b"b" * 51)
    send(uploads, artifacts, "vera", b"c" * 100)
    with pytest.raises(TooLarge, match=r"^uploads: expected at most 300 bytes"):
        send(uploads, artifacts, "vera", b"d" * 51)
    artifacts.discard_upload(first)
    send(uploads, artifacts, "olga", b"b" * 51)


def test_what_is_coming_counts_until_it_ends(artifacts: Artifacts) -> None:
    uploads = Uploads()
    with uploads.receive(artifacts, "olga", digest_bytes(b"x"), 150):
        with pytest.raises(TooLarge, match="uploads of olga"):
            send(uploads, artifacts, "olga", b"b" * 51)
        with pytest.raises(Unavailable, match="disk"):
            send(uploads, artifacts, "vera", b"b" * 131)
    send(uploads, artifacts, "olga", b"b" * 51)
    with (
        pytest.raises(BadInput),
        uploads.receive(artifacts, "olga", digest_bytes(b"x"), 1) as incoming,
    ):
        incoming.write(b"y")
        incoming.finish()
    assert len(artifacts.uploads()) == 1 and uploads._coming == {}


def test_the_room_that_the_log_needs_is_given_to_no_upload(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "reserve_of", lambda folder: (400, 100, 20))
    with pytest.raises(
        Unavailable, match="expected 81 bytes free beside the 20 that the log needs, got 100"
    ) as refused:
        send(Uploads(), artifacts, "olga", b"a" * 81)
    assert refused.value.code == "disk"
    send(Uploads(), artifacts, "olga", b"a" * 80)


def test_an_upload_of_yesterday_that_no_import_waits_for_is_removed(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, waited = (send(Uploads(), artifacts, "olga", text) for text in (b"old", b"new", b"waited"))
    day = time.time() - sweeping.KEPT_S - 1
    for digest in (old, waited):
        os.utime(artifacts.upload(digest), (day, day))
    kept: list[Any] = []

    def discard(context: Any, digests: list[str], sent_by: float) -> None:
        kept.extend(digests)
        for digest in set(digests) - {waited}:
            artifacts.discard_upload(digest, sent_by)

    monkeypatch.setattr(sweeping, "discard_unwanted", discard)
    clock = SimpleNamespace(timestamp=time.time)
    sweeping.sweep_uploads(SimpleNamespace(artifacts=artifacts, clock=lambda: clock))  # type: ignore[arg-type]
    assert sorted(kept) == sorted([old, waited]) and set(artifacts.uploads()) == {new, waited}
