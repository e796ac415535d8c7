"""TOML that people write: every malformed file is refused, in time."""

from __future__ import annotations

import pytest

from appliance.errors import BadInput
from appliance.formats.core.toml import MAX_LINE_BYTES, parse_toml


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = ", "file: expected TOML, got "),
        (b"a = '\xff'", "file: expected TOML, got "),
        (b"a = " + b"9" * 5_000, "file: expected TOML, got "),
        (b"a = " + b"[" * 5_000, "file: expected TOML of a few levels"),
        (b"a = 1\n[" + b"a." * MAX_LINE_BYTES + b"a]", "file, line 2: expected at most 8192 bytes, got 16387"),
    ],
)
def test_a_malformed_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_toml(data, "file")


def test_values_are_read() -> None:
    assert parse_toml(b'a = 1\n[b.c]\nd = ["e"]\n', "file") == {"a": 1, "b": {"c": {"d": ["e"]}}}
