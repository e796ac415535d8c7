"""Digests are sha256: and 64 lower-case digits; a file is digested without following a link."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from appliance.errors import BadInput, NotFound
from appliance.formats.core.digest import (
    Hasher,
    digest_bytes,
    digest_file,
    is_short_code,
    parse_digest,
    raw_digest,
    short_code,
)

ABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_abc_is_that_of_fips_180() -> None:
    assert digest_bytes(b"abc") == ABC


def test_a_short_code_has_the_first_60_bits_of_the_digest() -> None:
    assert short_code(ABC) == "XJ4B-NP4P-AHH6"  # base64.b32encode(hashlib.sha256(b"abc").digest())[:12]
    assert short_code(f"sha256:{'0' * 15}{'f' * 49}") == "AAAA-AAAA-AAAA"


@pytest.mark.parametrize("text", ["XJ4B-NP4P-AHH6", "xj4bnp4pahh6", " xj4b np4p  ahh6 ", "X-J-4-B-NP4PAHH6"])
def test_a_short_code_is_read_without_regard_to_capitals_hyphens_and_spaces(text: str) -> None:
    assert is_short_code(text, ABC)


@pytest.mark.parametrize("text", ["", "XJ4B-NP4P", "XJ4B-NP4P-AHH7", "XJ4B-NP4P-AHH6-A", ABC, "XJ4B–NP4P–AHH6"])
def test_another_text_is_not_the_short_code(text: str) -> None:
    assert not is_short_code(text, ABC)


def test_a_stream_has_the_digest_and_size_of_its_bytes() -> None:
    hasher = Hasher()
    for part in (b"a", bytearray(b"b"), memoryview(b"c")):
        hasher.update(part)
    assert (hasher.digest(), hasher.size) == (ABC, 3)


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 17)
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_link_is_refused_even_when_its_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(BadInput, match="expected a regular file"):
        digest_file(tmp_path / "link")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(BadInput, match="expected a regular file"):
            digest_file(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        digest_file(tmp_path / "nothing")
    with pytest.raises(BadInput):
        digest_file("a\0b")


def test_a_digest_comes_back_as_text_and_as_bytes() -> None:
    assert parse_digest(ABC) == ABC
    assert raw_digest(ABC) == hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize(
    "text", ["", ABC[7:], ABC.upper(), f"{ABC}0", ABC[:-1], f"{ABC}\n", f" {ABC}", f"sha512:{ABC[7:]}", None, 5]
)
def test_other_spellings_of_a_digest_are_refused(text: object) -> None:
    with pytest.raises(BadInput):
        parse_digest(text)
