"""A table as CSV that a spreadsheet shows and never calculates."""

from __future__ import annotations

import csv
import io

from appliance.web.console.core.page import Table

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(table: Table) -> str:
    """RFC 4180, with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(table.headers)
    for row in table.rows:
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _cell(value: object) -> object:
    """A number stays one. A text that a spreadsheet would read as a formula begins with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    text = str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_BEGINS_FORMULA) else text
