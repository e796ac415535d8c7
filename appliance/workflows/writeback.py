"""What SQLite has written ahead goes into the database between the appends.

Whoever's commit finds a thousand pages in the write-ahead log has to copy them, which took one request in a hundred and
fifty some 10 to 20 ms. Copied every second they are few, and nobody waits for it. PostgreSQL does the like by itself.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from appliance.errors import ApplianceError
from appliance.workflows.context import Context

EVERY_S = 1.0


def start(context: Context) -> None:
    """In a thread of its own, until the service ends. Where it fails, the next append says what is wrong."""

    def work() -> None:
        size = 0
        while not context.closing.wait(EVERY_S):
            with suppress(ApplianceError):
                before, size = size, context.ledger.state.size
                if size != before:
                    context.ledger.write_back()

    threading.Thread(target=work, name="writeback", daemon=True).start()
