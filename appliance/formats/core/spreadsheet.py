"""A cell of CSV that a spreadsheet shows and never calculates (CWE-1236)."""

from __future__ import annotations

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the wide forms of the first, which some spreadsheets take for them."""


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
    return f"'{text}" if (text.startswith(_BEGINS_FORMULA) or text.lstrip().startswith(_BEGINS_FORMULA)) else text
