"""Texts: sizes, CSV cells that a spreadsheet does not evaluate (CWE-1236), and characters without a visible shape."""

from __future__ import annotations

import re

_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
"""Characters that begin a formula; the last four are full-width forms that some spreadsheets accept."""
_BEGINNING = re.compile(rf"[\t\r\n]|\s*[{_SIGNS}]")
_INSIDE = re.compile(rf'[;\t\r\n](?=[\s"]*[{_SIGNS}])')


def safe_cell(value: object) -> object:
    """Return a value for a CSV cell that no spreadsheet evaluates as a formula.

    Numbers stay numbers, and a list becomes its words. An apostrophe is put before a text that would be read as a
    formula, and before a formula after a semicolon or tab inside the text, where some spreadsheets begin a new cell.
    """
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    text = str(value)
    words = text.lstrip()
    safe = text[: len(text) - len(words)] + _INSIDE.sub(r"\g<0>'", words)
    return f"'{safe}" if _BEGINNING.match(text) else safe


IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_visible(text: str) -> bool:
    """Return True if every character is a space or has a visible shape."""
    return text.isprintable() and IGNORABLE.search(text) is None


def show_bytes(size: int) -> str:
    """Return a number of bytes with three digits, in powers of ten."""
    if size < 1000:
        return f"{size} bytes"
    shown = float(size)
    for unit in ("kB", "MB", "GB"):
        shown /= 1000
        if shown < 999.5:
            return f"{shown:.3g} {unit}"
    return f"{shown:,.0f} GB"
