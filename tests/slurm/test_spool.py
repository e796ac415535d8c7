"""Records through a shared folder are authenticated by the job's key; other bytes are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import Tampered, Unavailable
from appliance.sandbox.output import ConfinedPath
from appliance.slurm.spool import MAX_PAYLOAD_BYTES, SETTLES_S, SpoolReader, SpoolWriter

KEY = b"k" * 32
PAYLOADS = (b"one", b"", b"three" * 1000)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def written(folder: Path, *payloads: bytes, key: bytes = KEY, label: str = "0/out") -> Path:
    writer = SpoolWriter(ConfinedPath(folder), "out", key, label)
    for payload in payloads:
        writer.append(payload)
    writer.close()
    return folder / "out"


def reader(folder: Path, clock: Clock | None = None, label: str = "0/out") -> SpoolReader:
    return SpoolReader(ConfinedPath(folder), "out", KEY, label, clock or Clock())


def refused(found: SpoolReader, clock: Clock) -> bool:
    """Nothing comes at once, since a network may be late; Tampered comes once it had time."""
    assert found.take() is None
    clock.now += SETTLES_S - 1
    assert found.take() is None
    clock.now += 1
    with pytest.raises(Tampered, match="as it was written, got other bytes"):
        found.take()
    return True


def test_records_come_out_in_order_and_nothing_before_it_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path, *PAYLOADS)
    data = path.read_bytes()
    path.write_bytes(b"")
    found, taken = reader(tmp_path), []
    for byte in range(len(data)):
        with path.open("ab") as file:
            file.write(data[byte : byte + 1])
        payload = found.take()
        taken += [] if payload is None else [payload]
    assert tuple(taken) == PAYLOADS


def test_a_file_that_is_not_there_yet_has_no_record(tmp_path: Path) -> None:
    assert reader(tmp_path).take() is None


@pytest.mark.parametrize("place", [0, 3, 4, 6, 7, 38])
def test_a_changed_byte_is_tampered_once_a_network_had_time(tmp_path: Path, place: int) -> None:
    path, clock = written(tmp_path, b"one"), Clock()
    data = bytearray(path.read_bytes())
    data[place] ^= 1 if place != 3 else 4  # a longer record would only be waited for
    path.write_bytes(data)
    found = reader(tmp_path, clock)
    if place == 0:
        assert int.from_bytes(data[:4], "big") > MAX_PAYLOAD_BYTES
    if place == 3:
        assert found.take() is None
        return
    assert refused(found, clock)


@pytest.mark.parametrize(("key", "label"), [(b"x" * 32, "0/out"), (KEY, "0/in"), (KEY, "1/out")])
def test_a_record_of_another_key_direction_or_start_is_none(tmp_path: Path, key: bytes, label: str) -> None:
    written(tmp_path, b"one", key=key, label=label)
    clock = Clock()
    assert refused(reader(tmp_path, clock), clock)


def test_a_record_that_is_left_out_repeated_or_exchanged_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, b"one", b"two")
    data = path.read_bytes()
    first, second = data[: len(data) // 2], data[len(data) // 2 :]
    for other, whole in ((second, 0), (first + first, 1), (second + first, 0)):
        path.write_bytes(other)
        clock = Clock()
        found = reader(tmp_path, clock)
        for _ in range(whole):
            assert found.take() is not None
        assert refused(found, clock)


def test_zeros_that_become_bytes_later_are_what_a_network_shows(tmp_path: Path) -> None:
    path, clock = written(tmp_path, b"one"), Clock()
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) - 4))
    found = reader(tmp_path, clock)
    assert found.take() is None
    clock.now += SETTLES_S / 2
    path.write_bytes(data)
    assert found.take() == b"one"


def test_a_file_that_was_read_and_is_gone_is_unavailable_and_read_on_where_it_comes_back(tmp_path: Path) -> None:
    path, clock = written(tmp_path, b"one", b"two"), Clock()
    found = reader(tmp_path, clock)
    assert found.take() == b"one"
    path.rename(tmp_path / "elsewhere")
    assert found.take() is None
    clock.now += SETTLES_S
    with pytest.raises(Unavailable, match="expected the file whose first 1 records were read, got none") as gone:
        found.take()
    assert gone.value.code == "shared-folder"
    (tmp_path / "elsewhere").rename(path)
    assert found.take() == b"two"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link"])
def test_no_other_kind_of_file_stands_for_the_records(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, b"one")
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.hardlink_to(tmp_path / "elsewhere")
    with pytest.raises(Tampered):
        reader(tmp_path).take()


def test_a_writer_continues_after_what_a_power_cut_left(tmp_path: Path) -> None:
    path = written(tmp_path, b"one", b"two")
    path.write_bytes(path.read_bytes()[:-5])
    written(tmp_path, b"again")
    found = reader(tmp_path)
    assert [found.take() for _ in range(3)] == [b"one", b"again", None]


@pytest.mark.timeout(60)
def test_a_pipe_that_takes_the_files_place_meanwhile_holds_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "in")
    monkeypatch.setattr(SpoolReader, "take", lambda self: None)
    with pytest.raises(Tampered):
        SpoolWriter(ConfinedPath(tmp_path), "in", KEY, "0/in")


def test_a_full_shared_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/dev/full")
    with pytest.raises((Unavailable, Tampered)):
        SpoolWriter(ConfinedPath(tmp_path), "out", KEY, "0/out")
    writer = SpoolWriter.__new__(SpoolWriter)
    writer._key, writer._label, writer._name, writer.number = KEY, "0/out", "out", 0
    writer._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(
        Unavailable, match="shared folder, out: expected it to work, got No space left on device"
    ) as full:
        writer.append(b"one")
    assert full.value.code == "shared-folder"
    writer.close()
