"""Everything that ever happened to one adapter, from the run that made it."""

from __future__ import annotations

from typing import Any

from appliance.client.door import Door
from appliance.client.log import find_entries
from appliance.domain.entry import Entry, parse_entry
from appliance.formats.fields import parse_base64


def adapter_history(door: Door, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """The adapter's row, and every entry about it or about its run, each once, in the log's order."""
    row = dict(door.get(f"/v1/adapters/{name}"))
    found = {
        entry.index: entry
        for entry in (
            parse_entry(parse_base64(item["entry"], "entry")) for item in door.get(f"/v1/adapters/{name}/history")
        )
    }
    found.update({entry.index: entry for entry in find_entries(door, subject=f"run:{row['run']}")})
    return row, [found[index] for index in sorted(found)]
