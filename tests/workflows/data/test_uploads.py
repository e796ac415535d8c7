"""Uploads are limited, for one person and for all, and removed after a day without an import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import BadInput, NotFound, TooLarge, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.artifacts import Artifacts, UploadKey
from appliance.workflows.core import uploads as bounds
from appliance.workflows.core.uploads import Uploads
from appliance.workflows.data import imports as sweeping


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """On a disk of 400 bytes, of which 300 are free and 20 are the log's."""
    monkeypatch.setattr(bounds, "measure_space", lambda folder, reserve: (400, 300, 20))
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
    uploads.discard(artifacts, UploadKey("olga", first))
    send(uploads, artifacts, "olga", b"b" * 51)


def test_a_person_has_so_many_uploads_and_the_disk_is_read_once(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST_OF_ONE", 3)
    send(Uploads(), artifacts, "olga", b"0")
    reads: list[None] = []
    read = artifacts.uploads
    monkeypatch.setattr(artifacts, "uploads", lambda: reads.append(None) or read())
    uploads = Uploads()
    first, _ = send(uploads, artifacts, "olga", b"1"), send(uploads, artifacts, "olga", b"2")
    with pytest.raises(TooLarge, match=r"uploads of olga: expected at most 3 files"):
        send(uploads, artifacts, "olga", b"3")
    send(uploads, artifacts, "olga", b"2")
    send(uploads, artifacts, "vera", b"3")
    uploads.discard(artifacts, UploadKey("olga", first))
    send(uploads, artifacts, "olga", b"3")
    assert len(reads) == 1
    assert uploads._bytes == {"olga": 3, "vera": 1}


def test_an_upload_that_an_order_names_is_kept_until_the_order_is_forgotten(artifacts: Artifacts) -> None:
    uploads = Uploads()
    upload = UploadKey("olga", send(uploads, artifacts, "olga", b"rows"))
    for order in ("first", "second"):
        uploads.name(order, [upload])
    for order in ("first", "second"):
        uploads.discard(artifacts, upload)
        assert upload in artifacts.uploads()
        uploads.forget(order)
    uploads.discard(artifacts, upload)
    assert not artifacts.uploads()


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
    assert len(artifacts.uploads()) == 1 and uploads._receiving == {}


def test_an_upload_is_found_by_its_sender_alone(artifacts: Artifacts) -> None:
    digest = send(Uploads(), artifacts, "olga", b"rows")
    with pytest.raises(NotFound) as other:
        artifacts.upload("oscar", digest)
    artifacts.discard_upload("oscar", digest)
    assert artifacts.upload("olga", digest).read_bytes() == b"rows"
    send(Uploads(), artifacts, "oscar", b"rows")
    artifacts.discard_upload("olga", digest)
    assert artifacts.upload("oscar", digest).read_bytes() == b"rows", "the same bytes of two people are two uploads"
    with pytest.raises(NotFound) as own:
        artifacts.upload("olga", digest)
    assert own.value.message == other.value.message
    for sender in ("..", "a/b", ""):
        with pytest.raises(BadInput, match="sender"):
            artifacts.receive(sender, digest, 4)


def test_the_room_that_the_log_needs_is_given_to_no_upload(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "measure_space", lambda folder, reserve: (400, 100, 20))
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
        os.utime(artifacts.upload("olga", digest), (day, day))
    kept: list[Any] = []

    def discard(context: Any, uploads: list[UploadKey], sent_by: float) -> None:
        kept.extend(uploads)
        for upload in set(uploads) - {UploadKey("olga", waited)}:
            artifacts.discard_upload(*upload, sent_by)

    monkeypatch.setattr(sweeping, "discard_unwanted", discard)
    clock = SimpleNamespace(timestamp=time.time)
    sweeping.sweep_uploads(SimpleNamespace(artifacts=artifacts, clock=lambda: clock))  # type: ignore[arg-type]
    assert sorted(kept) == sorted([("olga", old), ("olga", waited)])
    assert set(artifacts.uploads()) == {("olga", new), ("olga", waited)}
