"""What a command's help says of a time that it takes, and the reading of it."""

from __future__ import annotations

from appliance.formats.core.typed_time import parse_end, parse_moment, parse_point

__all__ = ["END_HELP", "PAST_HELP", "parse_end", "parse_moment", "parse_point"]

PAST_HELP = "2026-11-24 (a date), 2026-11-24T10:30Z (a time with its zone), now, or 90m, 2h, 7d, 4w ago."
END_HELP = "2026-11-24 (to the day's end), 2026-11-24T10:30Z (a time with its zone), or 90m, 2h, 7d, 4w from now."
"""What a command's help says of a time that it takes, by the direction that a length counts in."""
