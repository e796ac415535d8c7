"""A cell of CSV that a spreadsheet shows and never calculates (CWE-1236)."""

from __future__ import annotations

import re

_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
"""What a formula begins with. The last four are the wide forms of the first, which some spreadsheets take for them."""
_BEGINNING = re.compile(rf"[\t\r\n]|\s*[{_SIGNS}]")
_INSIDE = re.compile(rf'[;\t\r\n](?=[\s"]*[{_SIGNS}])')


def safe_cell(value: object) -> object:
    """A number stays one, and a list is its words. A text that a spreadsheet would read as a formula begins with an
    apostrophe. So does a formula after a semicolon or tab inside it, where some spreadsheets begin a new cell."""
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
