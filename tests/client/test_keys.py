from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appliance.client.support.profile import (
    create_key,
    open_key,
    passphrase_of_descriptor,
    passphrase_of_file,
    public_path,
    read_public_key,
)
from appliance.errors import BadInput, Conflict, Denied, NotAuthenticated, NotFound

PASSPHRASE = b"correct horse battery"


def test_a_key_opens_with_its_passphrase_and_signs_as_the_public_key_beside_it(tmp_path: Path) -> None:
    made = create_key(tmp_path / "ada.key", PASSPHRASE)
    opened = open_key(tmp_path / "ada.key", lambda: PASSPHRASE)
    assert opened.spki == made.spki == read_public_key(tmp_path / "ada.pub") == read_public_key(tmp_path / "ada.key")


def test_only_the_public_key_can_be_read_by_others(tmp_path: Path) -> None:
    create_key(tmp_path / "ada.key", PASSPHRASE)
    assert stat.S_IMODE((tmp_path / "ada.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ada.pub").stat().st_mode) == 0o644


@pytest.mark.parametrize(("name", "public"), [("ada.key", "ada.pub"), ("ada", "ada.pub"), ("ada.json", "ada.json.pub")])
def test_the_public_key_is_named_after_the_key(name: str, public: str) -> None:
    assert public_path(Path("/k") / name) == Path("/k") / public


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    create_key(tmp_path / "ada.key", PASSPHRASE)
    before = (tmp_path / "ada.key").read_bytes()
    with pytest.raises(Conflict, match=r"ada\.key: expected a name that is free"):
        create_key(tmp_path / "ada.key", PASSPHRASE)
    assert (tmp_path / "ada.key").read_bytes() == before


def test_a_public_key_in_the_way_leaves_no_half_made_pair(tmp_path: Path) -> None:
    (tmp_path / "ada.pub").write_text("somebody else's")
    with pytest.raises(Conflict, match=r"ada\.pub"):
        create_key(tmp_path / "ada.key", PASSPHRASE)
    assert not (tmp_path / "ada.key").exists()
    assert (tmp_path / "ada.pub").read_text() == "somebody else's"


def test_a_short_passphrase_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 8 characters, got 7"):
        create_key(tmp_path / "ada.key", b"sieben7")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_passphrase_names_the_file(tmp_path: Path) -> None:
    create_key(tmp_path / "ada.key", PASSPHRASE)
    with pytest.raises(NotAuthenticated, match=r"ada\.key: expected its passphrase"):
        open_key(tmp_path / "ada.key", lambda: b"another passphrase")


def _never() -> bytes:
    raise AssertionError("asked for a passphrase before the file was checked")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_before_anybody_is_asked(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "ada.key", PASSPHRASE)
    (tmp_path / "ada.key").chmod(mode)
    with pytest.raises(Denied, match=f"got {mode:04o}; type: chmod 600"):
        open_key(tmp_path / "ada.key", _never)


def test_a_link_to_a_key_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "ada.key", PASSPHRASE)
    (tmp_path / "link.key").symlink_to(tmp_path / "ada.key")
    with pytest.raises(BadInput, match="got a link"):
        open_key(tmp_path / "link.key", _never)


def test_a_missing_key_and_a_file_that_is_no_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.key"):
        open_key(tmp_path / "none.key", _never)
    (tmp_path / "text.key").write_text("hello\n")
    (tmp_path / "text.key").chmod(0o600)
    with pytest.raises(BadInput):
        open_key(tmp_path / "text.key", _never)


def _passphrase_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "pass"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("data", [b"a b c \xc3\xa9", b"a b c \xc3\xa9\n", b"a b c \xc3\xa9\r\n"])
def test_a_passphrase_file_gives_its_line_without_the_line_end(tmp_path: Path, data: bytes) -> None:
    assert passphrase_of_file(_passphrase_file(tmp_path, data)) == b"a b c \xc3\xa9"


@pytest.mark.parametrize(
    ("data", "mode", "error", "words"),
    [
        (b"secret\n", 0o644, Denied, "got 0644; type: chmod 600"),
        (b"secret\n", 0o620, Denied, "got 0620"),
        (b"\n", 0o600, BadInput, "got an empty line"),
        (b"one\ntwo\n", 0o600, BadInput, "expected one line, got more"),
        (b"x" * 5000, 0o600, BadInput, "at most 4096 bytes"),
    ],
)
def test_a_passphrase_file_that_cannot_be_one_is_refused(
    tmp_path: Path, data: bytes, mode: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        passphrase_of_file(_passphrase_file(tmp_path, data, mode))
    assert "secret" not in str(raised.value)


def test_a_link_to_a_passphrase_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(_passphrase_file(tmp_path, b"secret\n"))
    with pytest.raises(BadInput, match="got a link"):
        passphrase_of_file(tmp_path / "link")


def test_a_passphrase_comes_from_an_inherited_descriptor() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a program\n")
    os.close(writing)
    assert passphrase_of_descriptor(reading) == b"from a program"


def test_standard_input_is_no_passphrase_descriptor() -> None:
    with pytest.raises(BadInput, match="expected 3 or more"):
        passphrase_of_descriptor(0)


def test_a_closed_descriptor_is_named_with_the_remedy() -> None:
    with pytest.raises(BadInput, match="descriptor 987: expected an open one"):
        passphrase_of_descriptor(987)
