"""A cell of CSV that a spreadsheet shows and never calculates (CWE-1236)."""

from __future__ import annotations

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_cell(value: object) -> object:
    """A number stays one, and a list is its words. A text that a spreadsheet would read as a formula begins with an
    apostrophe."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    text = str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_BEGINS_FORMULA) else text
