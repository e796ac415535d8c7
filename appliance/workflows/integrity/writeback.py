"""What SQLite has written ahead goes into the database between the appends.

A commit that finds a thousand pages in the write-ahead log has to copy them, which took one request in a hundred and
fifty some 10 to 20 ms. Copied every second they are few, and no request waits for it. PostgreSQL does this by itself.

Also while no entry comes: an erased text may still lie in that log, which somebody's reading kept from being emptied.
"""

from __future__ import annotations

from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context

EVERY_S = 1.0


def start(context: Context) -> None:
    """Until the service ends."""
    rounds.start(context, "write-back", EVERY_S, context.ledger.write_back)
