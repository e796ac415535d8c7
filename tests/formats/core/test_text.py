"""Sizes as texts."""

from __future__ import annotations

import pytest

from appliance.formats.core.text import show_bytes


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (19_537_920, "19.5 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1 GB"),
        (24 * 10**9, "24 GB"),
        (2_000_000_000_000, "2,000 GB"),
    ],
)
def test_a_size_has_three_digits_and_a_decimal_unit(size: int, shown: str) -> None:
    assert show_bytes(size) == shown
