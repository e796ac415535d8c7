"""A table as CSV that a spreadsheet shows and never calculates."""

from __future__ import annotations

import csv
import io

from appliance.formats.core.spreadsheet import safe_cell
from appliance.web.console.core.page import Table


def write_csv(table: Table) -> str:
    """RFC 4180, with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(table.headers)
    for row in table.rows:
        writer.writerow([safe_cell(value) for value in row])
    return out.getvalue()
